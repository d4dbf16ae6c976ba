/*
 * Loads that depend on each other, and copies, within the first cache and far beyond the last.
 */
#include <string.h>

#include "bench/engines/bench.h"

struct node {
	struct node *next;
	/* steps from the first node */
	uint64_t number;
	uint64_t fill[6];
};

struct chase {
	struct node *at;
	uint64_t steps, nodes;
};

/* One cycle through all nodes in random order (Sattolo's shuffle). */
static void *chase_start(size_t nodes)
{
	struct node *base = bench_pages(nodes * sizeof(*base));
	uint32_t *order = bench_pages(nodes * sizeof(*order));
	struct chase *chase = bench_pages(sizeof(*chase));
	uint64_t seed = 7;

	for (size_t i = 0; i < nodes; i++)
		order[i] = (uint32_t)i;
	for (size_t i = nodes - 1; i > 0; i--) {
		size_t other = (bench_random(&seed) >> 16) % i;
		uint32_t swap = order[i];

		order[i] = order[other];
		order[other] = swap;
	}
	for (size_t i = 0; i < nodes; i++) {
		base[order[i]].next = &base[order[(i + 1) % nodes]];
		base[order[i]].number = i;
	}
	*chase = (struct chase){&base[order[0]], 0, nodes};
	return chase;
}

#define L1_NODES   256
#define DRAM_NODES (2u << 20)
#define L1_STEPS   8192
#define DRAM_STEPS 4096

static void *chase_l1_start(const struct bench_env *env)
{
	(void)env;
	return chase_start(L1_NODES);
}

static void *chase_dram_start(const struct bench_env *env)
{
	(void)env;
	return chase_start(DRAM_NODES);
}

/* 1 if it came where it should. */
static uint64_t chase(struct chase *chase, uint64_t steps)
{
	struct node *at = chase->at;

	for (uint64_t i = 0; i < steps; i++) {
		at = at->next;
		__asm__ volatile("" : "+r"(at));
	}
	chase->at = at;
	chase->steps += steps;
	return at->number == chase->steps % chase->nodes;
}

static uint64_t chase_l1(void *state)
{
	return chase(state, L1_STEPS);
}

static uint64_t chase_dram(void *state)
{
	return chase(state, DRAM_STEPS);
}

struct copy {
	uint8_t *from, *to;
	size_t bytes;
	uint8_t stamp;
};

static void *copy_start(size_t bytes)
{
	struct copy *copy = bench_pages(sizeof(*copy));

	*copy = (struct copy){bench_pages(bytes), bench_pages(bytes), bytes, 0};
	for (size_t i = 0; i < bytes; i += 64)
		copy->from[i] = (uint8_t)(i / 64);
	memcpy(copy->to, copy->from, bytes);
	if (memcmp(copy->to, copy->from, bytes) != 0)
		bench_fail("the copy is not equal");
	return copy;
}

/* 1 if a new first and last byte have arrived. */
static uint64_t copy(struct copy *copy, unsigned int times)
{
	for (unsigned int i = 0; i < times; i++) {
		copy->from[0] = ++copy->stamp;
		copy->from[copy->bytes - 1] = copy->stamp;
		memcpy(copy->to, copy->from, copy->bytes);
		__asm__ volatile("" : : "r"(copy->to) : "memory");
		if (copy->to[0] != copy->stamp || copy->to[copy->bytes - 1] != copy->stamp)
			return 0;
	}
	return 1;
}

static void *copy_l1_start(const struct bench_env *env)
{
	(void)env;
	return copy_start(8192);
}

static void *copy_dram_start(const struct bench_env *env)
{
	(void)env;
	return copy_start(64 << 20);
}

static uint64_t copy_l1(void *state)
{
	return copy(state, 64);
}

static uint64_t copy_dram(void *state)
{
	return copy(state, 1);
}

/* The times of copies are for a KiB. */
const struct bench_work bench_memory[] = {
	{"chase_l1", L1_STEPS, 1, chase_l1_start, chase_l1, 1, NULL},
	{"chase_dram", DRAM_STEPS, 1, chase_dram_start, chase_dram, 1, NULL},
	{"memcpy_l1", 64 * 8, 1, copy_l1_start, copy_l1, 1, NULL},
	{"memcpy_dram", 65536, 1, copy_dram_start, copy_dram, 1, NULL},
	{0},
};
