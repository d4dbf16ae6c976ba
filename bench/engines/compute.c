/*
 * Computation with general registers and scalar SSE: no system call, little memory. The answers
 * were computed with Python, sha256 and crc32 by its own hashlib and zlib.
 */
#include <stdlib.h>
#include <string.h>

#include "bench/engines/bench.h"

/* The compiler must take this value as unknown here. */
#define OPAQUE(value) __asm__ volatile("" : "+r"(value))

static uint64_t register_loop(void *state)
{
	uint64_t x = 0x9e3779b97f4a7c15, y = 0;

	(void)state;
	for (uint64_t i = 0; i < 65536; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x += i;
		y = (y << 5 | y >> 59) + x;
		OPAQUE(y);
	}
	return y;
}

#define BRANCHES 32768

static void *random_bytes_start(const struct bench_env *env)
{
	uint8_t *bytes = bench_pages(BRANCHES);
	uint64_t seed = 88172645463325252;

	(void)env;
	for (size_t i = 0; i < BRANCHES; i++)
		bytes[i] = (uint8_t)(bench_random(&seed) >> 24);
	return bytes;
}

/* Branches that depend on data. The empty statements keep the compiler from conditional moves. */
static uint64_t branches(void *state)
{
	const uint8_t *bytes = state;
	uint64_t sum = 0;

	for (size_t i = 0; i < BRANCHES; i++) {
		if (bytes[i] & 1) {
			__asm__ volatile("");
			sum += bytes[i];
		} else if (bytes[i] & 2) {
			__asm__ volatile("");
			sum ^= i;
		} else {
			__asm__ volatile("");
			sum -= 3;
		}
	}
	return sum;
}

/* The empty statements keep the compiler from turning one of the calls into a loop. */
__attribute__((noinline)) static uint64_t fib(uint64_t n)
{
	uint64_t left, right;

	if (n < 2)
		return n;
	left = fib(n - 1);
	OPAQUE(left);
	right = fib(n - 2);
	OPAQUE(right);
	return left + right;
}

static uint64_t calls(void *state)
{
	(void)state;
	return fib(20);
}

typedef uint64_t (*step_fn)(uint64_t x);

#define STEP(number, expression)                                           \
	__attribute__((noinline)) static uint64_t step##number(uint64_t x) \
	{                                                                  \
		return expression;                                         \
	}
STEP(0, x + 1)
STEP(1, x ^ 0x55)
STEP(2, x * 3)
STEP(3, x - 7)
STEP(4, x ^ x >> 3)
STEP(5, x + (x << 2))
STEP(6, ~x)
STEP(7, x << 7 | x >> 57)

static const step_fn steps[8] = {step0, step1, step2, step3, step4, step5, step6, step7};

static uint64_t indirect_calls(void *state)
{
	const uint8_t *bytes = state;
	uint64_t x = 1;

	for (size_t i = 0; i < 8192; i++)
		x = steps[bytes[i] & 7](x);
	return x;
}

/* A switch with a table: the indirect jump of interpreters. */
static uint64_t indirect_jumps(void *state)
{
	const uint8_t *bytes = state;
	uint64_t a = 1, b = 2, c = 3;

	for (size_t i = 0; i < 8192; i++) {
		switch (bytes[i] & 7) {
		case 0: a += b; break;
		case 1: b ^= c; break;
		case 2: c -= a; break;
		case 3: a = a << 3 | a >> 61; break;
		case 4: b += i; break;
		case 5: c *= 5; break;
		case 6: a ^= b + c; break;
		case 7: b = ~b; break;
		}
		OPAQUE(a);
	}
	return a ^ b ^ c;
}

#define SORTED 4096

struct sort_state {
	uint64_t input[SORTED], work[SORTED];
};

static void *sort_start(const struct bench_env *env)
{
	struct sort_state *state = bench_pages(sizeof(*state));
	uint64_t seed = 42;

	(void)env;
	for (size_t i = 0; i < SORTED; i++)
		state->input[i] = bench_random(&seed);
	return state;
}

static void insertion_sort(uint64_t *values, size_t count)
{
	for (size_t i = 1; i < count; i++) {
		uint64_t value = values[i];
		size_t at = i;

		for (; at > 0 && values[at - 1] > value; at--)
			values[at] = values[at - 1];
		values[at] = value;
	}
}

static void quick_sort(uint64_t *values, size_t count)
{
	while (count > 16) {
		uint64_t pivot = values[count / 2];
		size_t low = 0, high = count - 1;

		for (;; low++, high--) {
			while (values[low] < pivot)
				low++;
			while (values[high] > pivot)
				high--;
			if (low >= high)
				break;
			uint64_t swap = values[low];
			values[low] = values[high];
			values[high] = swap;
		}
		quick_sort(values + high + 1, count - high - 1);
		count = high + 1;
	}
	insertion_sort(values, count);
}

static uint64_t sort(void *opaque)
{
	struct sort_state *state = opaque;
	uint64_t sum = 0;

	memcpy(state->work, state->input, sizeof(state->work));
	quick_sort(state->work, SORTED);
	for (size_t i = 0; i < SORTED; i++) {
		if (i && state->work[i - 1] > state->work[i])
			return 0;
		sum = sum * 31 + state->work[i];
	}
	return sum;
}

static int compare_values(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

	return (a > b) - (a < b);
}

/* The C library's sort: a call by pointer for each comparison. */
static uint64_t sort_library(void *opaque)
{
	struct sort_state *state = opaque;
	uint64_t sum = 0;

	memcpy(state->work, state->input, sizeof(state->work));
	qsort(state->work, SORTED, sizeof(state->work[0]), compare_values);
	for (size_t i = 0; i < SORTED; i++)
		sum = sum * 31 + state->work[i];
	return sum;
}

#define HASHED 4096

static void *hash_start(const struct bench_env *env)
{
	uint8_t *bytes = bench_pages(HASHED);

	(void)env;
	for (size_t i = 0; i < HASHED; i++)
		bytes[i] = (uint8_t)(i * 7 + i / 256);
	return bytes;
}

static uint32_t rotate(uint32_t x, unsigned int count)
{
	return x >> count | x << (32 - count);
}

/* FIPS 180-4, section 4.2.2 */
static const uint32_t sha256_k[64] = {0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b,
	0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3,
	0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6,
	0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d,
	0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
	0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585,
	0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
	0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa,
	0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static void sha256_block(uint32_t hash[8], const uint8_t *block)
{
	uint32_t w[64], s[8];

	for (int i = 0; i < 16; i++) {
		memcpy(&w[i], block + 4 * i, 4);
		w[i] = __builtin_bswap32(w[i]);
	}
	for (int i = 16; i < 64; i++) {
		uint32_t s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
		uint32_t s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;

		w[i] = w[i - 16] + s0 + w[i - 7] + s1;
	}
	memcpy(s, hash, sizeof(s));
	for (int i = 0; i < 64; i++) {
		uint32_t e = s[4], a = s[0];
		uint32_t t1 = s[7] + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) +
			      ((e & s[5]) ^ (~e & s[6])) + sha256_k[i] + w[i];
		uint32_t t2 = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) +
			      ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));

		memmove(s + 1, s, 7 * sizeof(s[0]));
		s[4] += t1;
		s[0] = t1 + t2;
	}
	for (int i = 0; i < 8; i++)
		hash[i] += s[i];
}

/* The first 64 bits of the digest. */
static uint64_t sha256(void *state)
{
	static const uint32_t begin[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
		0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
	uint8_t last[64] = {0x80};
	uint64_t bits = __builtin_bswap64((uint64_t)HASHED * 8);
	uint32_t hash[8];

	memcpy(hash, begin, sizeof(hash));
	for (size_t at = 0; at < HASHED; at += 64)
		sha256_block(hash, (const uint8_t *)state + at);
	memcpy(last + 56, &bits, 8);
	sha256_block(hash, last);
	return (uint64_t)hash[0] << 32 | hash[1];
}

struct crc_state {
	const uint8_t *bytes;
	uint32_t table[256];
};

static void *crc_start(const struct bench_env *env)
{
	struct crc_state *state = bench_pages(sizeof(*state));

	state->bytes = hash_start(env);
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t value = i;

		for (int bit = 0; bit < 8; bit++)
			value = value >> 1 ^ (value & 1 ? 0xedb88320 : 0);
		state->table[i] = value;
	}
	return state;
}

static uint64_t crc32(void *opaque)
{
	const struct crc_state *state = opaque;
	uint32_t crc = ~0u;

	for (size_t i = 0; i < HASHED; i++)
		crc = crc >> 8 ^ state->table[(crc ^ state->bytes[i]) & 255];
	return ~crc;
}

#define SIDE 32

static uint64_t fp_mandelbrot(void *state)
{
	uint64_t sum = 0;

	(void)state;
	for (int row = 0; row < SIDE; row++) {
		for (int column = 0; column < SIDE; column++) {
			double cr = -2 + column * (3.0 / SIDE), ci = -1.5 + row * (3.0 / SIDE);
			double r = 0, i = 0;
			int turn = 0;

			for (; turn < 64 && r * r + i * i < 4; turn++) {
				double next = r * r - i * i + cr;

				i = 2 * r * i + ci;
				r = next;
			}
			sum = sum * 3 + (uint64_t)turn;
		}
	}
	return sum;
}

struct body {
	double place[3], speed[3], mass;
};

static double root(double x)
{
	__asm__("sqrtsd %0, %0" : "+x"(x));
	return x;
}

static void attract(struct body *a, struct body *b)
{
	double delta[3], square = 0, force;

	for (int i = 0; i < 3; i++) {
		delta[i] = a->place[i] - b->place[i];
		square += delta[i] * delta[i];
	}
	force = 0.01 / (square * root(square));
	for (int i = 0; i < 3; i++) {
		a->speed[i] -= delta[i] * b->mass * force;
		b->speed[i] += delta[i] * a->mass * force;
	}
}

/* Five bodies, 100 steps from the same beginning; the bits of one coordinate are the answer. */
static uint64_t fp_bodies(void *state)
{
	struct body bodies[5];
	uint64_t bits;

	(void)state;
	for (int i = 0; i < 5; i++)
		bodies[i] = (struct body){{i * 1.5, i * i * 0.25, 1.0 - i * 0.5},
			{0.1 * i, 0.3 - 0.1 * i, 0.05}, 1.0 / (i + 1)};
	for (int step = 0; step < 100; step++) {
		for (int i = 0; i < 5; i++)
			for (int j = i + 1; j < 5; j++)
				attract(&bodies[i], &bodies[j]);
		for (int i = 0; i < 5; i++)
			for (int axis = 0; axis < 3; axis++)
				bodies[i].place[axis] += 0.01 * bodies[i].speed[axis];
	}
	memcpy(&bits, &bodies[0].place[0], sizeof(bits));
	return bits;
}

const struct bench_work bench_compute[] = {
	{"register_loop", 65536, 0x4faf3d55a37c57b4, NULL, register_loop, 1, NULL},
	{"branches", BRANCHES, 0x1c3ca7, random_bytes_start, branches, 1, NULL},
	{"calls_returns", 21891, 6765, NULL, calls, 1, NULL},
	{"indirect_calls", 8192, 0xec39886a24ae9289, random_bytes_start, indirect_calls, 1, NULL},
	{"indirect_jumps", 8192, 0x165c3d52660b48b2, random_bytes_start, indirect_jumps, 1, NULL},
	{"sort", SORTED, 0xdb450da530f40c63, sort_start, sort, 1, NULL},
	{"sort_library", SORTED, 0xdb450da530f40c63, sort_start, sort_library, 1, NULL},
	{"sha256", HASHED, 0xd24ac44c83cce842, hash_start, sha256, 1, NULL},
	{"crc32", HASHED, 0x462c1e21, crc_start, crc32, 1, NULL},
	{"fp_mandelbrot", SIDE *SIDE, 0x7d29c84d16d06590, NULL, fp_mandelbrot, 1, NULL},
	{"fp_bodies", 100, 0x3fbd3b25beeab603, NULL, fp_bodies, 1, NULL},
	{0},
};
