/*
 * vmm/hold.c: who asks for a pause does not wait for it, whoever waits for whom; the last word counts.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "base/util.h"
#include "vmm/hold.h"

/* A machine whose pause waits until it is let: for a vCPU that waits for the thread that asked. */
struct fake {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool let, held;
	unsigned begun, done;
};

static void apply(void *opaque, bool hold)
{
	struct fake *f = opaque;

	pthread_mutex_lock(&f->lock);
	f->begun++;
	pthread_cond_broadcast(&f->changed);
	while (hold && !f->let)
		pthread_cond_wait(&f->changed, &f->lock);
	f->held = hold;
	f->done++;
	pthread_cond_broadcast(&f->changed);
	pthread_mutex_unlock(&f->lock);
}

static void wait_for(struct fake *f, const unsigned *count, unsigned value)
{
	pthread_mutex_lock(&f->lock);
	while (*count < value)
		pthread_cond_wait(&f->changed, &f->lock);
	pthread_mutex_unlock(&f->lock);
}

static void let(struct fake *f)
{
	pthread_mutex_lock(&f->lock);
	f->let = true;
	pthread_cond_broadcast(&f->changed);
	pthread_mutex_unlock(&f->lock);
}

/* Of that machine; it has begun, and does not end before let(). */
static struct vmm_hold *hold_begun(struct fake *f)
{
	struct vmm_hold *h;

	assert_int_equal(vmm_hold_create(&h, apply), 0);
	vmm_hold_machine(h, f);
	vmm_hold_set(h, true);
	wait_for(f, &f->begun, 1);
	return h;
}

static void test_does_not_wait(void **state)
{
	struct fake f = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false, false, 0, 0};
	struct vmm_hold *h = hold_begun(&f);

	assert_int_equal(f.done, 0);
	vmm_hold_set(h, true); /* says nothing new */
	let(&f);
	wait_for(&f, &f.done, 1);
	assert_true(f.held);
	vmm_hold_set(h, false);
	wait_for(&f, &f.done, 2);
	assert_false(f.held);
	vmm_hold_machine(h, NULL);
	vmm_hold_free(h);
}

static void test_last_word(void **state)
{
	struct fake f = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false, false, 0, 0};
	struct vmm_hold *h = hold_begun(&f);

	vmm_hold_set(h, false);
	vmm_hold_set(h, true);
	vmm_hold_set(h, false);
	let(&f);
	wait_for(&f, &f.done, 2);
	assert_false(f.held);
	assert_int_equal(f.begun, 2);
	vmm_hold_machine(h, NULL);
	vmm_hold_free(h);
}

static void *let_later(void *opaque)
{
	usleep(20000);
	let(opaque);
	return NULL;
}

/* One that ends in the middle of a pause; the next one is held too, as nobody said otherwise. */
static void test_lives(void **state)
{
	struct fake f = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false, false, 0, 0};
	struct fake next = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, true, false, 0, 0};
	struct vmm_hold *h;
	pthread_t thread;

	assert_int_equal(vmm_hold_create(&h, apply), 0);
	vmm_hold_set(h, true); /* before there is one */
	vmm_hold_machine(h, &f);
	wait_for(&f, &f.begun, 1);
	assert_int_equal(pthread_create(&thread, NULL, let_later, &f), 0);
	vmm_hold_machine(h, NULL);
	assert_int_equal(f.done, 1);
	pthread_join(thread, NULL);
	vmm_hold_machine(h, &next);
	wait_for(&next, &next.done, 1);
	assert_true(next.held);
	vmm_hold_machine(h, NULL);
	vmm_hold_set(h, false);
	usleep(1000);
	assert_int_equal(next.done, 1);
	vmm_hold_free(h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_does_not_wait),
		cmocka_unit_test(test_last_word),
		cmocka_unit_test(test_lives),
	};

	return cmocka_run_group_tests_name("hold", tests, NULL, NULL);
}
