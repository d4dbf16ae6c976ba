/*
 * Fuzz target: a driver that does anything to a virtio console, balloon, pmem or vsock (the first byte says which), while
 * the host's side of it does what it may.
 *
 * What must hold: nothing crashes; a stream is given each byte at most once and never more than it took; discarded
 * pages and hints are the guest's own RAM; statistics add up.
 */
#include "tests/fuzz/virtio_driver.h"

#include "device/stream.h"
#include "device/virtio/balloon.h"
#include "device/virtio/console.h"
#include "device/virtio/pmem.h"

#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#define OPS_MAX 250
#define PMEM	0x40000000u

struct target {
	struct driver d;
	unsigned kind;
	struct {
		struct stream stream; /* first */
		struct stream_peer peer;
		size_t room;
		bool refused; /* gave back bytes, and has not said that there is room */
		uint64_t sum;
	} stream[3];
	struct virtio_console *console;
	struct virtio_balloon *balloon;
	unsigned hinting;
	struct virtio_pmem *pmem;
	struct memory_file *file;
};

/* ---- the console's streams ---- */

static void fake_attach(struct stream *stream, const struct stream_peer *peer)
{
	__typeof__(&((struct target *)0)->stream[0]) fake = (void *)stream;

	fake->peer = peer ? *peer : (struct stream_peer){0};
}

static size_t fake_send(struct stream *stream, const uint8_t *bytes, size_t count)
{
	__typeof__(&((struct target *)0)->stream[0]) fake = (void *)stream;
	size_t part = MIN(count, fake->room);

	MUST(count);
	if (part)
		fake->sum += bytes[0] + bytes[part - 1];
	fake->room -= part;
	fake->refused = part < count;
	return part;
}

static void fake_ready(struct stream *stream) {}

static const struct stream_ops fake_ops = {
	.attach = fake_attach, .send = fake_send, .ready = fake_ready};

static void console_op(struct target *t, struct rig_input *in)
{
	static const uint8_t text[5000];
	uint8_t how = (uint8_t)rig_take(in, 1);
	unsigned i = how % 3;

	if (!t->stream[i].peer.receive)
		return;
	void *opaque = t->stream[i].peer.opaque;
	switch (how / 4 % 4) {
	case 0: {
		size_t count = rig_take(in, 2) % sizeof(text) + 1;
		MUST(t->stream[i].peer.receive(opaque, text, count) <= count);
		break;
	}
	case 1: t->stream[i].peer.connected(opaque, how & 64); break;
	case 2: t->stream[i].peer.resized(opaque, (uint16_t)rig_take(in, 2), how); break;
	default: t->stream[i].room = rig_take(in, 2); t->stream[i].peer.room(opaque);
	}
}

static void console_init(struct target *t, bool single)
{
	struct virtio_console_config config = {
		.wiring = driver_wiring(&t->d), .ports = single ? 1 : 3};

	for (unsigned i = 0; i < 3; i++) {
		t->stream[i].stream.ops = &fake_ops;
		t->stream[i].room = 100;
		config.port[i].stream = i == 1 ? NULL : &t->stream[i].stream;
	}
	config.port[2].name = "org.fuzz";
	MUST(virtio_console_create(&config, &t->console) == 0);
	driver_attach(&t->d, virtio_console_device(t->console));
}

/* ---- the balloon ---- */

static void hint_pages(void *opaque, gpa_t gpa, uint64_t bytes)
{
	MUST(gpa < DRIVER_RAM && bytes <= DRIVER_RAM - gpa);
	MUST(((struct target *)opaque)->hinting == 1);
}

static void hint_end(void *opaque, int status)
{
	MUST(((struct target *)opaque)->hinting-- == 1);
}

static void balloon_op(struct target *t, struct rig_input *in)
{
	const struct balloon_hints hints = {.pages = hint_pages, .end = hint_end, .opaque = t};
	struct balloon_statistics s;
	uint8_t how = (uint8_t)rig_take(in, 1);

	switch (how % 5) {
	case 0: virtio_balloon_set(t->balloon, rig_take(in, 5)); break;
	case 1: virtio_balloon_poll(t->balloon, how & 16 ? 1000 : 0); break;
	case 2:
		t->hinting++;
		if (virtio_balloon_hint(t->balloon, &hints) < 0)
			t->hinting--;
		break;
	case 3: virtio_balloon_hint_done(t->balloon); break;
	default:
		virtio_balloon_statistics(t->balloon, &s);
		MUST(s.told < 1u << BALLOON_STATISTICS);
		MUST(s.reported_bytes % 4096 == 0 && s.inflated_bytes % 4096 == 0);
	}
}

static void balloon_init(struct target *t)
{
	const struct virtio_balloon_config config = {.wiring = driver_wiring(&t->d)};

	MUST(virtio_balloon_create(&config, &t->balloon) == 0);
	driver_attach(&t->d, virtio_balloon_device(t->balloon));
}

/* ---- pmem ---- */

static void pmem_init(struct target *t)
{
	if (!t->file) {
		char path[40];
		int fd = memfd_create("fuzz", MFD_CLOEXEC);
		MUST(fd >= 0 && ftruncate(fd, (off_t)MIB(2)) == 0);
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		MUST(memory_file_open(
			     path, MEMORY_FILE_SHARED, VIRTIO_PMEM_ALIGN, &t->file, NULL) == 0);
		MUST(memory_add_file(t->d.memory, PMEM, t->file, "pmem", NULL) == 0);
		close(fd);
	}
	const struct virtio_pmem_config config = {
		.wiring = driver_wiring(&t->d), .gpa = PMEM, .file = t->file};
	MUST(virtio_pmem_create(&config, &t->pmem) == 0);
	driver_attach(&t->d, virtio_pmem_device(t->pmem));
}

/* ---- all ---- */

static void init(struct target *t, unsigned kind)
{
	memset(t->stream, 0, sizeof(t->stream));
	t->console = NULL;
	t->balloon = NULL;
	t->pmem = NULL;
	t->hinting = 0;
	t->kind = kind;
	if (kind < 2)
		console_init(t, kind);
	else if (kind == 2)
		balloon_init(t);
	else
		pmem_init(t);
}

static void host_op(struct target *t, struct rig_input *in)
{
	if (t->console)
		console_op(t, in);
	else if (t->balloon)
		balloon_op(t, in);
}

/* Messages that mean something: control messages of ports, page numbers, flushes. */
static void add_sensible(struct target *t, unsigned q, struct rig_input *in)
{
	const uint32_t gpa = DRIVER_DATA + (uint32_t)rig_take(in, 1) * 64;
	struct driver_part part[2] = {{gpa, 8, false}, {gpa + 32, 8, true}};
	uint8_t how = (uint8_t)rig_take(in, 1);

	store_le32(driver_at(&t->d, gpa), how % 4);
	store_le32(driver_at(&t->d, gpa + 4), how / 4 % 8 | (uint32_t)rig_take(in, 1) % 3 << 16);
	if (t->balloon) {
		store_le32(driver_at(&t->d, gpa), DRIVER_DATA / 4096 + how % 64);
		part[1] = (struct driver_part){DRIVER_DATA + (uint32_t)rig_take(in, 1) * 4096,
			4096u * (how % 16 + 1), true};
	}
	driver_add(&t->d, q, part + (how & 64 ? 1 : 0), how & 128 ? 2 - (how & 64 ? 1 : 0) : 1);
}

static void one_op(struct target *t, struct rig_input *in)
{
	uint8_t op = (uint8_t)rig_take(in, 1);
	unsigned q = op / 16 % t->d.queues;

	switch (op % 16) {
	case 0: driver_start(&t->d, in); break;
	case 1:
	case 2: driver_add_any(&t->d, q, in, 16); break;
	case 3:
	case 4:
	case 5: add_sensible(t, q, in); break;
	case 6: driver_poke(&t->d, in); break;
	case 7: driver_config(&t->d, in); break;
	case 8:
	case 9:
	case 10: host_op(t, in); break;
	case 11: driver_run(&t->d); break;
	default: virtio_kick(t->d.device, q); driver_run(&t->d);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct rig_input in = {data, size};
	static struct target t;

	if (!t.d.memory)
		driver_init(&t.d);
	init(&t, (unsigned)rig_take(&in, 1) % 4);
	driver_start(&t.d, &in);
	for (unsigned i = 0; i < OPS_MAX && in.left; i++)
		one_op(&t, &in);
	virtio_console_free(t.console);
	virtio_balloon_free(t.balloon);
	virtio_pmem_free(t.pmem);
	MUST(t.hinting == 0);
	driver_wipe(&t.d);
	return 0;
}
