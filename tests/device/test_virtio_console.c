/*
 * virtio console: ports and their control messages, output that waits for its reader, input that waits for the guest,
 * sizes, emergency writes, and a driver that does none of it as it should.
 */
#include "tests/device/virtio_rig.h"

#include <errno.h>

#include "base/bytes.h"
#include "device/stream.h"
#include "device/virtio/console.h"

#define F_SIZE	      BIT(0)
#define F_MULTIPORT   BIT(1)
#define F_EMERG_WRITE BIT(2)
#define CONTROL_IN    2
#define CONTROL_OUT   3

enum {
	DEVICE_READY,
	DEVICE_ADD,
	DEVICE_REMOVE,
	PORT_READY,
	CONSOLE_PORT,
	RESIZE,
	PORT_OPEN,
	PORT_NAME
};

/* A stream that takes as much as `room` says, and remembers. */
struct fake_stream {
	struct stream stream; /* first */
	struct stream_peer peer;
	size_t room, count;
	unsigned ready;
	uint8_t bytes[65536];
};

static void fake_attach(struct stream *stream, const struct stream_peer *peer)
{
	struct fake_stream *fake = (struct fake_stream *)stream;

	fake->peer = peer ? *peer : (struct stream_peer){0};
}

static size_t fake_send(struct stream *stream, const uint8_t *bytes, size_t count)
{
	struct fake_stream *fake = (struct fake_stream *)stream;
	size_t part = MIN(MIN(count, fake->room), sizeof(fake->bytes) - fake->count);

	memcpy(fake->bytes + fake->count, bytes, part);
	fake->count += part;
	fake->room -= part;
	return part;
}

static void fake_ready(struct stream *stream)
{
	((struct fake_stream *)stream)->ready++;
}

static const struct stream_ops fake_ops = {
	.attach = fake_attach, .send = fake_send, .ready = fake_ready};

struct fixture {
	struct virtio_rig rig;
	struct fake_stream stream[2];
	struct virtio_console *console;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	virtio_rig_init(&f->rig);
	for (unsigned i = 0; i < 2; i++)
		f->stream[i] = (struct fake_stream){.stream.ops = &fake_ops, .room = SIZE_MAX};
	struct virtio_console_config config = {.wiring = {.memory = f->rig.memory,
						       .lock = &f->rig.lock,
						       .loop = f->rig.loop,
						       .name = "console"},
		.ports = 3,
		.port = {{&f->stream[0].stream, NULL}, {NULL, NULL},
			{&f->stream[1].stream, "org.test"}}};
	assert_int_equal(virtio_console_create(&config, &f->console), 0);
	f->stream[0].peer.connected(f->stream[0].peer.opaque, true);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	virtio_console_free(f->console);
	assert_null(f->stream[0].peer.receive);
	virtio_rig_done(&f->rig);
	free(f);
	return 0;
}

/* ---- the driver ---- */

static gpa_t give(struct fixture *f, unsigned queue, uint32_t bytes)
{
	struct rig_part part = {
		.gpa = virtio_rig_alloc(&f->rig, bytes), .bytes = bytes, .in = true};

	assert_true(virtio_rig_add(&f->rig, queue, &part, 1) >= 0);
	return part.gpa;
}

static void control(struct fixture *f, uint32_t port, unsigned event, unsigned value)
{
	uint8_t message[8];

	store_le32(message, port);
	store_le16(message + 4, (uint16_t)event);
	store_le16(message + 6, (uint16_t)value);
	assert_int_equal(virtio_rig_request(&f->rig, CONTROL_OUT, message, 8, NULL, 0), 0);
}

/* The next message of the device's, whose buffer was given at gpa. */
static void expect(struct fixture *f, gpa_t gpa, uint32_t port, unsigned event, unsigned value,
	const char *more, uint32_t more_bytes)
{
	uint32_t written;
	const uint8_t *bytes = virtio_rig_at(&f->rig, gpa);

	virtio_rig_run(&f->rig);
	assert_true(virtio_rig_used(&f->rig, CONTROL_IN, &written) >= 0);
	assert_int_equal(written, 8 + more_bytes);
	assert_int_equal(load_le32(bytes), port);
	assert_int_equal(load_le16(bytes + 4), event);
	assert_int_equal(load_le16(bytes + 6), value);
	assert_memory_equal(bytes + 8, more, more_bytes);
}

static bool told_nothing(struct fixture *f)
{
	uint32_t written;

	virtio_rig_run(&f->rig);
	return virtio_rig_used(&f->rig, CONTROL_IN, &written) < 0;
}

static void begin(struct fixture *f)
{
	virtio_rig_start(
		&f->rig, virtio_console_device(f->console), F_SIZE | F_MULTIPORT | F_EMERG_WRITE);
}

static int write_port(struct fixture *f, unsigned queue, const char *text)
{
	struct rig_part part[2];
	const uint32_t bytes = (uint32_t)strlen(text), first = bytes / 3;
	gpa_t gpa = virtio_rig_alloc(&f->rig, bytes);

	memcpy(virtio_rig_at(&f->rig, gpa), text, bytes);
	part[0] = (struct rig_part){.gpa = gpa, .bytes = first};
	part[1] = (struct rig_part){.gpa = gpa + first, .bytes = bytes - first};
	int id = virtio_rig_add(&f->rig, queue, part, 2);
	virtio_rig_kick(&f->rig, queue);
	virtio_rig_run(&f->rig);
	return id;
}

static bool was_used(struct fixture *f, unsigned queue, int id)
{
	uint32_t written;

	return virtio_rig_used(&f->rig, queue, &written) == id;
}

static void assert_got(struct fake_stream *stream, const char *text)
{
	assert_int_equal(stream->count, strlen(text));
	assert_memory_equal(stream->bytes, text, strlen(text));
	stream->count = 0;
}

/* ---- tests ---- */

static void test_one_port(void **state)
{
	struct fixture *f = *state;
	struct fake_stream *s = &f->stream[0];

	virtio_rig_start(&f->rig, virtio_console_device(f->console), 0);
	int id = write_port(f, 1, "hello, world");
	assert_true(was_used(f, 1, id));
	assert_got(s, "hello, world");
	/* Input waits for a buffer, which the stream hears of. */
	assert_int_equal(s->peer.receive(s->peer.opaque, (const uint8_t *)"abc", 3), 0);
	s->ready = 0;
	gpa_t gpa = give(f, 0, 2);
	virtio_rig_kick(&f->rig, 0);
	virtio_rig_run(&f->rig);
	assert_int_equal(s->ready, 1);
	assert_int_equal(s->peer.receive(s->peer.opaque, (const uint8_t *)"abc", 3), 2);
	assert_memory_equal(virtio_rig_at(&f->rig, gpa), "ab", 2);
	uint32_t written;
	assert_true(virtio_rig_used(&f->rig, 0, &written) >= 0);
	assert_int_equal(written, 2);
}

static void test_ports(void **state)
{
	struct fixture *f = *state;
	struct fake_stream *named = &f->stream[1];
	gpa_t gpa[8];

	begin(f);
	for (unsigned i = 0; i < 8; i++)
		gpa[i] = give(f, CONTROL_IN, 64);
	virtio_rig_kick(&f->rig, CONTROL_IN);
	assert_true(told_nothing(f));
	control(f, 0, DEVICE_READY, 1);
	expect(f, gpa[0], 0, DEVICE_ADD, 1, "", 0);
	expect(f, gpa[1], 2, DEVICE_ADD, 1, "", 0);
	control(f, 0, PORT_READY, 1);
	expect(f, gpa[2], 0, CONSOLE_PORT, 1, "", 0);
	expect(f, gpa[3], 0, PORT_OPEN, 1, "", 0);
	control(f, 2, PORT_READY, 1);
	expect(f, gpa[4], 2, PORT_NAME, 1, "org.test", 8);
	assert_true(told_nothing(f));
	named->peer.connected(named->peer.opaque, true);
	expect(f, gpa[5], 2, PORT_OPEN, 1, "", 0);
	int id = write_port(f, 7 - 0, "to the named one");
	assert_true(was_used(f, 7, id));
	assert_got(named, "to the named one");
	/* No input before the guest opens it. */
	give(f, 6, 100);
	assert_int_equal(named->peer.receive(named->peer.opaque, (const uint8_t *)"x", 1), 0);
	control(f, 2, PORT_OPEN, 1);
	assert_int_equal(named->ready, 1);
	assert_int_equal(named->peer.receive(named->peer.opaque, (const uint8_t *)"x", 1), 1);
	control(f, 2, PORT_OPEN, 0);
	give(f, 6, 100);
	assert_int_equal(named->peer.receive(named->peer.opaque, (const uint8_t *)"x", 1), 0);
	named->peer.connected(named->peer.opaque, false);
	expect(f, gpa[6], 2, PORT_OPEN, 0, "", 0);
	/* What nobody reads is dropped, and the guest goes on. */
	id = write_port(f, 7, "to nobody");
	assert_true(was_used(f, 7, id));
	assert_got(named, "");
}

/* The last state is told, not each. */
static void test_control_waits(void **state)
{
	struct fixture *f = *state;
	struct fake_stream *named = &f->stream[1];

	begin(f);
	control(f, 0, DEVICE_READY, 1);
	control(f, 2, PORT_READY, 1);
	for (unsigned i = 0; i < 1001; i++)
		named->peer.connected(named->peer.opaque, !(i & 1));
	gpa_t gpa[6];
	for (unsigned i = 0; i < 6; i++)
		gpa[i] = give(f, CONTROL_IN, 64);
	virtio_rig_kick(&f->rig, CONTROL_IN);
	expect(f, gpa[0], 0, DEVICE_ADD, 1, "", 0);
	expect(f, gpa[1], 2, DEVICE_ADD, 1, "", 0);
	expect(f, gpa[2], 2, PORT_NAME, 1, "org.test", 8);
	expect(f, gpa[3], 2, PORT_OPEN, 1, "", 0);
	assert_true(told_nothing(f));
}

static void test_slow_reader(void **state)
{
	struct fixture *f = *state;
	struct fake_stream *s = &f->stream[0];

	begin(f);
	s->room = 5;
	int first = write_port(f, 1, "0123456789"), second = write_port(f, 1, "abc");
	assert_false(was_used(f, 1, first));
	assert_int_equal(s->count, 5);
	s->room = 2;
	s->peer.room(s->peer.opaque);
	virtio_rig_run(&f->rig);
	assert_int_equal(s->count, 7);
	assert_false(was_used(f, 1, first));
	s->room = 4;
	s->peer.room(s->peer.opaque);
	virtio_rig_run(&f->rig);
	assert_true(was_used(f, 1, first));
	assert_false(was_used(f, 1, second));
	s->room = SIZE_MAX;
	s->peer.room(s->peer.opaque);
	virtio_rig_run(&f->rig);
	assert_true(was_used(f, 1, second));
	assert_got(s, "0123456789abc");
}

/* A chain that was half sent is not gone on with after a reset. */
static void test_reset(void **state)
{
	struct fixture *f = *state;
	struct fake_stream *s = &f->stream[0];

	begin(f);
	s->room = 5;
	write_port(f, 1, "0123456789");
	begin(f);
	s->room = SIZE_MAX;
	s->peer.room(s->peer.opaque);
	virtio_rig_run(&f->rig);
	assert_got(s, "01234");
	assert_true(was_used(f, 1, write_port(f, 1, "new")));
	assert_got(s, "new");
	assert_int_equal(s->peer.receive(s->peer.opaque, (const uint8_t *)"x", 1), 0);
}

static uint64_t config_at(struct fixture *f, uint64_t offset, unsigned size)
{
	return virtio_config_read(f->rig.device, offset, size);
}

static void test_size(void **state)
{
	struct fixture *f = *state;
	struct fake_stream *s = &f->stream[0];
	gpa_t gpa[6];

	s->peer.resized(s->peer.opaque, 100, 30);
	begin(f);
	assert_int_equal(config_at(f, 0, 2), 100);
	assert_int_equal(config_at(f, 2, 2), 30);
	assert_int_equal(config_at(f, 4, 4), 3);
	for (unsigned i = 0; i < 6; i++)
		gpa[i] = give(f, CONTROL_IN, 64);
	virtio_rig_kick(&f->rig, CONTROL_IN);
	control(f, 0, PORT_READY, 1);
	expect(f, gpa[0], 0, CONSOLE_PORT, 1, "", 0);
	expect(f, gpa[1], 0, RESIZE, 1, "\x64\0\x1e\0", 4);
	expect(f, gpa[2], 0, PORT_OPEN, 1, "", 0);
	const unsigned before = f->rig.config_interrupts;
	s->peer.resized(s->peer.opaque, 100, 30);
	assert_true(told_nothing(f));
	assert_int_equal(f->rig.config_interrupts, before);
	s->peer.resized(s->peer.opaque, 513, 30);
	expect(f, gpa[3], 0, RESIZE, 1, "\x01\x02\x1e\0", 4);
	assert_int_equal(f->rig.config_interrupts, before + 1);
	assert_int_equal(config_at(f, 0, 2), 513);
}

static void test_emergency(void **state)
{
	struct fixture *f = *state;
	const char *text = "dying";

	virtio_rig_agree(&f->rig, virtio_console_device(f->console), F_EMERG_WRITE);
	for (unsigned i = 0; text[i]; i++)
		virtio_config_write(f->rig.device, 8, 4, (uint8_t)text[i]);
	virtio_config_write(f->rig.device, 0, 4, 'x');
	virtio_rig_run(&f->rig);
	assert_got(&f->stream[0], "dying");
	/* More than is kept of it is lost, not written elsewhere. */
	for (unsigned i = 0; i < 1000; i++)
		virtio_config_write(f->rig.device, 8, 1, 'y');
	virtio_rig_run(&f->rig);
	assert_int_equal(f->stream[0].count, 256);
}

static void test_hostile(void **state)
{
	struct fixture *f = *state;
	struct fake_stream *s = &f->stream[0];
	uint32_t written;

	begin(f);
	/* Ports and events that there are not; messages too short; a buffer too small for an answer. */
	control(f, 77, PORT_READY, 1);
	control(f, 1, PORT_READY, 1);
	control(f, 1, PORT_OPEN, 1);
	control(f, 0xffffffff, PORT_OPEN, 1);
	control(f, 0, 999, 1);
	control(f, 0, DEVICE_REMOVE, 1);
	assert_int_equal(virtio_rig_request(&f->rig, CONTROL_OUT, "\0\0\0\0", 4, NULL, 0), 0);
	give(f, CONTROL_IN, 3);
	virtio_rig_kick(&f->rig, CONTROL_IN);
	control(f, 0, DEVICE_READY, 1);
	assert_true(virtio_rig_used(&f->rig, CONTROL_IN, &written) >= 0);
	assert_int_equal(written, 3);
	/* Ready again and again: the list of what it is to be told does not grow. */
	for (unsigned i = 0; i < 300; i++)
		control(f, 0, DEVICE_READY, 1);
	for (unsigned i = 0; i < 10; i++)
		give(f, CONTROL_IN, 64);
	virtio_rig_kick(&f->rig, CONTROL_IN);
	virtio_rig_run(&f->rig);
	unsigned told = 0;
	while (virtio_rig_used(&f->rig, CONTROL_IN, &written) >= 0)
		told++;
	assert_int_equal(told, 2);
	/* Input into buffers to read from, output in buffers to write to, and a port without a stream. */
	control(f, 0, PORT_OPEN, 1);
	struct rig_part out = {.gpa = virtio_rig_alloc(&f->rig, 10), .bytes = 10};
	assert_true(virtio_rig_add(&f->rig, 0, &out, 1) >= 0);
	assert_int_equal(s->peer.receive(s->peer.opaque, (const uint8_t *)"abc", 3), 0);
	give(f, 1, 10);
	virtio_rig_kick(&f->rig, 1);
	virtio_rig_run(&f->rig);
	assert_got(s, "");
	assert_true(was_used(f, 5, write_port(f, 5, "nowhere")));
	/* A chain outside of memory. */
	out.gpa = GIB(2);
	assert_true(virtio_rig_add(&f->rig, 1, &out, 1) >= 0);
	virtio_rig_kick(&f->rig, 1);
	virtio_rig_run(&f->rig);
	assert_true(virtio_rig_status(&f->rig) & VIRTIO_STATUS_NEEDS_RESET);
	assert_int_equal(s->peer.receive(s->peer.opaque, (const uint8_t *)"abc", 3), 0);
}

/* All that is written arrives, once and in order, whatever the reader takes at a time. */
static void bulk(struct fixture *f, bool packed, bool event_index, bool indirect)
{
	struct fake_stream *s = &f->stream[0];
	uint32_t seed = 1, sum_in = 0, written;
	unsigned sent = 0, got = 0;

	f->rig.packed = packed;
	f->rig.event_index = event_index;
	f->rig.indirect = indirect;
	begin(f);
	s->room = 0;
	while (got < 100000) {
		char text[200];
		const unsigned bytes = 3 + fake_random(&seed) % 190;

		for (unsigned i = 0; i < bytes; i++)
			text[i] = (char)('a' + (sent + i) % 26);
		text[bytes] = 0;
		if (f->rig.queue[1].free_count > 4) {
			write_port(f, 1, text);
			sent += bytes;
		}
		s->room = fake_random(&seed) % 300;
		s->peer.room(s->peer.opaque);
		virtio_rig_run(&f->rig);
		while (virtio_rig_used(&f->rig, 1, &written) >= 0)
			sum_in++;
		for (size_t i = 0; i < s->count; i++)
			assert_int_equal(s->bytes[i], 'a' + (got + i) % 26);
		got += (unsigned)s->count;
		s->count = 0;
	}
	assert_true(sum_in > 100 && sent >= got);
}

static void test_bulk(void **state)
{
	bulk(*state, false, false, false);
	bulk(*state, false, true, true);
	bulk(*state, true, true, false);
}

static void test_create_refuses(void **state)
{
	struct fixture *f = *state;
	struct virtio_console *console = NULL;
	struct virtio_console_config config = {.wiring = {.memory = f->rig.memory,
						       .lock = &f->rig.lock,
						       .loop = f->rig.loop,
						       .name = "x"}};

	assert_int_equal(virtio_console_create(&config, &console), -EINVAL);
	config.ports = VIRTIO_CONSOLE_PORTS_MAX + 1;
	assert_int_equal(virtio_console_create(&config, &console), -EINVAL);
	config.ports = 1;
	config.port[0].name =
		"a name that is a little longer than all the names that will do for it";
	assert_int_equal(virtio_console_create(&config, &console), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_one_port, setup, teardown),
		cmocka_unit_test_setup_teardown(test_ports, setup, teardown),
		cmocka_unit_test_setup_teardown(test_control_waits, setup, teardown),
		cmocka_unit_test_setup_teardown(test_slow_reader, setup, teardown),
		cmocka_unit_test_setup_teardown(test_reset, setup, teardown),
		cmocka_unit_test_setup_teardown(test_size, setup, teardown),
		cmocka_unit_test_setup_teardown(test_emergency, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hostile, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bulk, setup, teardown),
		cmocka_unit_test_setup_teardown(test_create_refuses, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
