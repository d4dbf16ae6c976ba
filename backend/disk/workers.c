/*
 * The worker threads of a disk: see workers.h. Threads are started when there are more jobs than threads, and stay.
 * One that waits looks for a job before it sleeps, if they come thick and fast (base/brief.h).
 *
 * Serial jobs are the work of one job, which is there while they are.
 */
#include "backend/disk/workers.h"

#include "base/brief.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/loop.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#define THREADS_MAX 64u

struct job_list {
	struct worker_job *first, **end;
};

struct workers {
	struct loop *loop;
	struct loop_call reap;
	pthread_mutex_t lock; /* what follows */
	pthread_cond_t work;
	struct job_list jobs, serial, ended;
	struct worker_job serial_job;
	bool serial_active, reap_wanted;
	_Atomic bool stopping;
	unsigned threads, threads_max, idle;
	_Atomic unsigned queued;
	bool looking; /* one of them does, before it sleeps */
	struct brief_wait wait;
	pthread_t thread[THREADS_MAX];
};

static void empty(struct job_list *list)
{
	*list = (struct job_list){.end = &list->first};
}

static void append(struct job_list *list, struct worker_job *job)
{
	job->next = NULL;
	*list->end = job;
	list->end = &job->next;
}

static struct worker_job *take_first(struct job_list *list)
{
	struct worker_job *job = list->first;

	list->first = job->next;
	if (!list->first)
		list->end = &list->first;
	return job;
}

static struct worker_job *take_job(struct workers *workers)
{
	workers->queued--;
	return take_first(&workers->jobs);
}

static void put_ended(struct workers *workers, struct worker_job *job)
{
	append(&workers->ended, job);
	if (!workers->reap_wanted) {
		workers->reap_wanted = true;
		loop_post(workers->loop, &workers->reap);
	}
}

static bool has_job(void *opaque)
{
	const struct workers *workers = opaque;

	return workers->queued || workers->stopping;
}

/* With the lock held, which is given up meanwhile. */
static void wait_for_job(struct workers *workers)
{
	const uint64_t start_ns = clock_monotonic_ns();

	workers->idle++;
	if (!workers->looking) {
		workers->looking = true;
		pthread_mutex_unlock(&workers->lock);
		brief_wait(&workers->wait, has_job, workers);
		pthread_mutex_lock(&workers->lock);
		workers->looking = false;
	}
	if (!has_job(workers)) {
		while (!has_job(workers))
			pthread_cond_wait(&workers->work, &workers->lock);
		brief_learn(&workers->wait, clock_monotonic_ns() - start_ns);
	}
	workers->idle--;
}

/* With the lock held, which is given up meanwhile. */
static void do_job(struct workers *workers, struct worker_job *job)
{
	pthread_mutex_unlock(&workers->lock);
	bool ended = job->work(job);
	pthread_mutex_lock(&workers->lock);
	if (!ended)
		put_ended(workers, job);
}

static bool do_serial_jobs(struct worker_job *serial_job)
{
	struct workers *workers = container_of(serial_job, struct workers, serial_job);

	AUTO_LOCK(&workers->lock);
	while (workers->serial.first)
		do_job(workers, take_first(&workers->serial));
	workers->serial_active = false;
	return true;
}

static void *worker_thread(void *opaque)
{
	struct workers *workers = opaque;

	AUTO_LOCK(&workers->lock);
	for (;;) {
		while (!has_job(workers))
			wait_for_job(workers);
		if (!workers->jobs.first)
			return NULL;
		do_job(workers, take_job(workers));
	}
}

static void reap(void *opaque)
{
	struct workers *workers = opaque;

	pthread_mutex_lock(&workers->lock);
	struct worker_job *job = workers->ended.first, *next;
	empty(&workers->ended);
	workers->reap_wanted = false;
	pthread_mutex_unlock(&workers->lock);
	for (; job; job = next) {
		next = job->next;
		job->done(job);
	}
}

/* With the lock held, or before there is another thread. */
static int start_thread(struct workers *workers)
{
	int code = pthread_create(&workers->thread[workers->threads], NULL, worker_thread, workers);

	if (code)
		return -code;
	pthread_setname_np(workers->thread[workers->threads++], "disk");
	return 0;
}

/* With the lock held. true: a thread has to be woken for it. */
static bool put_job(struct workers *workers, struct worker_job *job)
{
	append(&workers->jobs, job);
	workers->queued++;
	/* Without another thread those that are there do it later. */
	if (workers->queued > workers->idle && workers->threads < workers->threads_max)
		(void)start_thread(workers);
	return !workers->looking || workers->queued != 1;
}

static bool put_serial(struct workers *workers, struct worker_job *job)
{
	append(&workers->serial, job);
	if (workers->serial_active)
		return false;
	workers->serial_active = true;
	return put_job(workers, &workers->serial_job);
}

static void submit(struct workers *workers, struct worker_job *job,
	bool (*put)(struct workers *workers, struct worker_job *job))
{
	bool wake;

	{
		AUTO_LOCK(&workers->lock);
		wake = put(workers, job);
	}
	/* Whoever it wakes finds the lock free. */
	if (wake)
		pthread_cond_signal(&workers->work);
}

void workers_submit(struct workers *workers, struct worker_job *job)
{
	submit(workers, job, put_job);
}

void workers_submit_serial(struct workers *workers, struct worker_job *job)
{
	submit(workers, job, put_serial);
}

void workers_free(struct workers *workers)
{
	if (!workers)
		return;
	pthread_mutex_lock(&workers->lock);
	workers->stopping = true;
	pthread_cond_broadcast(&workers->work);
	pthread_mutex_unlock(&workers->lock);
	for (unsigned i = 0; i < workers->threads; i++)
		pthread_join(workers->thread[i], NULL);
	pthread_mutex_destroy(&workers->lock);
	pthread_cond_destroy(&workers->work);
	free(workers);
}

int workers_create(struct loop *loop, unsigned threads_max, struct workers **ret_workers)
{
	struct workers *workers = calloc(1, sizeof(*workers));

	if (!workers)
		return -ENOMEM;
	workers->loop = loop;
	workers->reap = (struct loop_call){.fn = reap, .opaque = workers};
	workers->threads_max = MIN(threads_max, THREADS_MAX);
	empty(&workers->jobs);
	empty(&workers->serial);
	workers->serial_job.work = do_serial_jobs;
	empty(&workers->ended);
	pthread_mutex_init(&workers->lock, NULL);
	pthread_cond_init(&workers->work, NULL);
	int status = start_thread(workers);
	if (status < 0) {
		workers_free(workers);
		return status;
	}
	*ret_workers = workers;
	return 0;
}
