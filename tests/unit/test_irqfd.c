/*
 * Interrupt lines driven by eventfds, for engines that have no irqfd of their own (machine/irqfd.c).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/util.h"
#include "machine/irqfd.h"
#include <errno.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define LINES	24
#define WAIT_NS 5000000000ull

static _Atomic unsigned pulses[LINES];

static void pulse(void *opaque, unsigned gsi)
{
	pulses[gsi]++;
}

static void wait_pulses(unsigned gsi, unsigned count)
{
	uint64_t end = clock_monotonic_ns() + WAIT_NS;

	while (pulses[gsi] < count && clock_monotonic_ns() < end)
		usleep(100);
	assert_int_equal(pulses[gsi], count);
}

static void test_pulses(void **state)
{
	int fd[2] = {eventfd(0, 0), eventfd(0, EFD_NONBLOCK)}; /* either kind will do */
	struct irqfds *fds;

	assert_int_equal(irqfds_create(&fds, pulse, NULL), 0);
	assert_int_equal(irqfds_add(fds, 4, fd[0]), 0);
	assert_int_equal(irqfds_add(fds, 23, fd[1]), 0);
	assert_int_equal(irqfds_add(fds, 23, fd[1]), -EEXIST);
	for (unsigned i = 1; i <= 5; i++) {
		eventfd_write(fd[0], 1);
		wait_pulses(4, i);
	}
	eventfd_write(fd[1], 1);
	wait_pulses(23, 1);
	assert_int_equal(irqfds_remove(fds, fd[0]), 0);
	assert_int_equal(irqfds_remove(fds, fd[0]), -ENOENT);
	eventfd_write(fd[0], 1);
	eventfd_write(fd[1], 1);
	wait_pulses(23, 2);
	assert_int_equal(pulses[4], 5);
	irqfds_free(fds);
	close(fd[0]);
	close(fd[1]);
}

static void test_wrong(void **state)
{
	struct irqfds *fds;

	assert_int_equal(irqfds_create(&fds, pulse, NULL), 0);
	assert_int_equal(irqfds_add(fds, 1, -1), -EBADF);
	irqfds_free(fds);
	irqfds_free(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_pulses),
		cmocka_unit_test(test_wrong),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
