/*
 * virtio balloon: pages given and taken, the target, statistics, free-page reports and hints; and lies about all of
 * that.
 */
#include "tests/device/virtio_rig.h"

#include <errno.h>
#include <sys/mman.h>

#include "base/bytes.h"
#include "device/virtio/balloon.h"

#define F_ALL	 (BIT(1) | BIT(2) | BIT(3) | BIT(5))
#define F_POISON BIT(4)
#define INFLATE	 0
#define DEFLATE	 1
#define STATS	 2
#define HINTS	 3
#define REPORTS	 4
#define PAGES	 MIB(8) /* where the test gives pages from */

struct fixture {
	struct virtio_rig rig;
	struct virtio_balloon *balloon;
	unsigned hinted, ended;
	gpa_t hint_gpa;
	uint64_t hint_bytes;
	int hint_status;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	virtio_rig_init(&f->rig);
	const struct virtio_balloon_config config = {.wiring = {.memory = f->rig.memory,
							     .lock = &f->rig.lock,
							     .loop = f->rig.loop,
							     .name = "balloon"},
		.target_bytes = MIB(3) + 17};
	assert_int_equal(virtio_balloon_create(&config, &f->balloon), 0);
	memset(virtio_rig_at(&f->rig, PAGES), 'x', MIB(4));
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	virtio_balloon_free(f->balloon);
	virtio_rig_done(&f->rig);
	free(f);
	return 0;
}

static void begin(struct fixture *f, uint64_t features)
{
	virtio_rig_start(&f->rig, virtio_balloon_device(f->balloon), features);
}

static uint64_t config_at(struct fixture *f, uint64_t offset)
{
	return virtio_config_read(f->rig.device, offset, 4);
}

static struct balloon_statistics statistics(struct fixture *f)
{
	struct balloon_statistics s;

	virtio_balloon_statistics(f->balloon, &s);
	return s;
}

static bool resident(struct fixture *f, gpa_t gpa)
{
	unsigned char in;

	assert_int_equal(mincore(virtio_rig_at(&f->rig, gpa), GUEST_PAGE_SIZE, &in), 0);
	return in & 1;
}

static void give_pages(struct fixture *f, unsigned queue, const uint32_t *pfn, unsigned count)
{
	uint8_t bytes[4 * 600];

	for (unsigned i = 0; i < count; i++)
		store_le32(bytes + 4 * i, pfn[i]);
	assert_int_equal(virtio_rig_request(&f->rig, queue, bytes, 4 * count, NULL, 0), 0);
}

static void test_target(void **state)
{
	struct fixture *f = *state;

	begin(f, F_ALL);
	assert_int_equal(config_at(f, 0), MIB(3) >> 12);
	const unsigned before = f->rig.config_interrupts;
	virtio_balloon_set(f->balloon, MIB(5) - 1);
	assert_int_equal(config_at(f, 0), (MIB(5) >> 12) - 1);
	assert_int_equal(f->rig.config_interrupts, before + 1);
	virtio_config_write(f->rig.device, 4, 4, 77);
	assert_int_equal(statistics(f).actual_bytes, 77 * 4096);
	assert_true(statistics(f).live && statistics(f).target_bytes == MIB(5) - 4096);
	/* The target is not the guest's to change. */
	virtio_config_write(f->rig.device, 0, 4, 1);
	assert_int_equal(config_at(f, 0), (MIB(5) >> 12) - 1);
	virtio_balloon_set(f->balloon, UINT64_MAX);
	assert_int_equal(config_at(f, 0), UINT32_MAX);
}

static void test_inflate(void **state)
{
	struct fixture *f = *state;
	const uint32_t first = PAGES >> 12;
	uint32_t pfn[600];

	begin(f, F_ALL);
	for (unsigned i = 0; i < 600; i++) /* two runs, one upwards and one downwards */
		pfn[i] = i < 300 ? first + i : first + 1000 - i;
	give_pages(f, INFLATE, pfn, 600);
	assert_true(statistics(f).inflated_bytes == 600 * 4096);
	assert_false(resident(f, PAGES) || resident(f, PAGES + 299 * 4096));
	assert_true(resident(f, PAGES + 300 * 4096));
	assert_false(resident(f, PAGES + 401 * 4096) || resident(f, PAGES + 700 * 4096));
	assert_true(resident(f, PAGES + 701 * 4096));
	assert_int_equal(*(uint8_t *)virtio_rig_at(&f->rig, PAGES + 4096), 0);
	assert_int_equal(*(uint8_t *)virtio_rig_at(&f->rig, PAGES + 300 * 4096), 'x');
	give_pages(f, DEFLATE, pfn, 10);
	assert_true(statistics(f).deflated_bytes == 10 * 4096);
}

static int add_in(struct fixture *f, unsigned queue, const struct rig_part *part, unsigned count)
{
	int id = virtio_rig_add(&f->rig, queue, part, count);

	virtio_rig_kick(&f->rig, queue);
	virtio_rig_run(&f->rig);
	return id;
}

static bool was_used(struct fixture *f, unsigned queue, int id)
{
	uint32_t written;

	return virtio_rig_used(&f->rig, queue, &written) == id && written == 0;
}

static void report(struct fixture *f, unsigned queue)
{
	const struct rig_part part[2] = {{PAGES, MIB(1), true}, {PAGES + MIB(2), MIB(1), true}};

	assert_true(was_used(f, queue, add_in(f, queue, part, 2)));
}

static void test_reports(void **state)
{
	struct fixture *f = *state;

	f->rig.indirect = true;
	begin(f, F_ALL);
	report(f, REPORTS);
	assert_false(resident(f, PAGES) || resident(f, PAGES + MIB(3) - 4096));
	assert_true(resident(f, PAGES + MIB(1)) && resident(f, PAGES + MIB(3)));
	assert_true(statistics(f).reported_bytes == MIB(2));
}

/* A guest that wants to find its pattern in free pages. */
static void test_poison(void **state)
{
	struct fixture *f = *state;

	begin(f, F_ALL | F_POISON);
	virtio_config_write(f->rig.device, 12, 4, 0xaaaaaaaa);
	report(f, REPORTS);
	assert_true(resident(f, PAGES) && statistics(f).reported_bytes == 0);
	assert_int_equal(config_at(f, 12), 0xaaaaaaaa);
	begin(f, F_ALL | F_POISON);
	report(f, REPORTS);
	assert_true(statistics(f).reported_bytes == MIB(2));
}

/* As Linux numbers its queues when it does not know of hints. */
static void test_reports_without_hints(void **state)
{
	struct fixture *f = *state;

	begin(f, F_ALL & ~BIT(3));
	report(f, HINTS);
	assert_true(statistics(f).reported_bytes == MIB(2));
}

/* ---- statistics ---- */

static int tell(struct fixture *f, uint64_t free_bytes)
{
	uint8_t stat[30];
	struct rig_part part = {
		.gpa = virtio_rig_alloc(&f->rig, sizeof(stat)), .bytes = sizeof(stat)};

	store_le16(stat, BALLOON_FREE);
	store_le64(stat + 2, free_bytes);
	store_le16(stat + 10, BALLOON_TOTAL);
	store_le64(stat + 12, MIB(16));
	store_le16(stat + 20, 4711); /* one that nobody knows */
	memcpy(virtio_rig_at(&f->rig, part.gpa), stat, sizeof(stat));
	return add_in(f, STATS, &part, 1);
}

static void test_statistics(void **state)
{
	struct fixture *f = *state;

	begin(f, F_ALL);
	assert_true(statistics(f).told == 0 && statistics(f).told_ns == 0);
	int id = tell(f, 12345);
	assert_true(statistics(f).told == (1u << BALLOON_FREE | 1u << BALLOON_TOTAL));
	assert_true(statistics(f).value[BALLOON_FREE] == 12345);
	assert_true(statistics(f).value[BALLOON_TOTAL] == MIB(16));
	/* The buffer comes back when new ones are wanted: once, and then on time. */
	assert_false(was_used(f, STATS, id));
	virtio_balloon_poll(f->balloon, 5 * NS_PER_MS);
	assert_true(virtio_rig_wait(&f->rig, STATS));
	assert_true(was_used(f, STATS, id));
	id = tell(f, 54321);
	assert_true(statistics(f).value[BALLOON_FREE] == 54321);
	assert_true(virtio_rig_wait(&f->rig, STATS));
	assert_true(was_used(f, STATS, id));
	id = tell(f, 1);
	virtio_balloon_poll(f->balloon, 0);
	assert_true(virtio_rig_wait(&f->rig, STATS));
	assert_true(was_used(f, STATS, id));
	id = tell(f, 2);
	loop_timer_arm(f->rig.timer, clock_monotonic_ns() + 20 * NS_PER_MS);
	loop_run(f->rig.loop);
	assert_false(was_used(f, STATS, id));
}

/* ---- hints ---- */

static void hear_pages(void *opaque, gpa_t gpa, uint64_t bytes)
{
	struct fixture *f = opaque;

	f->hinted++;
	f->hint_gpa = gpa;
	f->hint_bytes = bytes;
}

static void hear_end(void *opaque, int status)
{
	struct fixture *f = opaque;

	f->ended++;
	f->hint_status = status;
}

static void hint_command(struct fixture *f, uint32_t id)
{
	uint8_t bytes[4];

	store_le32(bytes, id);
	assert_int_equal(virtio_rig_request(&f->rig, HINTS, bytes, 4, NULL, 0), 0);
}

static void hint_pages(struct fixture *f)
{
	const struct rig_part part = {PAGES, MIB(1), true};

	assert_true(was_used(f, HINTS, add_in(f, HINTS, &part, 1)));
}

static void test_hints(void **state)
{
	struct fixture *f = *state;
	const struct balloon_hints hints = {.pages = hear_pages, .end = hear_end, .opaque = f};

	assert_int_equal(virtio_balloon_hint(f->balloon, &hints), -ENOTSUP);
	begin(f, F_ALL);
	assert_int_equal(virtio_balloon_hint(f->balloon, &hints), 0);
	assert_int_equal(virtio_balloon_hint(f->balloon, &hints), -EBUSY);
	const uint32_t id = (uint32_t)config_at(f, 8);
	assert_true(id >= 2);
	hint_pages(f); /* before its time */
	hint_command(f, id + 5);
	hint_pages(f); /* of another command */
	assert_int_equal(f->hinted, 0);
	hint_command(f, id);
	hint_pages(f);
	assert_int_equal(f->hinted, 1);
	assert_true(f->hint_gpa == PAGES && f->hint_bytes == MIB(1));
	assert_true(resident(f, PAGES)); /* hints change nothing */
	hint_command(f, 0);
	assert_true(f->ended == 1 && f->hint_status == 0);
	hint_pages(f);
	assert_int_equal(f->hinted, 1);
	virtio_balloon_hint_done(f->balloon);
	assert_int_equal(config_at(f, 8), 1);
	/* The next ones have another number; a reset ends them. */
	assert_int_equal(virtio_balloon_hint(f->balloon, &hints), 0);
	assert_true(config_at(f, 8) != id);
	begin(f, F_ALL);
	assert_true(f->ended == 2 && f->hint_status == -ECANCELED);
}

/* Chains of many pages, each to be discarded by itself: others have their turn on the loop in between. */
static void test_turns(void **state)
{
	struct fixture *f = *state;
	const struct rig_part part = {virtio_rig_alloc(&f->rig, KIB(512)), KIB(512), false};
	uint32_t *pfn = virtio_rig_at(&f->rig, part.gpa);
	unsigned turns = 0, used = 0;
	uint32_t written;

	for (unsigned i = 0; i < part.bytes / 4; i++)
		pfn[i] = (PAGES >> 12) + i % 2 * 2;
	begin(f, F_ALL);
	for (unsigned i = 0; i < 8; i++)
		assert_true(virtio_rig_add(&f->rig, INFLATE, &part, 1) >= 0);
	virtio_rig_kick(&f->rig, INFLATE);
	for (; used < 8 && turns < 100; turns++) {
		loop_post(f->rig.loop, &f->rig.stop);
		loop_run(f->rig.loop);
		while (virtio_rig_used(&f->rig, INFLATE, &written) >= 0)
			used++;
	}
	assert_int_equal(used, 8);
	assert_true(turns >= 4); /* the loop calls back up to twice in one */
}

static void test_hostile(void **state)
{
	struct fixture *f = *state;
	const uint32_t pfn[6] = {UINT32_MAX, 0x40000, (RIG_MEMORY_BYTES >> 12) - 1,
		RIG_MEMORY_BYTES >> 12, (PAGES >> 12) + 5, (PAGES >> 12) + 5};
	const struct rig_part odd[2] = {{PAGES + 100, 4096, true}, {PAGES + 4096, 100, true}};

	begin(f, F_ALL);
	give_pages(f, INFLATE, pfn, 6);
	assert_false(resident(f, PAGES + 5 * 4096));
	assert_int_equal(virtio_rig_request(&f->rig, INFLATE, "abc", 3, NULL, 0), 0);
	assert_int_equal(virtio_rig_request(&f->rig, STATS + 1, "abc", 3, NULL, 0), 0);
	/* Pieces of pages are nobody's to discard; chains that go the other way. */
	assert_true(was_used(f, REPORTS, add_in(f, REPORTS, odd, 2)));
	assert_true(was_used(f, INFLATE, add_in(f, INFLATE, odd, 2)));
	assert_true(resident(f, PAGES) && resident(f, PAGES + 4096));
	/* More statistics than one buffer, and pages of its own rings. */
	int id = tell(f, 1);
	tell(f, 2);
	assert_true(was_used(f, STATS, id));
	const uint32_t ring = (uint32_t)(f->rig.queue[DEFLATE].device >> 12);
	give_pages(f, INFLATE, &ring, 1);
	assert_true(statistics(f).live);
	/* A list without end. */
	const struct rig_part part[3] = {{0, MIB(16), false}, {0, MIB(16), false}, {0, 4, false}};
	assert_true(virtio_rig_add(&f->rig, INFLATE, part, 3) >= 0);
	virtio_rig_kick(&f->rig, INFLATE);
	virtio_rig_run(&f->rig);
	assert_true(virtio_rig_status(&f->rig) & VIRTIO_STATUS_NEEDS_RESET);
	assert_false(statistics(f).live);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_target, setup, teardown),
		cmocka_unit_test_setup_teardown(test_inflate, setup, teardown),
		cmocka_unit_test_setup_teardown(test_reports, setup, teardown),
		cmocka_unit_test_setup_teardown(test_poison, setup, teardown),
		cmocka_unit_test_setup_teardown(test_reports_without_hints, setup, teardown),
		cmocka_unit_test_setup_teardown(test_statistics, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hints, setup, teardown),
		cmocka_unit_test_setup_teardown(test_turns, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hostile, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
