/*
 * Vector arithmetic: SSE, and AVX2 with FMA where the processor has them. All values are small
 * integers, so that the sums are exact in any order. The answers were computed with Python.
 */
#include <immintrin.h>

#include "bench/engines/bench.h"

#define AVX2 __attribute__((target("avx2,fma")))

static int has_avx2(void)
{
	return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

#define LENGTH 4096
#define SIDE   64

struct vectors {
	_Alignas(64) float a[LENGTH], b[LENGTH], c[LENGTH];
};

_Static_assert(SIDE *SIDE == LENGTH, "the matrices take the vectors' place");

static void *start(const struct bench_env *env)
{
	struct vectors *v = bench_pages(sizeof(*v));

	(void)env;
	for (int i = 0; i < LENGTH; i++) {
		v->a[i] = (float)(i * 5 % 13 - 5);
		v->b[i] = (float)(i * 3 % 7 - 2);
	}
	return v;
}

static uint64_t sse_dot(void *state)
{
	const struct vectors *v = state;
	__m128 sum[4] = {0};
	_Alignas(16) float parts[4];

	for (int i = 0; i < LENGTH; i += 16)
		for (int j = 0; j < 4; j++)
			sum[j] = _mm_add_ps(sum[j], _mm_mul_ps(_mm_load_ps(v->a + i + 4 * j),
							    _mm_load_ps(v->b + i + 4 * j)));
	_mm_store_ps(parts, _mm_add_ps(_mm_add_ps(sum[0], sum[1]), _mm_add_ps(sum[2], sum[3])));
	return (uint64_t)(int64_t)(parts[0] + parts[1] + parts[2] + parts[3]);
}

/* The trace of the product, weighted, is the answer of the matrix workloads. */
static uint64_t matrix_answer(const struct vectors *v)
{
	int64_t sum = 0;

	for (int i = 0; i < LENGTH; i += 97)
		sum = sum * 3 + (int64_t)v->c[i];
	return (uint64_t)sum;
}

static uint64_t sse_matmul(void *state)
{
	struct vectors *v = state;

	for (int row = 0; row < SIDE; row++) {
		for (int column = 0; column < SIDE; column += 16) {
			__m128 sum[4] = {0};

			for (int k = 0; k < SIDE; k++) {
				__m128 left = _mm_set1_ps(v->a[row * SIDE + k]);
				const float *right = v->b + k * SIDE + column;

				for (int j = 0; j < 4; j++)
					sum[j] = _mm_add_ps(sum[j],
						_mm_mul_ps(left, _mm_load_ps(right + 4 * j)));
			}
			for (int j = 0; j < 4; j++)
				_mm_store_ps(v->c + row * SIDE + column + 4 * j, sum[j]);
		}
	}
	return matrix_answer(v);
}

/* Bytes equal to zero among 16 KiB: integer SSE. */
static uint64_t sse_bytes(void *state)
{
	const __m128i *bytes = (const __m128i *)((const struct vectors *)state)->a;
	uint64_t count = 0;

	for (size_t i = 0; i < sizeof(float) * LENGTH / 16; i++) {
		__m128i equal = _mm_cmpeq_epi8(_mm_load_si128(bytes + i), _mm_setzero_si128());
		__m128i ones = _mm_sub_epi8(_mm_setzero_si128(), equal);
		__m128i sums = _mm_sad_epu8(ones, _mm_setzero_si128());

		count += (uint64_t)_mm_cvtsi128_si64(sums) +
			 (uint64_t)_mm_cvtsi128_si64(_mm_unpackhi_epi64(sums, sums));
	}
	return count;
}

AVX2 static uint64_t avx2_dot(void *state)
{
	const struct vectors *v = state;
	__m256 sum[4] = {0};
	_Alignas(32) float parts[8];
	float whole = 0;

	for (int i = 0; i < LENGTH; i += 32)
		for (int j = 0; j < 4; j++)
			sum[j] = _mm256_add_ps(
				sum[j], _mm256_mul_ps(_mm256_load_ps(v->a + i + 8 * j),
						_mm256_load_ps(v->b + i + 8 * j)));
	_mm256_store_ps(
		parts, _mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3])));
	for (int i = 0; i < 8; i++)
		whole += parts[i];
	return (uint64_t)(int64_t)whole;
}

AVX2 static uint64_t avx2_matmul(void *state)
{
	struct vectors *v = state;

	for (int row = 0; row < SIDE; row++) {
		for (int column = 0; column < SIDE; column += 32) {
			__m256 sum[4] = {0};

			for (int k = 0; k < SIDE; k++) {
				__m256 left = _mm256_set1_ps(v->a[row * SIDE + k]);
				const float *right = v->b + k * SIDE + column;

				for (int j = 0; j < 4; j++)
					sum[j] = _mm256_fmadd_ps(
						left, _mm256_load_ps(right + 8 * j), sum[j]);
			}
			for (int j = 0; j < 4; j++)
				_mm256_store_ps(v->c + row * SIDE + column + 8 * j, sum[j]);
		}
	}
	return matrix_answer(v);
}

/* Bits set in 16 KiB, by a table of nibbles: integer AVX2. */
AVX2 static uint64_t avx2_bytes(void *state)
{
	const __m256i *bytes = (const __m256i *)((const struct vectors *)state)->a;
	const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1,
		1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
	const __m256i low = _mm256_set1_epi8(15);
	__m256i sums = _mm256_setzero_si256();
	_Alignas(32) uint64_t parts[4];

	for (size_t i = 0; i < sizeof(float) * LENGTH / 32; i++) {
		__m256i value = _mm256_load_si256(bytes + i);
		__m256i high = _mm256_and_si256(_mm256_srli_epi16(value, 4), low);
		__m256i count =
			_mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(value, low)),
				_mm256_shuffle_epi8(table, high));

		sums = _mm256_add_epi64(sums, _mm256_sad_epu8(count, _mm256_setzero_si256()));
	}
	_mm256_store_si256((__m256i *)parts, sums);
	return parts[0] + parts[1] + parts[2] + parts[3];
}

const struct bench_work bench_vector[] = {
	{"sse_dot", LENGTH, 0x1009, start, sse_dot, 1, NULL},
	{"sse_matmul", SIDE *SIDE *SIDE, 0x10739bf9c67f64dc, start, sse_matmul, 1, NULL},
	{"sse_bytes", 4 * LENGTH, 0x24ec, start, sse_bytes, 1, NULL},
	{"avx2_dot", LENGTH, 0x1009, start, avx2_dot, 1, has_avx2},
	{"avx2_matmul", SIDE *SIDE *SIDE, 0x10739bf9c67f64dc, start, avx2_matmul, 1, has_avx2},
	{"avx2_bytes", 4 * LENGTH, 0x33b2, start, avx2_bytes, 1, has_avx2},
	{0},
};
