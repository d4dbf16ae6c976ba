/*
 * base/loop: sources, timers and posts, alone and against each other; many threads that post.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/loop.h"

#define LOG_MAX 64

struct fixture {
	struct loop *loop;
	int fd[2]; /* eventfds */
	struct loop_source *source[2];
	char log[LOG_MAX]; /* what was called, in order */
	unsigned logged;
};

static void note(struct fixture *f, char what)
{
	assert_true(f->logged + 1 < LOG_MAX);
	f->log[f->logged++] = what;
}

static void stop(void *opaque)
{
	struct fixture *f = opaque;

	loop_stop(f->loop);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	assert_int_equal(loop_create(&f->loop), 0);
	for (unsigned i = 0; i < 2; i++)
		f->fd[i] = eventfd(0, EFD_NONBLOCK);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	loop_free(f->loop);
	close(f->fd[0]);
	close(f->fd[1]);
	free(f);
	return 0;
}

/* ---- posts ---- */

struct letter {
	struct loop_call call;
	struct fixture *f;
	char what;
	struct letter *next; /* posted by it */
};

static void read_letter(void *opaque)
{
	struct letter *letter = opaque;

	assert_true(loop_is_here(letter->f->loop));
	note(letter->f, letter->what);
	if (letter->next)
		loop_post(letter->f->loop, &letter->next->call);
}

static struct letter letter(struct fixture *f, char what)
{
	return (struct letter){.call.fn = read_letter, .f = f, .what = what};
}

static void test_posts(void **state)
{
	struct fixture *f = *state;
	struct letter a = letter(f, 'a'), b = letter(f, 'b'), c = letter(f, 'c'),
		      d = letter(f, 'd');

	a.call.opaque = &a, b.call.opaque = &b, c.call.opaque = &c, d.call.opaque = &d;
	a.next = &d;
	assert_false(loop_is_here(f->loop));
	loop_post(f->loop, &a.call);
	loop_post(f->loop, &b.call);
	loop_post(f->loop, &a.call); /* posted already */
	loop_stop(f->loop);
	loop_post(f->loop, &c.call);
	loop_run(f->loop);
	assert_string_equal(f->log, "ab");
	assert_false(loop_is_here(f->loop));
	/* What came after the stop is for the next run. */
	loop_stop(f->loop);
	loop_run(f->loop);
	assert_string_equal(f->log, "abcd");
}

static void test_cancel(void **state)
{
	struct fixture *f = *state;
	struct letter a = letter(f, 'a'), b = letter(f, 'b'), c = letter(f, 'c'),
		      d = letter(f, 'd');

	a.call.opaque = &a, b.call.opaque = &b, c.call.opaque = &c, d.call.opaque = &d;
	loop_post(f->loop, &a.call);
	loop_post(f->loop, &b.call);
	loop_post(f->loop, &c.call);
	loop_cancel(f->loop, &c.call);
	loop_cancel(f->loop, &a.call);
	loop_cancel(f->loop, &a.call);
	assert_false(a.call.posted);
	loop_post(f->loop, &a.call);
	loop_stop(f->loop);
	loop_post(f->loop, &d.call);
	loop_cancel(f->loop, &d.call);
	loop_run(f->loop);
	assert_string_equal(f->log, "ba");
	loop_stop(f->loop);
	loop_run(f->loop);
	assert_string_equal(f->log, "ba");
}

/* ---- sources ---- */

static void drain(void *opaque, uint32_t events)
{
	struct fixture *f = opaque;
	eventfd_t count;

	assert_int_equal(events, EPOLLIN);
	assert_int_equal(eventfd_read(f->fd[0], &count), 0);
	note(f, (char)('0' + count));
	if (count == 3)
		loop_stop(f->loop);
	else
		eventfd_write(f->fd[0], count + 1);
}

static void test_source(void **state)
{
	struct fixture *f = *state;
	int file;

	assert_int_equal(loop_add(f->loop, f->fd[0], EPOLLIN, drain, f, &f->source[0]), 0);
	eventfd_write(f->fd[0], 1);
	loop_run(f->loop);
	assert_string_equal(f->log, "123");
	file = dup(STDIN_FILENO);
	close(file);
	assert_int_equal(loop_add(f->loop, file, EPOLLIN, drain, f, &f->source[1]), -EBADF);
}

/* Whichever comes first removes the other, which was due too, and itself. */
static void remove_both(void *opaque, uint32_t events)
{
	struct fixture *f = opaque;

	note(f, 'r');
	loop_remove(f->source[0]);
	loop_remove(f->source[1]);
	loop_stop(f->loop);
}

static void test_remove_due(void **state)
{
	struct fixture *f = *state;

	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(
			loop_add(f->loop, f->fd[i], EPOLLIN, remove_both, f, &f->source[i]), 0);
		eventfd_write(f->fd[i], 1);
	}
	loop_run(f->loop);
	assert_string_equal(f->log, "r");
	loop_stop(f->loop);
	loop_run(f->loop);
	assert_string_equal(f->log, "r");
	/* The descriptor can be waited for again. */
	assert_int_equal(loop_add(f->loop, f->fd[0], 0, remove_both, f, &f->source[0]), 0);
	assert_int_equal(loop_change(f->source[0], EPOLLIN), 0);
	f->source[1] = NULL;
	loop_run(f->loop);
	assert_string_equal(f->log, "rr");
}

/* ---- timers ---- */

struct alarm {
	struct fixture *f;
	char what;
	struct loop_timer *timer;
	uint64_t at_ns;
	struct alarm *cancels;
	bool stops;
};

static void ring(void *opaque)
{
	struct alarm *alarm = opaque;

	assert_true(clock_monotonic_ns() >= alarm->at_ns);
	note(alarm->f, alarm->what);
	if (alarm->cancels)
		loop_timer_cancel(alarm->cancels->timer);
	if (alarm->stops)
		loop_stop(alarm->f->loop);
}

static void set_alarm(struct alarm *alarm, uint64_t at_ns)
{
	alarm->at_ns = at_ns;
	loop_timer_arm(alarm->timer, at_ns);
}

static void test_timers(void **state)
{
	struct fixture *f = *state;
	struct alarm alarm[8];
	const unsigned order[8] = {5, 2, 7, 0, 3, 6, 1, 4};
	const uint64_t start_ns = clock_monotonic_ns();

	for (unsigned i = 0; i < 8; i++) {
		alarm[i] = (struct alarm){.f = f, .what = (char)('0' + i), .stops = i == 7};
		alarm[i].timer = loop_timer_create(f->loop, ring, &alarm[i]);
		assert_non_null(alarm[i].timer);
	}
	for (unsigned i = 0; i < 8; i++)
		set_alarm(&alarm[order[i]], start_ns + (order[i] + 1) * 2 * NS_PER_MS);
	set_alarm(&alarm[0], start_ns + 5 * NS_PER_MS); /* later now: after 1 */
	loop_timer_cancel(alarm[3].timer);
	loop_timer_cancel(alarm[3].timer);
	alarm[4].cancels = &alarm[6];
	loop_timer_free(alarm[5].timer);
	loop_run(f->loop);
	assert_string_equal(f->log, "10247");
	assert_true(clock_monotonic_ns() - start_ns >= 16 * NS_PER_MS);
	/* Both due: the first one cancels the other. */
	alarm[0].cancels = &alarm[1];
	set_alarm(&alarm[1], start_ns + 1);
	set_alarm(&alarm[0], 0);
	set_alarm(&alarm[7], start_ns + 2);
	loop_run(f->loop);
	assert_string_equal(f->log, "1024707");
}

static void again(void *opaque)
{
	struct alarm *alarm = opaque;

	loop_timer_arm(alarm->timer, 1);
}

/* One that is always due keeps nobody else waiting. */
static void test_greedy_timer(void **state)
{
	struct fixture *f = *state;
	struct alarm greedy = {.f = f};
	struct letter last = letter(f, 'l');

	greedy.timer = loop_timer_create(f->loop, again, &greedy);
	loop_timer_arm(greedy.timer, 1);
	assert_int_equal(loop_add(f->loop, f->fd[0], EPOLLIN, drain, f, &f->source[0]), 0);
	eventfd_write(f->fd[0], 1);
	last.call.opaque = &last;
	loop_post(f->loop, &last.call);
	loop_run(f->loop);
	assert_string_equal(f->log, "l123");
}

/* Many timers, armed at random: they come in the order of their deadlines. */
#define CROWD 200
struct crowd {
	struct loop *loop;
	uint64_t last_ns;
	unsigned left;
};
struct member {
	struct crowd *crowd;
	struct loop_timer *timer;
	uint64_t at_ns;
};

static void come(void *opaque)
{
	struct member *member = opaque;
	struct crowd *crowd = member->crowd;

	assert_true(member->at_ns >= crowd->last_ns);
	crowd->last_ns = member->at_ns;
	if (!--crowd->left)
		loop_stop(crowd->loop);
}

static void test_crowd(void **state)
{
	struct fixture *f = *state;
	struct crowd crowd = {.loop = f->loop};
	struct member member[CROWD];
	unsigned seed = 7;

	for (unsigned i = 0; i < CROWD; i++) {
		member[i] = (struct member){.crowd = &crowd};
		member[i].timer = loop_timer_create(f->loop, come, &member[i]);
	}
	for (unsigned i = 0; i < 3 * CROWD; i++) {
		struct member *m = &member[(unsigned)rand_r(&seed) % CROWD];

		m->at_ns = 1 + (uint64_t)rand_r(&seed) % 1000;
		if (rand_r(&seed) % 4)
			loop_timer_arm(m->timer, m->at_ns);
		else
			loop_timer_cancel(m->timer);
	}
	for (unsigned i = 0; i < CROWD; i++) {
		member[i].at_ns = 1 + (uint64_t)rand_r(&seed) % 1000;
		loop_timer_arm(member[i].timer, member[i].at_ns);
	}
	crowd.left = CROWD;
	loop_run(f->loop);
	assert_int_equal(crowd.left, 0);
}

/* ---- threads ---- */

#define THREADS 4
#define POSTS	2000

struct poster {
	struct fixture *f;
	pthread_t thread;
	struct loop_call call[POSTS];
	unsigned next; /* the loop's thread */
};

static unsigned posts_made;

static void count_post(void *opaque)
{
	posts_made++;
}

static void *post_many(void *opaque)
{
	struct poster *poster = opaque;

	for (unsigned i = 0; i < POSTS; i++) {
		poster->call[i] = (struct loop_call){.fn = count_post};
		loop_post(poster->f->loop, &poster->call[i]);
	}
	return NULL;
}

static void *run(void *opaque)
{
	struct fixture *f = opaque;

	loop_run(f->loop);
	return NULL;
}

static void set_number(void *opaque)
{
	*(int *)opaque = 42;
}

static void test_threads(void **state)
{
	struct fixture *f = *state;
	struct poster *poster = calloc(THREADS, sizeof(*poster));
	pthread_t runner;
	int number = 0;

	posts_made = 0;
	assert_int_equal(pthread_create(&runner, NULL, run, f), 0);
	for (unsigned i = 0; i < THREADS; i++) {
		poster[i].f = f;
		assert_int_equal(pthread_create(&poster[i].thread, NULL, post_many, &poster[i]), 0);
	}
	loop_invoke(f->loop, set_number, &number);
	assert_int_equal(number, 42);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(poster[i].thread, NULL);
	loop_invoke(f->loop, stop, f);
	pthread_join(runner, NULL);
	assert_int_equal(posts_made, THREADS * POSTS);
	free(poster);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_posts, setup, teardown),
		cmocka_unit_test_setup_teardown(test_cancel, setup, teardown),
		cmocka_unit_test_setup_teardown(test_source, setup, teardown),
		cmocka_unit_test_setup_teardown(test_remove_due, setup, teardown),
		cmocka_unit_test_setup_teardown(test_timers, setup, teardown),
		cmocka_unit_test_setup_teardown(test_greedy_timer, setup, teardown),
		cmocka_unit_test_setup_teardown(test_crowd, setup, teardown),
		cmocka_unit_test_setup_teardown(test_threads, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
