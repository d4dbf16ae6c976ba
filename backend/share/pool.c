/*
 * The threads of a share: each takes a request, serves it, and takes the next. There are as many as were ever wanted at
 * once, up to a few: file systems of the network may hold one up for long.
 *
 * Each has a umask of its own (0, for the guest has applied that of the process which asks), and leaves the process's
 * shared file-system attributes for it.
 */
#include "backend/share/internal.h"

#include <sched.h>

#define THREADS_MAX 8

struct worker {
	struct pool *pool;
	pthread_t thread;
	struct scratch scratch;
};

struct pool {
	struct share *share;
	pthread_mutex_t lock;
	pthread_cond_t wake;
	struct fs_request *first, **last;
	uint64_t session; /* requests of an older one end without effect */
	unsigned queued, idle, workers;
	bool bury;   /* what has died is to be closed */
	bool end;    /* the session is to be ended, before any request */
	bool ending; /* a thread does so */
	bool stop;
	struct worker *worker[THREADS_MAX];
};

/* The next two are called with the lock held, and drop it in between. */
static void serve(struct pool *pool, struct scratch *scratch)
{
	struct fs_request *request = pool->first;
	const bool alive = request->session == pool->session;

	pool->first = request->next;
	pool->queued--;
	if (!pool->first)
		pool->last = &pool->first;
	pthread_mutex_unlock(&pool->lock);
	request->done(request, alive ? share_serve(pool->share, scratch, request) : 0);
	nodes_bury(&pool->share->nodes);
	pthread_mutex_lock(&pool->lock);
}

static void tidy(struct pool *pool)
{
	const bool end = pool->end;

	pool->ending = end;
	pool->end = pool->bury = false;
	pthread_mutex_unlock(&pool->lock);
	if (end)
		share_end_session(pool->share);
	nodes_bury(&pool->share->nodes);
	pthread_mutex_lock(&pool->lock);
	if (end) {
		pool->ending = false;
		pthread_cond_broadcast(&pool->wake);
	}
}

static void *worker_main(void *opaque)
{
	struct worker *worker = opaque;
	struct pool *pool = worker->pool;

	if (unshare(CLONE_FS) == 0)
		umask(0);
	AUTO_LOCK(&pool->lock);
	for (;;) {
		if (pool->end || pool->bury) {
			tidy(pool);
		} else if (pool->first && !pool->ending) {
			serve(pool, &worker->scratch);
		} else if (pool->stop) {
			return NULL;
		} else {
			pool->idle++;
			pthread_cond_wait(&pool->wake, &pool->lock);
			pool->idle--;
		}
	}
}

/* With the lock held. Errors: what pthread_create() says, -ENOMEM. */
static int add_worker(struct pool *pool)
{
	AUTO_FREE struct worker *worker = malloc(sizeof(*worker));

	if (!worker)
		return -ENOMEM;
	worker->pool = pool;
	int code = pthread_create(&worker->thread, NULL, worker_main, worker);
	if (code)
		return -code;
	pthread_setname_np(worker->thread, "share");
	pool->worker[pool->workers++] = take_ptr(&worker);
	return 0;
}

int pool_create(struct pool **ret_pool, struct share *share)
{
	struct pool *pool = calloc(1, sizeof(*pool));

	if (!pool)
		return -ENOMEM;
	*pool = (struct pool){.share = share, .last = &pool->first};
	pthread_mutex_init(&pool->lock, NULL);
	pthread_cond_init(&pool->wake, NULL);
	/* The first one is there for certain, the others if they can be had. */
	pthread_mutex_lock(&pool->lock);
	int status = add_worker(pool);
	pthread_mutex_unlock(&pool->lock);
	if (status < 0)
		pool_free(pool);
	else
		*ret_pool = pool;
	return status;
}

void pool_free(struct pool *pool)
{
	if (!pool)
		return;
	pthread_mutex_lock(&pool->lock);
	pool->stop = true;
	pthread_cond_broadcast(&pool->wake);
	pthread_mutex_unlock(&pool->lock);
	for (unsigned i = 0; i < pool->workers; i++) {
		pthread_join(pool->worker[i]->thread, NULL);
		free(pool->worker[i]);
	}
	pthread_cond_destroy(&pool->wake);
	pthread_mutex_destroy(&pool->lock);
	free(pool);
}

void pool_submit(struct pool *pool, struct fs_request *request)
{
	AUTO_LOCK(&pool->lock);
	request->session = pool->session;
	request->next = NULL;
	*pool->last = request;
	pool->last = &request->next;
	pool->queued++;
	if (pool->queued > pool->idle && pool->workers < THREADS_MAX)
		(void)!add_worker(pool);
	pthread_cond_signal(&pool->wake);
}

void pool_abandon(struct pool *pool)
{
	AUTO_LOCK(&pool->lock);
	pool->session++;
	pool->end = true;
	pthread_cond_signal(&pool->wake);
}

void pool_bury(struct pool *pool)
{
	AUTO_LOCK(&pool->lock);
	pool->bury = true;
	pthread_cond_signal(&pool->wake);
}
