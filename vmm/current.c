/*
 * See current.h.
 */
#include "vmm/current.h"

#include "base/cleanup.h"
#include "base/clock.h"

#include <string.h>

void vmm_current_init(struct vmm_current *c)
{
	memset(c, 0, sizeof(*c));
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->changed, NULL);
}

void vmm_current_done(struct vmm_current *c)
{
	pthread_mutex_destroy(&c->lock);
	pthread_cond_destroy(&c->changed);
}

void vmm_current_set(struct vmm_current *c, struct machine *machine)
{
	AUTO_LOCK(&c->lock);
	c->machine = NULL;
	while (c->users)
		pthread_cond_wait(&c->changed, &c->lock);
	c->machine = machine;
	c->since_ns = clock_monotonic_ns();
	pthread_cond_broadcast(&c->changed);
}

void vmm_current_end(struct vmm_current *c)
{
	AUTO_LOCK(&c->lock);
	c->ended = true;
	pthread_cond_broadcast(&c->changed);
}

static struct machine *take(struct vmm_current *c, bool wait)
{
	AUTO_LOCK(&c->lock);
	while (wait && !c->machine && !c->ended)
		pthread_cond_wait(&c->changed, &c->lock);
	c->users += c->machine != NULL;
	return c->machine;
}

struct machine *vmm_current_take(struct vmm_current *c)
{
	return take(c, false);
}

struct machine *vmm_current_wait(struct vmm_current *c)
{
	return take(c, true);
}

bool vmm_current_is_over(struct vmm_current *c)
{
	AUTO_LOCK(&c->lock);
	return !c->machine;
}

void vmm_current_give_back(struct vmm_current *c)
{
	AUTO_LOCK(&c->lock);
	c->users--;
	pthread_cond_broadcast(&c->changed);
}
