/*
 * Interrupt lines driven by eventfds, for engines whose interrupt controllers are the board's: what irqfd
 * is for KVM. One thread waits for all of them.
 *
 * Threads: add and remove on any thread; create and free by the owner.
 */
#ifndef LODGE_MACHINE_IRQFD_H
#define LODGE_MACHINE_IRQFD_H

#include "base/types.h"
#include "base/util.h"

struct irqfds;

/* pulse is called on the thread, for each signal that was waited for: the line goes up and down. Errors:
 * -ENOMEM, or what the system says of epoll and threads. */
MUST_CHECK int irqfds_create(
	struct irqfds **ret_fds, void (*pulse)(void *opaque, unsigned gsi), void *opaque);
void irqfds_free(struct irqfds *fds);

/* The eventfd stays the caller's, and must be open until it is removed. A pulse that was under way may
 * still come after the removal. Errors: -EEXIST, -ENOENT, -EPERM (no eventfd). */
MUST_CHECK int irqfds_add(struct irqfds *fds, unsigned gsi, int eventfd);
int irqfds_remove(struct irqfds *fds, int eventfd);

#endif
