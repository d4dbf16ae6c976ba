/*
 * See hold.h.
 *
 * Invariant: `busy` is set by the thread while it is out with the machine, and only then is the lock not held.
 */
#include "vmm/hold.h"

#include "base/cleanup.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

struct vmm_hold {
	void (*apply)(void *machine, bool hold);
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	void *machine;
	bool wanted, done; /* done: what the machine was told last */
	bool busy, ending;
};

static void go_out(struct vmm_hold *h)
{
	void *machine = h->machine;
	const bool on = h->wanted;

	h->done = on;
	h->busy = true;
	pthread_mutex_unlock(&h->lock);
	h->apply(machine, on);
	pthread_mutex_lock(&h->lock);
	h->busy = false;
	pthread_cond_broadcast(&h->changed);
}

static void *hold_thread(void *opaque)
{
	struct vmm_hold *h = opaque;

	pthread_setname_np(pthread_self(), "hold");
	AUTO_LOCK(&h->lock);
	while (!h->ending) {
		if (h->machine && h->wanted != h->done)
			go_out(h);
		else
			pthread_cond_wait(&h->changed, &h->lock);
	}
	return NULL;
}

int vmm_hold_create(struct vmm_hold **ret_hold, void (*apply)(void *machine, bool hold))
{
	struct vmm_hold *h = calloc(1, sizeof(*h));

	if (!h)
		return -ENOMEM;
	h->apply = apply;
	pthread_mutex_init(&h->lock, NULL);
	pthread_cond_init(&h->changed, NULL);
	const int code = pthread_create(&h->thread, NULL, hold_thread, h);
	if (code) {
		free(h);
		return -code;
	}
	*ret_hold = h;
	return 0;
}

void vmm_hold_free(struct vmm_hold *h)
{
	if (!h)
		return;
	pthread_mutex_lock(&h->lock);
	h->ending = true;
	pthread_cond_broadcast(&h->changed);
	pthread_mutex_unlock(&h->lock);
	pthread_join(h->thread, NULL);
	pthread_cond_destroy(&h->changed);
	pthread_mutex_destroy(&h->lock);
	free(h);
}

void vmm_hold_set(struct vmm_hold *h, bool on)
{
	AUTO_LOCK(&h->lock);
	h->wanted = on;
	pthread_cond_broadcast(&h->changed);
}

void vmm_hold_machine(struct vmm_hold *h, void *machine)
{
	AUTO_LOCK(&h->lock);
	h->machine = NULL;
	while (h->busy)
		pthread_cond_wait(&h->changed, &h->lock);
	h->machine = machine;
	h->done = false;
	pthread_cond_broadcast(&h->changed);
}
