/*
 * Two threads on two processors: the same word, the same lock, pipes across, and a TLB that must be
 * flushed on the other processor.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench/engines/bench.h"

struct pair {
	void *(*body)(struct pair *pair, unsigned int me);
	_Alignas(64) _Atomic uint64_t word;
	_Alignas(64) pthread_mutex_t lock;
	uint64_t guarded;
	int there[2], back[2];
	_Atomic int done;
	uint8_t *page;
};

struct half {
	struct pair *pair;
	unsigned int me;
};

static void *half_main(void *opaque)
{
	struct half *half = opaque;

	bench_pin(half->me);
	return half->pair->body(half->pair, half->me);
}

/* Runs the body on both processors, and waits for both. */
static void run_pair(struct pair *pair)
{
	struct half halves[2] = {{pair, 0}, {pair, 1}};
	pthread_t threads[2];

	for (int i = 0; i < 2; i++)
		if (pthread_create(&threads[i], NULL, half_main, &halves[i]))
			bench_fail("no thread");
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
}

static void *pair_start(void *(*body)(struct pair *, unsigned int))
{
	struct pair *pair = bench_pages(sizeof(*pair));

	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		bench_fail("there is one processor only");
	*pair = (struct pair){.body = body, .lock = PTHREAD_MUTEX_INITIALIZER};
	if (pipe(pair->there) || pipe(pair->back))
		bench_fail("no pipes");
	return pair;
}

#define ADDS   50000
#define LOCKS  10000
#define PINGS  200
#define UNMAPS 50

static void *add_body(struct pair *pair, unsigned int me)
{
	(void)me;
	for (int i = 0; i < ADDS; i++)
		atomic_fetch_add(&pair->word, 1);
	return NULL;
}

static void *add_start(const struct bench_env *env)
{
	(void)env;
	return pair_start(add_body);
}

static uint64_t adds(void *state)
{
	struct pair *pair = state;

	pair->word = 0;
	run_pair(pair);
	return pair->word;
}

static void *lock_body(struct pair *pair, unsigned int me)
{
	(void)me;
	for (int i = 0; i < LOCKS; i++) {
		pthread_mutex_lock(&pair->lock);
		pair->guarded++;
		pthread_mutex_unlock(&pair->lock);
	}
	return NULL;
}

static void *lock_start(const struct bench_env *env)
{
	(void)env;
	return pair_start(lock_body);
}

static uint64_t locks(void *state)
{
	struct pair *pair = state;

	pair->guarded = 0;
	run_pair(pair);
	return pair->guarded;
}

static void *ping_body(struct pair *pair, unsigned int me)
{
	char byte = 0;

	for (int i = 0; i < PINGS; i++) {
		if (me == 0)
			pair->word += write(pair->there[1], &byte, 1) == 1 &&
				      read(pair->back[0], &byte, 1) == 1 && byte == (char)(i + 1);
		else if (read(pair->there[0], &byte, 1) == 1 && ++byte == (char)(i + 1))
			pair->word += write(pair->back[1], &byte, 1) == 1;
	}
	return NULL;
}

static void *ping_start(const struct bench_env *env)
{
	(void)env;
	return pair_start(ping_body);
}

/* Both halves count: twice the round trips. */
static uint64_t pings(void *state)
{
	struct pair *pair = state;

	pair->word = 0;
	run_pair(pair);
	return pair->word;
}

/* One takes pages away while the other runs in the same memory: its TLB has to be told. */
static void *unmap_body(struct pair *pair, unsigned int me)
{
	if (me == 1) {
		while (!atomic_load(&pair->done))
			pair->guarded++;
		return NULL;
	}
	for (int i = 0; i < UNMAPS; i++) {
		volatile uint8_t *page = pair->page;

		*page = (uint8_t)i;
		pair->word += madvise(pair->page, 4096, MADV_DONTNEED) == 0 && *page == 0;
	}
	atomic_store(&pair->done, 1);
	return NULL;
}

static void *unmap_start(const struct bench_env *env)
{
	struct pair *pair = pair_start(unmap_body);

	(void)env;
	pair->page = bench_pages(4096);
	return pair;
}

static uint64_t unmaps(void *state)
{
	struct pair *pair = state;

	pair->word = 0;
	pair->done = 0;
	run_pair(pair);
	return pair->word;
}

const struct bench_work bench_threads[] = {
	{"smp_atomic_add", ADDS, 2 * ADDS, add_start, adds, 2, NULL},
	{"smp_mutex", LOCKS, 2 * LOCKS, lock_start, locks, 2, NULL},
	{"smp_pipe", PINGS, 2 * PINGS, ping_start, pings, 2, NULL},
	{"smp_unmap", UNMAPS, UNMAPS, unmap_start, unmaps, 2, NULL},
	{0},
};
