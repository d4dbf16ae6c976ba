/*
 * backend/disk/workers: jobs beside each other, jobs one after the other, and those whose end comes back to the loop.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "backend/disk/workers.h"

#include "base/clock.h"
#include "base/loop.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#define JOBS	200
#define WAIT_NS 10000000000ull

struct fixture {
	struct loop *loop;
	struct workers *workers;
	atomic_uint under_way, most, ended, started, back;
	atomic_bool hold, out_of_order;
	struct job {
		struct worker_job job;
		struct fixture *f;
		unsigned number;
		bool fails;
	} jobs[JOBS], blocked;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	assert_int_equal(loop_create(&f->loop), 0);
	assert_int_equal(workers_create(f->loop, 8, &f->workers), 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	f->hold = false;
	workers_free(f->workers);
	loop_free(f->loop);
	free(f);
	return 0;
}

static void wait_for(const atomic_uint *count, unsigned value)
{
	const uint64_t end_ns = clock_monotonic_ns() + WAIT_NS;

	while (*count != value && clock_monotonic_ns() < end_ns)
		usleep(100);
	assert_int_equal(*count, value);
}

static bool work(struct worker_job *worker_job)
{
	struct job *job = container_of(worker_job, struct job, job);
	struct fixture *f = job->f;
	unsigned now = ++f->under_way, most = f->most;

	while (now > most && !atomic_compare_exchange_weak(&f->most, &most, now))
		continue;
	if (f->started++ != job->number)
		f->out_of_order = true;
	if (job->number % 16 == 0)
		usleep(300);
	f->under_way--;
	if (job->fails)
		return false;
	f->ended++;
	return true;
}

static void came_back(struct worker_job *worker_job)
{
	struct fixture *f = container_of(worker_job, struct job, job)->f;

	if (++f->back + f->ended == JOBS)
		loop_stop(f->loop);
}

static bool block(struct worker_job *worker_job)
{
	struct fixture *f = container_of(worker_job, struct job, job)->f;

	while (f->hold)
		usleep(100);
	f->ended++;
	return true;
}

static struct worker_job *job(struct fixture *f, unsigned number, bool fails)
{
	f->jobs[number] = (struct job){
		.job = {.work = work, .done = came_back}, .f = f, .number = number, .fails = fails};
	return &f->jobs[number].job;
}

/* In order, one at a time, with some others that take long beside them. */
static void test_serial(void **state)
{
	struct fixture *f = *state;

	f->hold = true;
	f->blocked = (struct job){.job = {.work = block}, .f = f};
	workers_submit(f->workers, &f->blocked.job);
	for (unsigned round = 0; round < 5; round++) {
		f->started = f->ended = 0;
		for (unsigned i = 0; i < JOBS; i++) {
			workers_submit_serial(f->workers, job(f, i, false));
			/* They run out of work now and then. */
			if (i % 50 == 0)
				wait_for(&f->ended, i + 1);
		}
		wait_for(&f->ended, JOBS);
		assert_false(f->out_of_order);
		assert_int_equal(f->most, 1);
	}
	f->hold = false;
	wait_for(&f->ended, JOBS + 1);
}

/* The others go beside each other. */
static void test_beside(void **state)
{
	struct fixture *f = *state;

	for (unsigned i = 0; i < JOBS; i++)
		workers_submit(f->workers, job(f, i, false));
	wait_for(&f->ended, JOBS);
	assert_in_range(f->most, 2, 8);
}

/* An end that is not the job's own comes on the loop's thread, and those behind it go on. */
static void test_back(void **state)
{
	struct fixture *f = *state;

	for (unsigned i = 0; i < JOBS; i++)
		workers_submit_serial(f->workers, job(f, i, i % 3 == 0 || i == JOBS - 1));
	loop_run(f->loop);
	assert_int_equal(f->ended + f->back, JOBS);
	assert_int_equal(f->back, (JOBS + 2) / 3 + 1);
	assert_int_equal(f->most, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_serial, setup, teardown),
		cmocka_unit_test_setup_teardown(test_beside, setup, teardown),
		cmocka_unit_test_setup_teardown(test_back, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
