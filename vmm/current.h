/*
 * The machine of this process that runs now; between two of its lives there is none. Whoever uses it from another thread
 * than its owner's takes it first, and gives it back: it is not freed meanwhile.
 *
 * Threads: vmm_current_set() and vmm_current_end() the machine's owner; the others any.
 */
#ifndef LODGE_VMM_CURRENT_H
#define LODGE_VMM_CURRENT_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct machine;

struct vmm_current {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct machine *machine; /* NULL: none for now */
	unsigned users;
	bool ended;
	uint64_t since_ns; /* CLOCK_MONOTONIC; when the machine came */
};

void vmm_current_init(struct vmm_current *current);
void vmm_current_done(struct vmm_current *current);

/* It has started; or NULL: it has ended. Returns when nobody uses the one before any more. */
void vmm_current_set(struct vmm_current *current, struct machine *machine);
/* No other will come. */
void vmm_current_end(struct vmm_current *current);

/* NULL: there is none now. */
struct machine *vmm_current_take(struct vmm_current *current);
/* Waits for the next one. NULL: there will be none. */
struct machine *vmm_current_wait(struct vmm_current *current);
void vmm_current_give_back(struct vmm_current *current);
/* Has the one that was taken ended, so that its owner waits for who has it? */
bool vmm_current_is_over(struct vmm_current *current);

#endif
