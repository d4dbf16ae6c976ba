/*
 * device/virtio, the core: a device that answers with what it was given backwards, driven by the fake driver through
 * both kinds of rings, with and without event indexes and indirect tables; then by a driver that breaks every rule.
 */
#include "tests/device/virtio_rig.h"

#include "base/cleanup.h"

#define ECHO   0u /* answers at once, backwards */
#define HOLD   1u /* keeps what comes until the test gives it back */
#define QUEUES 4u /* 2 is a hole, 3 is like ECHO with 8 entries */
#define HELD   300u

#define FEATURE_A BIT(3)
#define FEATURE_B BIT(50)

struct echo {
	struct virtio_device *virtio;
	struct virtq_buffer buffer;
	struct virtq_buffer held[HELD];
	unsigned held_count, notified, started, resets;
	uint64_t features;
	bool defer_reset, polls;
	uint8_t config[11];
};

struct fixture {
	struct virtio_rig rig;
	struct echo echo;
};

static uint64_t echo_features(void *device)
{
	return FEATURE_A | FEATURE_B | BIT(33); /* the last one is not its own to offer */
}

static unsigned echo_queue_size(void *device, unsigned index)
{
	static const unsigned sizes[QUEUES] = {256, 256, 0, 8};

	return index < QUEUES ? sizes[index] : 0;
}

static void echo_config_read(void *device, unsigned offset, void *bytes, unsigned size)
{
	struct echo *echo = device;

	assert_true(offset + size <= sizeof(echo->config));
	memcpy(bytes, echo->config + offset, size);
}

static void echo_config_write(void *device, unsigned offset, const void *bytes, unsigned size)
{
	struct echo *echo = device;

	assert_true(offset + size <= sizeof(echo->config));
	memcpy(echo->config + offset, bytes, size);
}

static void echo_start(void *device, uint64_t features)
{
	struct echo *echo = device;

	echo->started++;
	echo->features = features;
}

static uint32_t answer(struct virtq_buffer *buffer)
{
	uint64_t bytes = MIN(buffer->out_bytes, buffer->in_bytes);

	for (uint64_t i = 0; i < bytes; i++) {
		uint8_t byte;

		assert_int_equal(virtq_read(buffer, buffer->out_bytes - 1 - i, &byte, 1), 1);
		assert_int_equal(virtq_write(buffer, i, &byte, 1), 1);
	}
	return (uint32_t)bytes;
}

static void echo_notify(void *device, unsigned index)
{
	struct echo *echo = device;
	struct virtq *q = virtio_queue(echo->virtio, index);

	echo->notified++;
	if (index == HOLD) {
		while (echo->held_count < HELD && virtq_pop(q, &echo->held[echo->held_count]) > 0)
			echo->held_count++;
		return;
	}
	if (echo->polls)
		virtq_want_kicks(q, false);
	do {
		while (virtq_pop(q, &echo->buffer) > 0)
			virtq_push(q, &echo->buffer, answer(&echo->buffer));
	} while (echo->polls && virtq_want_kicks(q, true));
	virtq_signal(q);
}

static bool echo_reset(void *device)
{
	struct echo *echo = device;

	echo->resets++;
	return !echo->defer_reset;
}

static const struct virtio_ops echo_ops = {
	.id = 63,
	.name = "echo",
	.features = echo_features,
	.queue_size = echo_queue_size,
	.config_bytes = sizeof((struct echo *)0)->config,
	.config_read = echo_config_read,
	.config_write = echo_config_write,
	.start = echo_start,
	.notify = echo_notify,
	.reset = echo_reset,
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	virtio_rig_init(&f->rig);
	const struct virtio_config config = {.ops = &echo_ops,
		.device = &f->echo,
		.memory = f->rig.memory,
		.lock = &f->rig.lock,
		.loop = f->rig.loop,
		.name = "echo0"};
	assert_int_equal(virtio_create(&config, &f->echo.virtio), 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	virtio_free(f->echo.virtio);
	virtq_buffer_free(&f->echo.buffer);
	for (unsigned i = 0; i < HELD; i++)
		virtq_buffer_free(&f->echo.held[i]);
	virtio_rig_done(&f->rig);
	free(f);
	return 0;
}

/* A driver of kind 0 to 7. */
static void start(struct fixture *f, unsigned kind)
{
	f->rig.packed = kind & 1;
	f->rig.event_index = kind & 2;
	f->rig.indirect = kind & 4;
	f->echo.held_count = 0;
	virtio_rig_start(&f->rig, f->echo.virtio, FEATURE_A);
	memset(f->rig.interrupts, 0, sizeof(f->rig.interrupts));
	f->rig.config_interrupts = 0;
}

#define KINDS 8

/* ---- what works ---- */

static void test_requests(void **state)
{
	struct fixture *f = *state;
	uint8_t out[1000], in[1000];

	for (unsigned kind = 0; kind < KINDS; kind++) {
		start(f, kind);
		for (unsigned i = 0; i < 700; i++) {
			const uint32_t size = 1 + i * 7 % 900, room = i % 3 ? size : size / 2 + 1;

			for (unsigned b = 0; b < size; b++)
				out[b] = (uint8_t)(i + b);
			const unsigned queue = i % 5 ? ECHO : 3;
			assert_int_equal(
				virtio_rig_request(&f->rig, queue, out, size, in, room), room);
			for (unsigned b = 0; b < room; b++)
				assert_int_equal(in[b], out[size - 1 - b]);
		}
		assert_int_equal(f->rig.interrupts[ECHO], 560);
		assert_int_equal(f->rig.interrupts[3], 140);
		assert_int_equal(f->rig.config_interrupts, 0);
	}
	assert_int_equal(f->echo.started, KINDS);
}

/* Chains of many parts of odd sizes: what arrives is what was sent. */
static void test_parts(void **state)
{
	struct fixture *f = *state;
	struct rig_part part[14];
	uint8_t sent[7 * 50], got[7 * 50];
	uint32_t written;

	for (unsigned kind = 0; kind < KINDS; kind++) {
		start(f, kind);
		for (unsigned round = 0; round < 200; round++) {
			unsigned bytes = 0;

			for (unsigned i = 0; i < 14; i++) {
				const uint32_t size = 1 + (round * 13 + i % 7 * 11) % 50;

				part[i] = (struct rig_part){
					virtio_rig_alloc(&f->rig, size), size, i >= 7};
				for (unsigned b = 0; i < 7 && b < size; b++, bytes++)
					sent[bytes] = *(uint8_t *)virtio_rig_at(&f->rig,
						part[i].gpa + b) = (uint8_t)(bytes * 5 + round);
			}
			const int id = virtio_rig_add(&f->rig, ECHO, part, 14);
			assert_true(id >= 0);
			virtio_rig_kick(&f->rig, ECHO);
			assert_true(virtio_rig_wait(&f->rig, ECHO));
			assert_int_equal(virtio_rig_used(&f->rig, ECHO, &written), id);
			assert_int_equal(written, bytes);
			for (unsigned i = 7, at = 0; i < 14; at += part[i++].bytes)
				memcpy(got + at, virtio_rig_at(&f->rig, part[i].gpa),
					part[i].bytes);
			for (unsigned b = 0; b < bytes; b++)
				assert_int_equal(got[b], sent[bytes - 1 - b]);
		}
	}
}

/* The queue filled to the brim, and given back in another order. */
static void test_out_of_order(void **state)
{
	struct fixture *f = *state;
	uint32_t written;

	for (unsigned kind = 0; kind < KINDS; kind++) {
		start(f, kind);
		struct virtq *q = virtio_queue(f->echo.virtio, HOLD);
		const struct rig_part part[2] = {{virtio_rig_alloc(&f->rig, 8), 8, false},
			{virtio_rig_alloc(&f->rig, 8), 8, true}};
		const unsigned chains = f->rig.indirect ? 256 : 128;

		for (unsigned round = 0; round < 5; round++) {
			bool back[256] = {false};
			unsigned count = 0;

			for (unsigned i = 0; i < chains; i++)
				assert_true(virtio_rig_add(&f->rig, HOLD, part, 2) >= 0);
			assert_int_equal(virtio_rig_add(&f->rig, HOLD, part, 2), -1);
			virtio_rig_kick(&f->rig, HOLD);
			virtio_rig_run(&f->rig);
			assert_int_equal(f->echo.held_count, chains);
			pthread_mutex_lock(&f->rig.lock);
			for (unsigned i = 0; i < chains; i++)
				virtq_push(q, &f->echo.held[(i * 37 + round) % chains], i % 9);
			virtq_signal(q);
			pthread_mutex_unlock(&f->rig.lock);
			f->echo.held_count = 0;
			for (int id; (id = virtio_rig_used(&f->rig, HOLD, &written)) >= 0;
				count++) {
				assert_false(back[id]);
				assert_int_equal(written, count % 9);
				back[id] = true;
			}
			assert_int_equal(count, chains);
			assert_int_equal(f->rig.interrupts[HOLD], round + 1);
		}
	}
}

static void test_unpop(void **state)
{
	struct fixture *f = *state;
	uint32_t written;

	for (unsigned kind = 0; kind < KINDS; kind++) {
		start(f, kind);
		struct virtq *q = virtio_queue(f->echo.virtio, HOLD);
		const struct rig_part part[3] = {{virtio_rig_alloc(&f->rig, 8), 8, false},
			{virtio_rig_alloc(&f->rig, 8), 8, false},
			{virtio_rig_alloc(&f->rig, 8), 8, true}};

		for (unsigned i = 0; i < 500; i++) {
			int id = virtio_rig_add(&f->rig, HOLD, part, 3);

			pthread_mutex_lock(&f->rig.lock);
			assert_int_equal(virtq_pop(q, &f->echo.held[0]), 1);
			virtq_unpop(q, &f->echo.held[0]);
			assert_int_equal(virtq_pop(q, &f->echo.held[1]), 1);
			assert_int_equal(f->echo.held[1].out_count, 2);
			assert_int_equal(virtq_pop(q, &f->echo.held[0]), 0);
			virtq_push(q, &f->echo.held[1], 0);
			pthread_mutex_unlock(&f->rig.lock);
			assert_int_equal(virtio_rig_used(&f->rig, HOLD, &written), id);
		}
	}
}

/* Several at once, over the end of the ring too: the driver sees all or none. */
static void test_push_all(void **state)
{
	struct fixture *f = *state;
	uint32_t written;

	for (unsigned kind = 0; kind < KINDS; kind++) {
		start(f, kind);
		struct virtq *q = virtio_queue(f->echo.virtio, HOLD);
		const struct rig_part part[2] = { { virtio_rig_alloc(&f->rig, 8), 8, false },
			{ virtio_rig_alloc(&f->rig, 8), 8, true } };
		struct virtq_buffer *buffers[3] = { &f->echo.held[0], &f->echo.held[1],
			&f->echo.held[2] };
		const uint32_t bytes[3] = { 3, 0, 8 };

		for (unsigned round = 0; round < 200; round++) {
			int id[3];

			for (unsigned i = 0; i < 3; i++)
				id[i] = virtio_rig_add(&f->rig, HOLD, part, 2);
			pthread_mutex_lock(&f->rig.lock);
			for (unsigned i = 0; i < 3; i++)
				assert_int_equal(virtq_pop(q, buffers[i]), 1);
			virtq_unpop(q, buffers[2]);
			virtq_unpop(q, buffers[1]);
			assert_int_equal(virtq_pop(q, buffers[1]), 1);
			assert_int_equal(virtq_pop(q, buffers[2]), 1);
			virtq_push_all(q, buffers, bytes, 0);
			assert_false(rig_has_used(&f->rig, &f->rig.queue[HOLD]));
			virtq_push_all(q, buffers, bytes, 3);
			virtq_signal(q);
			pthread_mutex_unlock(&f->rig.lock);
			for (unsigned i = 0; i < 3; i++) {
				assert_int_equal(virtio_rig_used(&f->rig, HOLD, &written), id[i]);
				assert_int_equal(written, bytes[i]);
			}
			assert_int_equal(f->rig.interrupts[HOLD], round + 1);
		}
	}
}

/* Without bus mastering the queues rest; with it again they are looked at. */
static void test_master(void **state)
{
	struct fixture *f = *state;

	start(f, 0);
	const struct rig_part part[2] = { { virtio_rig_alloc(&f->rig, 8), 8, false },
		{ virtio_rig_alloc(&f->rig, 8), 8, true } };
	pthread_mutex_lock(&f->rig.lock);
	virtio_set_master(f->echo.virtio, false);
	pthread_mutex_unlock(&f->rig.lock);
	virtio_rig_add(&f->rig, ECHO, part, 2);
	virtio_rig_kick(&f->rig, ECHO);
	virtio_rig_run(&f->rig);
	assert_false(rig_has_used(&f->rig, &f->rig.queue[ECHO]));
	pthread_mutex_lock(&f->rig.lock);
	virtio_set_master(f->echo.virtio, true);
	pthread_mutex_unlock(&f->rig.lock);
	virtio_rig_run(&f->rig);
	assert_true(rig_has_used(&f->rig, &f->rig.queue[ECHO]));
}

/* What is given back meanwhile the driver gets when there is bus mastering again; what is put back is there again. */
static void test_held_without_master(void **state)
{
	struct fixture *f = *state;
	const uint32_t bytes[2] = { 8, 0 };
	uint32_t written;
	int id[4];

	for (unsigned kind = 0; kind < KINDS; kind++) {
		start(f, kind);
		struct virtq *q = virtio_queue(f->echo.virtio, HOLD);
		const struct rig_part part[2] = { { virtio_rig_alloc(&f->rig, 8), 8, false },
			{ virtio_rig_alloc(&f->rig, 8), 8, true } };
		struct virtq_buffer *held = f->echo.held, *both[2] = { &held[1], &held[2] };
		for (unsigned i = 0; i < 4; i++)
			id[i] = virtio_rig_add(&f->rig, HOLD, part, 2);
		pthread_mutex_lock(&f->rig.lock);
		for (unsigned i = 0; i < 4; i++)
			assert_int_equal(virtq_pop(q, &held[i]), 1);
		virtio_set_master(f->echo.virtio, false);
		virtq_unpop(q, &held[3]);
		virtq_push(q, &held[0], 5);
		virtq_push_all(q, both, bytes, 2);
		virtq_signal(q);
		assert_int_equal(virtq_pop(q, &held[3]), 0);
		assert_false(rig_has_used(&f->rig, &f->rig.queue[HOLD]));
		assert_int_equal(f->rig.interrupts[HOLD], 0);
		virtio_set_master(f->echo.virtio, true);
		assert_int_equal(f->rig.interrupts[HOLD], 1);
		for (unsigned i = 0; i < 3; i++) {
			assert_int_equal(virtio_rig_used(&f->rig, HOLD, &written), id[i]);
			assert_int_equal(written, i == 0 ? 5 : bytes[i - 1]);
		}
		assert_int_equal(virtq_pop(q, &held[3]), 1);
		/* A reset forgets it. */
		virtio_set_master(f->echo.virtio, false);
		virtq_push(q, &held[3], 1);
		virtio_set_status(f->echo.virtio, 0);
		virtio_set_master(f->echo.virtio, true);
		assert_false(rig_has_used(&f->rig, &f->rig.queue[HOLD]));
		pthread_mutex_unlock(&f->rig.lock);
	}
}

/* ---- interrupts and kicks that are not wanted ---- */

static void test_no_interrupts(void **state)
{
	struct fixture *f = *state;
	uint8_t byte = 1;

	for (unsigned kind = 0; kind < KINDS; kind++) {
		start(f, kind);
		virtio_rig_want_interrupts(&f->rig, ECHO, false);
		for (unsigned i = 0; i < 600; i++)
			virtio_rig_request(&f->rig, ECHO, &byte, 1, &byte, 1);
		assert_int_equal(f->rig.interrupts[ECHO], 0);
		virtio_rig_want_interrupts(&f->rig, ECHO, true);
		virtio_rig_request(&f->rig, ECHO, &byte, 1, &byte, 1);
		assert_int_equal(f->rig.interrupts[ECHO], 1);
	}
}

/* With event indexes a driver asks for an interrupt after the fifth chain of eight. */
static void test_event_index(void **state)
{
	struct fixture *f = *state;
	uint32_t written;

	for (unsigned packed = 0; packed < 2; packed++) {
		start(f, 2 | packed);
		struct rig_queue *rq = &f->rig.queue[HOLD];
		struct virtq *q = virtio_queue(f->echo.virtio, HOLD);
		const struct rig_part part = {virtio_rig_alloc(&f->rig, 8), 8, false};
		unsigned before = 0;

		virtio_rig_want_interrupts(&f->rig, HOLD, true);
		for (unsigned round = 0; round < 100; round++) { /* round the ring more than once */
			for (unsigned i = 0; i < 8; i++)
				assert_true(virtio_rig_add(&f->rig, HOLD, &part, 1) >= 0);
			unsigned at = rq->next_used + 4u, wrap = rq->used_wrap;
			if (packed && at >= 256)
				at -= 256, wrap = !wrap;
			if (packed)
				*rig_u16(&f->rig, rq->driver) = (uint16_t)(at | wrap << 15);
			else
				*rig_u16(&f->rig, rq->driver + 4 + 2 * 256) = (uint16_t)at;
			virtio_rig_kick(&f->rig, HOLD);
			virtio_rig_run(&f->rig);
			pthread_mutex_lock(&f->rig.lock);
			for (unsigned i = 0; i < 8; i++) {
				virtq_push(q, &f->echo.held[i], 0);
				virtq_signal(q);
				virtq_signal(q);
				assert_int_equal(f->rig.interrupts[HOLD] - before, i >= 4);
			}
			pthread_mutex_unlock(&f->rig.lock);
			before = f->rig.interrupts[HOLD];
			f->echo.held_count = 0;
			for (unsigned i = 0; i < 8; i++)
				assert_true(virtio_rig_used(&f->rig, HOLD, &written) >= 0);
		}
	}
}

/* While a device polls, no kicks come; none is lost when it stops. */
static void test_kicks(void **state)
{
	struct fixture *f = *state;
	uint8_t byte = 1;

	for (unsigned kind = 0; kind < KINDS; kind++) {
		start(f, kind);
		struct virtq *q = virtio_queue(f->echo.virtio, HOLD);
		const struct rig_part part = {virtio_rig_alloc(&f->rig, 8), 8, false};

		pthread_mutex_lock(&f->rig.lock);
		assert_false(virtq_want_kicks(q, false));
		pthread_mutex_unlock(&f->rig.lock);
		for (unsigned i = 0; i < 5; i++) {
			virtio_rig_add(&f->rig, HOLD, &part, 1);
			/* Event indexes of split rings say no only by an index of the past. */
			if (i || kind & 1 || !(kind & 2))
				assert_false(virtio_rig_kick(&f->rig, HOLD));
			else
				f->rig.queue[HOLD].added = 0;
		}
		pthread_mutex_lock(&f->rig.lock);
		assert_int_equal(virtq_pop(q, &f->echo.held[0]), 1);
		assert_true(virtq_want_kicks(q, true)); /* four are left */
		for (unsigned i = 1; i < 5; i++)
			assert_int_equal(virtq_pop(q, &f->echo.held[i]), 1);
		assert_int_equal(virtq_pop(q, &f->echo.held[5]), 0);
		pthread_mutex_unlock(&f->rig.lock);
		virtio_rig_add(&f->rig, HOLD, &part, 1);
		assert_true(virtio_rig_kick(&f->rig, HOLD));

		f->echo.polls = true;
		for (unsigned i = 0; i < 600; i++)
			virtio_rig_request(&f->rig, ECHO, &byte, 1, &byte, 1);
		f->echo.polls = false;
	}
}

/* What was made available before DRIVER_OK is seen without another kick. */
static void test_early(void **state)
{
	struct fixture *f = *state;
	struct virtio_rig *rig = &f->rig;

	virtio_rig_agree(rig, f->echo.virtio, 0);
	pthread_mutex_lock(&rig->lock);
	rig_start_queue(rig, ECHO);
	pthread_mutex_unlock(&rig->lock);
	const struct rig_part part[2] = {
		{virtio_rig_alloc(rig, 8), 8, false}, {virtio_rig_alloc(rig, 8), 8, true}};
	virtio_rig_add(rig, ECHO, part, 2);
	virtio_rig_kick(rig, ECHO);
	virtio_rig_run(rig);
	assert_int_equal(f->echo.notified, 0);
	assert_false(rig_has_used(rig, &rig->queue[ECHO]));
	virtio_rig_set_status(rig, 15);
	virtio_rig_run(rig);
	assert_true(rig_has_used(rig, &rig->queue[ECHO]));
}

/* ---- life ---- */

static void set_features(struct fixture *f, uint64_t features)
{
	virtio_set_features_driver(f->echo.virtio, 0, (uint32_t)features);
	virtio_set_features_driver(f->echo.virtio, 1, (uint32_t)(features >> 32));
	virtio_set_features_driver(f->echo.virtio, 2, ~0u);
}

static void test_features(void **state)
{
	static const struct {
		uint64_t features;
		bool ok;
	} cases[] = {
		{VIRTIO_F_VERSION_1, true},
		{VIRTIO_F_VERSION_1 | FEATURE_A | FEATURE_B | VIRTIO_F_RING_PACKED, true},
		{FEATURE_A, false},		       /* legacy */
		{VIRTIO_F_VERSION_1 | BIT(4), false},  /* not offered */
		{VIRTIO_F_VERSION_1 | BIT(33), false}, /* not the device's to offer */
		{~0ull, false},
	};
	struct fixture *f = *state;
	struct virtio_device *v = f->echo.virtio;

	AUTO_LOCK(&f->rig.lock);
	assert_true(
		virtio_features_offered(v) == (FEATURE_A | FEATURE_B | 3ull << 28 | 5ull << 32));
	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		virtio_set_status(v, 0);
		virtio_set_status(v, 3);
		set_features(f, cases[i].features);
		virtio_set_status(v, 11);
		assert_int_equal(virtio_status(v), cases[i].ok ? 11 : 3);
		if (!cases[i].ok)
			continue;
		assert_true(virtio_features(v) == cases[i].features);
		set_features(f, 0); /* too late */
		assert_true(virtio_features(v) == cases[i].features);
		assert_int_equal(virtio_features_driver(v, 0), (uint32_t)cases[i].features);
		assert_int_equal(virtio_features_driver(v, 7), 0);
	}
}

static void test_status(void **state)
{
	struct fixture *f = *state;
	struct virtio_device *v = f->echo.virtio;

	AUTO_LOCK(&f->rig.lock);
	virtio_set_status(v, 7); /* DRIVER_OK with no features */
	assert_int_equal(virtio_status(v), 7 | VIRTIO_STATUS_NEEDS_RESET);
	assert_false(virtio_live(v));
	virtio_set_status(v, 0);
	assert_int_equal(virtio_status(v), 0);
	virtio_queue_enable(v, 0); /* before features */
	assert_int_equal(virtio_status(v), VIRTIO_STATUS_NEEDS_RESET);
	virtio_set_status(v, 0);
	virtio_set_status(v, VIRTIO_STATUS_NEEDS_RESET | 1); /* not the driver's to set */
	assert_int_equal(virtio_status(v), 1);
	set_features(f, VIRTIO_F_VERSION_1);
	virtio_set_status(v, 15);
	assert_true(virtio_live(v));
	assert_int_equal(f->echo.started, 1);
	virtio_set_status(v, 1); /* nothing is taken away but by a reset */
	assert_int_equal(virtio_status(v), 15);
	virtio_set_status(v, 143);
	assert_int_equal(virtio_status(v), 143);
	assert_false(virtio_live(v));
	assert_int_equal(f->echo.started, 1);
	virtio_queue_enable(v, 99);
	virtio_kick(v, 99);
	virtio_kick(v, 2);
	assert_null(virtio_queue(v, 2));
	assert_null(virtio_queue(v, 4));
	assert_int_equal(virtio_queue_eventfd(v, 2), -1);
	assert_int_equal(virtio_queue_count(v), QUEUES);
}

static void test_config(void **state)
{
	struct fixture *f = *state;
	struct virtio_device *v = f->echo.virtio;

	start(f, 0);
	AUTO_LOCK(&f->rig.lock);
	virtio_config_write(v, 0, 4, 0x44332211);
	virtio_config_write(v, 3, 8, 0xccbbaa9988776655);
	virtio_config_write(v, 4, 8, 0);  /* ends past it */
	virtio_config_write(v, 11, 1, 0); /* starts past it */
	virtio_config_write(v, UINT64_MAX, 2, 0);
	assert_true(virtio_config_read(v, 0, 8) == 0x9988776655332211);
	assert_true(virtio_config_read(v, 8, 8) == 0xccbbaa);
	assert_true(virtio_config_read(v, 10, 1) == 0xcc);
	assert_true(virtio_config_read(v, 11, 4) == 0);
	assert_true(virtio_config_read(v, UINT64_MAX - 1, 8) == 0);
	const uint32_t generation = virtio_config_generation(v);
	virtio_config_changed(v);
	assert_true(virtio_config_generation(v) != generation);
	assert_int_equal(f->rig.config_interrupts, 1);
	virtio_set_status(v, 0);
	virtio_config_changed(v);
	assert_int_equal(f->rig.config_interrupts, 1);
}

/* Of a device that puts it off though the status is 0: the driver sees that it has to wait, and is heard then. */
static void test_reset_from_0(void **state)
{
	struct fixture *f = *state;
	struct virtio_device *v = f->echo.virtio;

	AUTO_LOCK(&f->rig.lock);
	f->echo.defer_reset = true;
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(virtio_status(v), 0);
		virtio_set_status(v, 0);
		assert_int_not_equal(virtio_status(v), 0);
		virtio_reset_done(v);
		assert_int_equal(virtio_status(v), 0);
	}
	virtio_set_status(v, VIRTIO_STATUS_DRIVER);
	assert_int_equal(virtio_status(v), VIRTIO_STATUS_DRIVER);
}

/* A reset while chains are under way, done at once or later: they are gone, and the next life starts clean. */
static void test_reset(void **state)
{
	struct fixture *f = *state;
	struct virtio_device *v = f->echo.virtio;

	for (unsigned kind = 0; kind < 2 * KINDS; kind++) {
		start(f, kind % KINDS);
		const struct rig_part part = {virtio_rig_alloc(&f->rig, 8), 8, true};
		for (unsigned i = 0; i < 3; i++)
			virtio_rig_add(&f->rig, HOLD, &part, 1);
		virtio_rig_kick(&f->rig, HOLD);
		virtio_rig_run(&f->rig);
		assert_int_equal(f->echo.held_count, 3);
		f->echo.defer_reset = kind >= KINDS;
		virtio_rig_set_status(&f->rig, 0);
		pthread_mutex_lock(&f->rig.lock);
		assert_false(virtio_live(v));
		if (f->echo.defer_reset) {
			assert_int_equal(virtio_status(v), 15);
			virtio_set_status(v, 15); /* not heard */
			virtio_set_status(v, 0);
			virtq_push(virtio_queue(v, HOLD), &f->echo.held[0], 8);
			virtio_reset_done(v);
			f->echo.defer_reset = false;
		}
		assert_int_equal(virtio_status(v), 0);
		assert_false(virtq_is_enabled(virtio_queue(v, HOLD)));
		pthread_mutex_unlock(&f->rig.lock);
		start(f, kind % KINDS);
		pthread_mutex_lock(&f->rig.lock);
		/* What is left of the former life. */
		virtq_push(virtio_queue(v, HOLD), &f->echo.held[1], 8);
		virtq_unpop(virtio_queue(v, HOLD), &f->echo.held[2]);
		virtq_signal(virtio_queue(v, HOLD));
		pthread_mutex_unlock(&f->rig.lock);
		assert_false(rig_has_used(&f->rig, &f->rig.queue[HOLD]));
		assert_int_equal(f->rig.interrupts[HOLD], 0);
		assert_int_equal(virtio_rig_status(&f->rig), 15);
		uint8_t byte = 5;
		assert_int_equal(virtio_rig_request(&f->rig, ECHO, &byte, 1, &byte, 1), 1);
	}
}

/* Pages that the device wrote, and only those, are marked for a migration. */
static void test_dirty(void **state)
{
	struct fixture *f = *state;
	uint8_t out[GUEST_PAGE_SIZE] = {1};
	uint64_t marks[RIG_MEMORY_BYTES / GUEST_PAGE_SIZE / 64];

	for (unsigned kind = 0; kind < KINDS; kind++) {
		start(f, kind);
		assert_int_equal(memory_dirty_start(f->rig.memory), 0);
		f->rig.next_data = MIB(8);
		struct rig_part part[2] = {{MIB(8), 4096, false}, {MIB(9) + 100, 4096, true}};
		memcpy(virtio_rig_at(&f->rig, MIB(8)), out, sizeof(out));
		virtio_rig_add(&f->rig, ECHO, part, 2);
		virtio_kick(f->echo.virtio, ECHO);
		assert_true(virtio_rig_wait(&f->rig, ECHO));
		memory_dirty_fetch(f->rig.memory, 0, marks);
		for (gpa_t page = MIB(5); page < MIB(16); page += GUEST_PAGE_SIZE) {
			const bool dirty = marks[page >> 18] >> (page >> 12 & 63) & 1;
			assert_int_equal(dirty, page == MIB(9) || page == MIB(9) + 4096);
		}
		const gpa_t ring = f->rig.packed ? RIG_RINGS_GPA : RIG_RINGS_GPA + 0xa000;
		assert_true(marks[ring >> 18] >> (ring >> 12 & 63) & 1);
		memory_dirty_stop(f->rig.memory);
	}
}

/* One buffer in two regions that meet. */
static void test_two_regions(void **state)
{
	struct fixture *f = *state;
	uint8_t out[64], in[64];
	uint32_t written;

	assert_int_equal(
		memory_add_ram(f->rig.memory, RIG_MEMORY_BYTES, 65536, 0, "more", NULL), 0);
	for (unsigned kind = 0; kind < KINDS; kind++) {
		start(f, kind);
		const struct rig_part part[2] = {{RIG_MEMORY_BYTES - 20, 64, false},
			{RIG_MEMORY_BYTES + 100 - 200, 64, true}};
		for (unsigned i = 0; i < 64; i++)
			out[i] = (uint8_t)(i + kind);
		assert_int_equal(memory_write(f->rig.memory, part[0].gpa, out, 64), 0);
		virtio_rig_add(&f->rig, ECHO, part, 2);
		virtio_rig_kick(&f->rig, ECHO);
		assert_true(virtio_rig_wait(&f->rig, ECHO));
		assert_true(virtio_rig_used(&f->rig, ECHO, &written) >= 0);
		assert_int_equal(written, 64);
		assert_int_equal(memory_read(f->rig.memory, part[1].gpa, in, 64), 0);
		for (unsigned i = 0; i < 64; i++)
			assert_int_equal(in[i], out[63 - i]);
	}
}

/* ---- a driver that breaks the rules ---- */

/* The device failed, said so, gives nothing more; and works again after a reset. */
static void expect_failure(struct fixture *f, unsigned kind)
{
	uint8_t byte = 7;

	virtio_rig_run(&f->rig);
	assert_int_equal(virtio_rig_status(&f->rig), 15 | VIRTIO_STATUS_NEEDS_RESET);
	assert_int_equal(f->rig.config_interrupts, 1);
	pthread_mutex_lock(&f->rig.lock);
	assert_int_equal(virtq_pop(virtio_queue(f->echo.virtio, ECHO), &f->echo.buffer), 0);
	assert_false(virtq_want_kicks(virtio_queue(f->echo.virtio, ECHO), true));
	pthread_mutex_unlock(&f->rig.lock);
	start(f, kind);
	assert_int_equal(virtio_rig_request(&f->rig, ECHO, &byte, 1, &byte, 1), 1);
}

#define NOWHERE 0xfee00000ull

/* Chains whose parts are wrong, directly or in a table. */
static void test_bad_parts(void **state)
{
	static const struct rig_part bad[][2] = {
		{{NOWHERE, 8, false}, {MIB(6), 8, true}},
		{{MIB(6), 8, false}, {NOWHERE, 8, true}},
		{{MIB(6), 8, true}, {MIB(7), 8, false}}, /* write, then read */
		{{MIB(6), 0, false}, {MIB(7), 8, true}},
		{{MIB(6), 8, false}, {MIB(7), 0, true}},
		{{RIG_MEMORY_BYTES - 8, 16, false}, {MIB(7), 8, true}},
		{{MIB(6), UINT32_MAX, false}, {MIB(7), 8, true}},
		{{MIB(6), 8, false}, {UINT64_MAX - 4, 8, true}},
		{{UINT64_MAX, 1, false}, {MIB(7), 8, true}},
	};
	struct fixture *f = *state;

	for (unsigned kind = 0; kind < KINDS; kind++)
		for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
			start(f, kind);
			virtio_rig_add(&f->rig, ECHO, bad[i], 2);
			virtio_rig_kick(&f->rig, ECHO);
			expect_failure(f, kind);
		}
}

/* Flags of the first descriptor of a chain of two, and where its link goes. */
static void test_bad_links(void **state)
{
	static const struct {
		uint16_t flags, next;
	} split[] = {
		{1, 0},			 /* itself */
		{1, 256},		 /* past the end */
		{1, 0xffff}, {4 | 1, 1}, /* a table and more */
	};
	struct fixture *f = *state;
	const struct rig_part part[2] = {{MIB(6), 16, false}, {MIB(7), 16, true}};

	for (unsigned i = 0; i < ARRAY_SIZE(split); i++) {
		start(f, 4);
		f->rig.indirect = false; /* agreed on, not used */
		const int id = virtio_rig_add(&f->rig, ECHO, part, 2);
		rig_set_descriptor(&f->rig, f->rig.queue[ECHO].desc, (unsigned)id, MIB(6), 16,
			split[i].flags, split[i].next);
		virtio_rig_kick(&f->rig, ECHO);
		expect_failure(f, 4);
	}
	/* A link back, from the second one. */
	start(f, 0);
	const int id = virtio_rig_add(&f->rig, ECHO, part, 1);
	rig_set_descriptor(&f->rig, f->rig.queue[ECHO].desc, (unsigned)id, MIB(6), 16, 1, 5);
	rig_set_descriptor(&f->rig, f->rig.queue[ECHO].desc, 5, MIB(6), 16, 1, (uint16_t)id);
	virtio_rig_kick(&f->rig, ECHO);
	expect_failure(f, 0);
	/* Packed: a chain that goes on for ever; a table behind a descriptor; a table with more behind. */
	static const uint16_t packed[][2] = {{1, 1}, {1, 4}, {5, 0}};
	for (unsigned i = 0; i < ARRAY_SIZE(packed); i++) {
		start(f, 5);
		for (unsigned d = 0; d < 256; d++)
			rig_set_descriptor(&f->rig, f->rig.queue[ECHO].desc, d, MIB(6), 16, 0,
				0x80 | (d ? packed[i][1] : packed[i][0]));
		virtio_kick(f->echo.virtio, ECHO);
		expect_failure(f, 5);
	}
}

static void test_bad_rings(void **state)
{
	struct fixture *f = *state;
	struct rig_queue *q = &f->rig.queue[ECHO];

	start(f, 0);
	*rig_u16(&f->rig, q->driver + 2) = 257; /* more than fit */
	virtio_kick(f->echo.virtio, ECHO);
	expect_failure(f, 0);
	start(f, 0);
	*rig_u16(&f->rig, q->driver + 2) = 0xffff; /* less than before */
	virtio_kick(f->echo.virtio, ECHO);
	expect_failure(f, 0);
	start(f, 0);
	*rig_u16(&f->rig, q->driver + 4) = 256; /* no such descriptor */
	*rig_u16(&f->rig, q->driver + 2) = 1;
	virtio_kick(f->echo.virtio, ECHO);
	expect_failure(f, 0);
	/* The same chains again and again while they are under way. */
	for (unsigned kind = 0; kind < 2; kind++) {
		start(f, kind);
		q = &f->rig.queue[HOLD];
		for (unsigned i = 0; i < 300; i++) {
			rig_set_descriptor(
				&f->rig, q->desc, i % 256, MIB(6), 16, 0, i < 256 ? 0x80 : 0x8000);
			if (!kind)
				*rig_u16(&f->rig, q->driver + 2) = (uint16_t)(i + 1);
			virtio_kick(f->echo.virtio, HOLD);
			virtio_rig_run(&f->rig);
		}
		assert_int_equal(f->echo.held_count, 256);
		expect_failure(f, kind);
	}
}

/* Tables: of no size, of an odd one, outside, in tables, with loops, too long, not agreed on. */
static void test_bad_tables(void **state)
{
	static const struct {
		gpa_t gpa;
		uint32_t bytes;
		uint16_t flags, next; /* of each entry */
		bool fine;
	} cases[] = {
		{MIB(6), 0, 0, 0, false}, {MIB(6), 24, 0, 0, false}, {NOWHERE, 32, 0, 0, false},
		{RIG_MEMORY_BYTES - 16, 32, 1, 1, false}, {UINT64_MAX - 15, 32, 1, 1, false},
		{MIB(6), 32, 4, 0, false}, {MIB(6), 32, 1, 0, false}, {MIB(6), 32, 1, 2, false},
		{MIB(6), 16 * 1025, 1, 0, false}, {MIB(6), 0xfffffff0, 1, 0, false},
		{MIB(6), 32, 0, 0, true},
		{MIB(6) + 4, 16, 0, 0, true}, /* alignment is not asked for */
	};
	struct fixture *f = *state;

	for (unsigned kind = 0; kind < KINDS; kind++)
		for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
			/* In packed tables there are no links. */
			if (kind & 1 && cases[i].flags == 1 && cases[i].bytes == 32 &&
				cases[i].gpa == MIB(6))
				continue;
			start(f, kind);
			for (unsigned e = 0; e < 1025; e++)
				rig_set_descriptor(&f->rig,
					cases[i].gpa == MIB(6) + 4 ? MIB(6) + 4 : MIB(6), e, MIB(7),
					8, kind & 1 ? 0 : cases[i].flags,
					kind & 1 ? cases[i].flags : cases[i].next);
			rig_set_descriptor(&f->rig, RIG_MEMORY_BYTES - 16, 0, MIB(7), 8, 1, 1);
			if (kind & 1)
				rig_set_descriptor(&f->rig, f->rig.queue[ECHO].desc, 0,
					cases[i].gpa, cases[i].bytes, 0, 0x80 | 4);
			else
				rig_set_descriptor(&f->rig, f->rig.queue[ECHO].desc, 0,
					cases[i].gpa, cases[i].bytes, 4, 0);
			if (!(kind & 1))
				*rig_u16(&f->rig, f->rig.queue[ECHO].driver + 2) = 1;
			virtio_kick(f->echo.virtio, ECHO);
			if (!cases[i].fine || !f->rig.indirect) {
				expect_failure(f, kind);
				continue;
			}
			virtio_rig_run(&f->rig);
			assert_int_equal(virtio_rig_status(&f->rig), 15);
			assert_true(rig_has_used(
				&f->rig, &(struct rig_queue){.device = f->rig.queue[ECHO].device,
						 .desc = f->rig.queue[ECHO].desc,
						 .used_wrap = true}));
		}
}

/* A chain of the largest number of elements is one too short to fail. */
static void test_longest_table(void **state)
{
	struct fixture *f = *state;

	for (unsigned packed = 0; packed < 2; packed++)
		for (unsigned count = VIRTIO_IOV_MAX; count <= VIRTIO_IOV_MAX + 1; count++) {
			start(f, 4 | packed);
			for (unsigned e = 0; e < count; e++)
				rig_set_descriptor(&f->rig, MIB(6), e, MIB(7), 8,
					!packed && e + 1 < count, packed ? 0 : (uint16_t)(e + 1));
			rig_set_descriptor(&f->rig, f->rig.queue[HOLD].desc, 0, MIB(6), 16 * count,
				packed ? 0 : 4, packed ? 0x84 : 0);
			if (!packed)
				*rig_u16(&f->rig, f->rig.queue[HOLD].driver + 2) = 1;
			virtio_kick(f->echo.virtio, HOLD);
			if (count > VIRTIO_IOV_MAX) {
				expect_failure(f, 4 | packed);
				continue;
			}
			virtio_rig_run(&f->rig);
			assert_int_equal(f->echo.held_count, 1);
			assert_int_equal(f->echo.held[0].out_count, VIRTIO_IOV_MAX);
			assert_int_equal(f->echo.held[0].out_bytes, 8 * VIRTIO_IOV_MAX);
		}
}

/* Queues that cannot be. */
static void test_bad_setup(void **state)
{
	static const struct {
		uint16_t size;
		gpa_t desc, driver, device;
		bool split, packed; /* is it fine? */
	} cases[] = {
		{256, MIB(6), MIB(7), MIB(8), true, true},
		{0, MIB(6), MIB(7), MIB(8), false, false},
		{512, MIB(6), MIB(7), MIB(8), false, false},
		{100, MIB(6), MIB(7), MIB(8), false, true},
		{256, MIB(6) + 8, MIB(7), MIB(8), false, false},
		{256, MIB(6), MIB(7) + 1, MIB(8), false, false},
		{256, MIB(6), MIB(7) + 2, MIB(8), true, false},
		{256, MIB(6), MIB(7), MIB(8) + 2, false, false},
		{256, NOWHERE, MIB(7), MIB(8), false, false},
		{256, MIB(6), NOWHERE, MIB(8), false, false},
		{256, MIB(6), MIB(7), NOWHERE, false, false},
		{256, RIG_MEMORY_BYTES - 16, MIB(7), MIB(8), false, false},
		{256, UINT64_MAX - 15, MIB(7), MIB(8), false, false},
	};
	struct fixture *f = *state;
	struct virtio_device *v = f->echo.virtio;

	for (unsigned packed = 0; packed < 2; packed++)
		for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
			f->rig.packed = packed;
			virtio_rig_agree(&f->rig, v, 0);
			AUTO_LOCK(&f->rig.lock);
			struct virtq_setup *setup = virtio_queue_setup(v, ECHO);
			assert_int_equal(setup->size, 256);
			setup->size = cases[i].size;
			setup->desc = cases[i].desc;
			setup->driver = cases[i].driver;
			setup->device = cases[i].device;
			virtio_queue_enable(v, ECHO);
			const bool fine = packed ? cases[i].packed : cases[i].split;
			assert_int_equal(setup->enabled, fine);
			assert_int_equal(!(virtio_status(v) & VIRTIO_STATUS_NEEDS_RESET), fine);
			virtio_set_status(v, virtio_status(v) | 4);
			assert_int_equal(virtio_live(v), fine);
		}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_requests, setup, teardown),
		cmocka_unit_test_setup_teardown(test_parts, setup, teardown),
		cmocka_unit_test_setup_teardown(test_out_of_order, setup, teardown),
		cmocka_unit_test_setup_teardown(test_unpop, setup, teardown),
		cmocka_unit_test_setup_teardown(test_push_all, setup, teardown),
		cmocka_unit_test_setup_teardown(test_master, setup, teardown),
		cmocka_unit_test_setup_teardown(test_held_without_master, setup, teardown),
		cmocka_unit_test_setup_teardown(test_no_interrupts, setup, teardown),
		cmocka_unit_test_setup_teardown(test_event_index, setup, teardown),
		cmocka_unit_test_setup_teardown(test_kicks, setup, teardown),
		cmocka_unit_test_setup_teardown(test_early, setup, teardown),
		cmocka_unit_test_setup_teardown(test_features, setup, teardown),
		cmocka_unit_test_setup_teardown(test_status, setup, teardown),
		cmocka_unit_test_setup_teardown(test_config, setup, teardown),
		cmocka_unit_test_setup_teardown(test_reset_from_0, setup, teardown),
		cmocka_unit_test_setup_teardown(test_reset, setup, teardown),
		cmocka_unit_test_setup_teardown(test_dirty, setup, teardown),
		cmocka_unit_test_setup_teardown(test_two_regions, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bad_parts, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bad_links, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bad_rings, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bad_tables, setup, teardown),
		cmocka_unit_test_setup_teardown(test_longest_table, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bad_setup, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
