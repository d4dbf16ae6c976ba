/*
 * The event loop: see loop.h. One epoll set; in it, besides the sources, an eventfd that wakes the loop for posts
 * and stops, and one timerfd that stands at the earliest timer's deadline.
 *
 * Invariants: a source that is removed stays allocated until the events that were fetched together have been served
 * (they point to it). A timer is in the heap when it is armed; the heap has room for every timer there is, so that
 * arming cannot fail.
 */
#include "base/loop.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"

#define BATCH	 32
#define NOT_HEAP SIZE_MAX

struct loop_source {
	struct loop *loop;
	int fd;
	void (*ready)(void *opaque, uint32_t events);
	void *opaque;
	bool removed;
	struct loop_source *next, **link; /* in loop.sources, or loop.graves */
};

struct loop_timer {
	struct loop *loop;
	void (*fire)(void *opaque);
	void *opaque;
	uint64_t deadline_ns;
	size_t at; /* in the heap; NOT_HEAP: not armed */
	struct loop_timer *next, **link;
};

struct call_list {
	struct loop_call *first, **last;
	size_t count;
};

struct loop {
	int epoll_fd, wake_fd, timer_fd;
	struct loop_source *sources, *graves;

	struct loop_timer *timers;
	struct loop_timer **heap; /* the earliest first: a binary heap */
	size_t armed, timer_count, capacity;
	uint64_t timer_fd_ns; /* where the timerfd stands; 0: it does not run */

	pthread_mutex_t lock;	      /* innermost; guards what follows */
	struct call_list calls, late; /* late: posted after the stop, for the next run */
	bool stopping;

	_Atomic(pthread_t) thread; /* in loop_run(); 0: none */
};

/* Insert into and take out of a list whose items have next and link. */
#define list_insert(head, item)                             \
	do {                                                \
		(item)->next = *(head);                     \
		(item)->link = (head);                      \
		if ((item)->next)                           \
			(item)->next->link = &(item)->next; \
		*(head) = (item);                           \
	} while (0)
#define list_remove(item)                                  \
	do {                                               \
		*(item)->link = (item)->next;              \
		if ((item)->next)                          \
			(item)->next->link = (item)->link; \
	} while (0)

/* ---- sources ---- */

int loop_add(struct loop *loop, int fd, uint32_t events,
	void (*ready)(void *opaque, uint32_t events), void *opaque, struct loop_source **ret_source)
{
	AUTO_FREE struct loop_source *source = calloc(1, sizeof(*source));
	struct epoll_event event = {.events = events, .data.ptr = source};

	if (!source)
		return -ENOMEM;
	*source = (struct loop_source){.loop = loop, .fd = fd, .ready = ready, .opaque = opaque};
	if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
		return -errno;
	list_insert(&loop->sources, source);
	*ret_source = take_ptr(&source);
	return 0;
}

int loop_change(struct loop_source *source, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.ptr = source};

	return epoll_ctl(source->loop->epoll_fd, EPOLL_CTL_MOD, source->fd, &event) < 0 ? -errno
											: 0;
}

void loop_remove(struct loop_source *source)
{
	if (!source)
		return;
	epoll_ctl(source->loop->epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
	source->removed = true;
	list_remove(source);
	list_insert(&source->loop->graves, source);
}

static void bury(struct loop *loop)
{
	while (loop->graves) {
		struct loop_source *source = loop->graves;

		loop->graves = source->next;
		free(source);
	}
}

/* ---- timers ---- */

static void heap_put(struct loop *loop, size_t at, struct loop_timer *timer)
{
	loop->heap[at] = timer;
	timer->at = at;
}

/* Moves the timer, whose place is `at`, to where it belongs. */
static void heap_settle(struct loop *loop, size_t at, struct loop_timer *timer)
{
	while (at && loop->heap[(at - 1) / 2]->deadline_ns > timer->deadline_ns) {
		heap_put(loop, at, loop->heap[(at - 1) / 2]);
		at = (at - 1) / 2;
	}
	for (;;) {
		size_t child = 2 * at + 1;

		if (child + 1 < loop->armed &&
			loop->heap[child + 1]->deadline_ns < loop->heap[child]->deadline_ns)
			child++;
		if (child >= loop->armed || loop->heap[child]->deadline_ns >= timer->deadline_ns)
			break;
		heap_put(loop, at, loop->heap[child]);
		at = child;
	}
	heap_put(loop, at, timer);
}

struct loop_timer *loop_timer_create(struct loop *loop, void (*fire)(void *opaque), void *opaque)
{
	AUTO_FREE struct loop_timer *timer = calloc(1, sizeof(*timer));

	if (!timer)
		return NULL;
	if (loop->timer_count == loop->capacity) {
		size_t capacity = loop->capacity ? loop->capacity * 2 : 8;
		struct loop_timer **grown = reallocarray(loop->heap, capacity, sizeof(*grown));

		if (!grown)
			return NULL;
		loop->heap = grown;
		loop->capacity = capacity;
	}
	*timer = (struct loop_timer){.loop = loop, .fire = fire, .opaque = opaque, .at = NOT_HEAP};
	loop->timer_count++;
	list_insert(&loop->timers, timer);
	return take_ptr(&timer);
}

void loop_timer_cancel(struct loop_timer *timer)
{
	struct loop *loop = timer->loop;
	size_t at = timer->at;

	if (at == NOT_HEAP)
		return;
	timer->at = NOT_HEAP;
	loop->armed--;
	if (at < loop->armed)
		heap_settle(loop, at, loop->heap[loop->armed]);
}

void loop_timer_arm(struct loop_timer *timer, uint64_t deadline_ns)
{
	struct loop *loop = timer->loop;

	loop_timer_cancel(timer);
	timer->deadline_ns = deadline_ns;
	heap_settle(loop, loop->armed++, timer);
}

void loop_timer_free(struct loop_timer *timer)
{
	if (!timer)
		return;
	loop_timer_cancel(timer);
	timer->loop->timer_count--;
	list_remove(timer);
	free(timer);
}

/* Not more than are armed now: one that arms itself again for the past must not keep the loop to itself. */
static void fire_due(struct loop *loop)
{
	size_t most = loop->armed;
	uint64_t now_ns = most ? clock_monotonic_ns() : 0;

	while (most-- && loop->armed && loop->heap[0]->deadline_ns <= now_ns) {
		struct loop_timer *timer = loop->heap[0];

		loop_timer_cancel(timer);
		timer->fire(timer->opaque);
	}
}

/* A deadline of 0 would stop the timerfd. */
static void set_timer_fd(struct loop *loop)
{
	uint64_t at_ns = loop->armed ? MAX(loop->heap[0]->deadline_ns, (uint64_t)1) : 0;
	const struct itimerspec when = {.it_value = clock_timespec(at_ns)};

	if (at_ns == loop->timer_fd_ns)
		return;
	loop->timer_fd_ns = at_ns;
	timerfd_settime(loop->timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

static void timer_fd_ready(void *opaque, uint32_t events)
{
	struct loop *loop = opaque;
	uint64_t count;

	if (read(loop->timer_fd, &count, sizeof(count)) == sizeof(count))
		loop->timer_fd_ns = 0;
}

/* ---- posts ---- */

static void call_list_init(struct call_list *list)
{
	list->first = NULL;
	list->last = &list->first;
	list->count = 0;
}

static void call_append(struct call_list *list, struct loop_call *call)
{
	call->next = NULL;
	*list->last = call;
	list->last = &call->next;
	list->count++;
}

/* `link` is what points to it in the list. */
static struct loop_call *call_take(struct call_list *list, struct loop_call **link)
{
	struct loop_call *call = *link;

	*link = call->next;
	if (!call->next)
		list->last = link;
	list->count--;
	call->posted = false;
	return call;
}

void loop_post(struct loop *loop, struct loop_call *call)
{
	bool wake = false;

	pthread_mutex_lock(&loop->lock);
	if (!call->posted) {
		struct call_list *list = loop->stopping ? &loop->late : &loop->calls;

		/* Its own thread looks before it sleeps. */
		wake = !list->first && !loop_is_here(loop);
		call->posted = true;
		call_append(list, call);
	}
	pthread_mutex_unlock(&loop->lock);
	if (wake)
		eventfd_write(loop->wake_fd, 1);
}

static bool call_list_cancel(struct call_list *list, const struct loop_call *call)
{
	for (struct loop_call **link = &list->first; *link; link = &(*link)->next)
		if (*link == call) {
			call_take(list, link);
			return true;
		}
	return false;
}

void loop_cancel(struct loop *loop, struct loop_call *call)
{
	AUTO_LOCK(&loop->lock);
	if (call->posted && !call_list_cancel(&loop->calls, call))
		call_list_cancel(&loop->late, call);
}

struct invocation {
	struct loop_call call;
	void (*fn)(void *opaque);
	void *opaque;
	pthread_mutex_t lock;
	pthread_cond_t ended;
	bool has_ended;
};

static void run_invocation(void *opaque)
{
	struct invocation *invocation = opaque;

	invocation->fn(invocation->opaque);
	AUTO_LOCK(&invocation->lock);
	invocation->has_ended = true;
	pthread_cond_signal(&invocation->ended);
}

void loop_invoke(struct loop *loop, void (*fn)(void *opaque), void *opaque)
{
	struct invocation invocation = {.call.fn = run_invocation,
		.fn = fn,
		.opaque = opaque,
		.lock = PTHREAD_MUTEX_INITIALIZER,
		.ended = PTHREAD_COND_INITIALIZER};

	if (loop_is_here(loop)) {
		fn(opaque);
		return;
	}
	invocation.call.opaque = &invocation;
	loop_post(loop, &invocation.call);
	pthread_mutex_lock(&invocation.lock);
	while (!invocation.has_ended)
		pthread_cond_wait(&invocation.ended, &invocation.lock);
	pthread_mutex_unlock(&invocation.lock);
	pthread_cond_destroy(&invocation.ended);
	pthread_mutex_destroy(&invocation.lock);
}

void loop_stop(struct loop *loop)
{
	pthread_mutex_lock(&loop->lock);
	loop->stopping = true;
	pthread_mutex_unlock(&loop->lock);
	eventfd_write(loop->wake_fd, 1);
}

static void wake_fd_ready(void *opaque, uint32_t events)
{
	struct loop *loop = opaque;
	eventfd_t count;

	eventfd_read(loop->wake_fd, &count);
}

/* Makes the calls that are there now; true: the loop had been stopped before. Nothing is added to the list then. */
static bool make_calls(struct loop *loop)
{
	pthread_mutex_lock(&loop->lock);
	const bool stopping = loop->stopping;
	size_t count = loop->calls.count;
	while (count-- && loop->calls.first) {
		struct loop_call *call = call_take(&loop->calls, &loop->calls.first);
		/* Its owner may post it again, or free it, once the lock is gone. */
		void (*fn)(void *opaque) = call->fn;
		void *opaque = call->opaque;

		pthread_mutex_unlock(&loop->lock);
		fn(opaque);
		pthread_mutex_lock(&loop->lock);
	}
	/* What was posted meanwhile, by calls too, comes after the sources that are ready: see has_calls(). */
	pthread_mutex_unlock(&loop->lock);
	return stopping;
}

/* ---- running ---- */

bool loop_is_here(const struct loop *loop)
{
	return atomic_load_explicit(&loop->thread, memory_order_relaxed) == pthread_self();
}

static bool has_calls(struct loop *loop)
{
	AUTO_LOCK(&loop->lock);
	return loop->calls.first || loop->stopping;
}

static void serve(struct loop *loop)
{
	struct epoll_event events[BATCH];

	set_timer_fd(loop);
	int count = epoll_wait(loop->epoll_fd, events, BATCH, has_calls(loop) ? 0 : -1);
	for (int i = 0; i < count; i++) {
		struct loop_source *source = events[i].data.ptr;

		if (!source->removed)
			source->ready(source->opaque, events[i].events);
	}
	bury(loop);
	fire_due(loop);
}

void loop_run(struct loop *loop)
{
	atomic_store(&loop->thread, pthread_self());
	while (!make_calls(loop))
		serve(loop);
	atomic_store(&loop->thread, (pthread_t)0);

	pthread_mutex_lock(&loop->lock);
	loop->stopping = false;
	while (loop->late.first) {
		struct loop_call *call = call_take(&loop->late, &loop->late.first);

		call->posted = true;
		call_append(&loop->calls, call);
	}
	pthread_mutex_unlock(&loop->lock);
}

static int open_fds(struct loop *loop)
{
	struct loop_source *source;

	loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	loop->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	loop->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (loop->epoll_fd < 0 || loop->wake_fd < 0 || loop->timer_fd < 0)
		return -errno;
	int status = loop_add(loop, loop->wake_fd, EPOLLIN, wake_fd_ready, loop, &source);
	return status < 0 ? status
			  : loop_add(loop, loop->timer_fd, EPOLLIN, timer_fd_ready, loop, &source);
}

int loop_create(struct loop **ret_loop)
{
	struct loop *loop = calloc(1, sizeof(*loop));

	if (!loop)
		return -ENOMEM;
	loop->epoll_fd = loop->wake_fd = loop->timer_fd = -1;
	pthread_mutex_init(&loop->lock, NULL);
	call_list_init(&loop->calls);
	call_list_init(&loop->late);
	int status = open_fds(loop);
	if (status < 0) {
		loop_free(loop);
		return status;
	}
	*ret_loop = loop;
	return 0;
}

static void close_fd(int fd)
{
	if (fd >= 0)
		close(fd);
}

void loop_free(struct loop *loop)
{
	if (!loop)
		return;
	while (loop->sources)
		loop_remove(loop->sources);
	bury(loop);
	while (loop->timers)
		loop_timer_free(loop->timers);
	free(loop->heap);
	close_fd(loop->timer_fd);
	close_fd(loop->wake_fd);
	close_fd(loop->epoll_fd);
	pthread_mutex_destroy(&loop->lock);
	free(loop);
}
