/*
 * The differential harness's numbers: random, with the special values of each type far more often than
 * chance would have them.
 */
#include "gen.h"

#include "base/util.h"

uint64_t diff_integer(struct diff_rng *rng)
{
	static const uint64_t edges[] = {0, 1, 2, ~0ull, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff,
		0x7fffffff, 0x80000000, 0xffffffff, 0x7fffffffffffffff, 0x8000000000000000};
	uint64_t r = diff_random(rng);

	switch (diff_pick(rng, 8)) {
	case 0: return edges[diff_pick(rng, ARRAY_SIZE(edges))];
	case 1: return edges[diff_pick(rng, ARRAY_SIZE(edges))] + diff_pick(rng, 5) - 2;
	case 2: return r & 0xff;
	case 3: return (uint64_t)((int64_t)r >> diff_pick(rng, 64));
	case 4: return r >> diff_pick(rng, 64);
	case 5: return BIT(diff_pick(rng, 64));
	default: return r;
	}
}

static uint32_t single(struct diff_rng *rng)
{
	static const uint32_t special[] = {0, 0x80000000, 0x7f800000, 0xff800000, 0x7fc00000,
		0x7fa00000, 0xffc12345, 1, 0x007fffff, 0x00800000, 0x3f800000, 0x7f7fffff,
		0x4b000000, 0x4f000000, 0xcf000000, 0x5f000000, 0x3f000000, 0xbf000000, 0x40200000};
	uint32_t r = (uint32_t)diff_random(rng);

	switch (diff_pick(rng, 5)) {
	case 0: return special[diff_pick(rng, ARRAY_SIZE(special))];
	case 1: return (r & 0x80ffffff) | (0x3e + diff_pick(rng, 4)) << 24;
	case 2: return (r & 0x807fffff) | diff_pick(rng, 3) << 23;
	default: return r;
	}
}

static uint64_t real(struct diff_rng *rng)
{
	static const uint64_t special[] = {0, BIT(63), 0x7ff0000000000000, 0xfff0000000000000,
		0x7ff8000000000000, 0x7ff4000000000000, 0xfff8123456789abc, 1, 0x000fffffffffffff,
		0x0010000000000000, 0x3ff0000000000000, 0x7fefffffffffffff, 0x41e0000000000000,
		0xc1e0000000000000, 0x43e0000000000000, 0x3fe0000000000000, 0x36a0000000000000,
		0x47efffffefffffff, 0x380fffffffffffff};
	uint64_t r = diff_random(rng);

	switch (diff_pick(rng, 5)) {
	case 0: return special[diff_pick(rng, ARRAY_SIZE(special))];
	case 1: return (r & 0x800fffffffffffff) | (uint64_t)(0x3f0 + diff_pick(rng, 32)) << 52;
	case 2: return (r & 0x800fffffffffffff) | (uint64_t)diff_pick(rng, 3) << 52;
	default: return r;
	}
}

/* Sign and exponent, then the significand with its explicit one. */
void diff_extended(struct diff_rng *rng, uint8_t to[10])
{
	static const struct {
		uint16_t exponent;
		uint64_t significand;
	} special[] = {
		{0, 0},
		{0x7fff, BIT(63)},
		{0x7fff, BIT(63) | BIT(62)},
		{0x7fff, BIT(63) | 1},
		{0x3fff, BIT(63)},
		{0, 1},
		{0, BIT(63)},
		{1, BIT(63)},
		{0x7ffe, ~0ull},
		{0x7fff, 0},
		{0x7fff, 1},
		{0x3fff, 1},
		{0x4000, 0xc90fdaa22168c235},
		{0x403d, BIT(63)},
		{0x403e, BIT(63)},
		{0x401e, BIT(63)},
		{0x3ffe, BIT(63)},
	};
	uint16_t exponent = (uint16_t)(0x3ff0 + diff_pick(rng, 64));
	uint64_t significand = diff_random(rng) | BIT(63);
	const unsigned kind = diff_pick(rng, 10);

	if (kind < 3) {
		const unsigned i = diff_pick(rng, ARRAY_SIZE(special));
		exponent = special[i].exponent;
		significand = special[i].significand;
	} else if (kind == 3) {
		exponent = (uint16_t)diff_random(rng) & 0x7fff;
	} else if (kind == 4) {
		significand &= ~BIT(63);
	} else if (kind == 5) {
		significand &= ~0ull << diff_pick(rng, 64);
	}
	exponent |= (uint16_t)(diff_pick(rng, 2) << 15);
	memcpy(to, &significand, 8);
	memcpy(to + 8, &exponent, 2);
}

void diff_values(struct diff_rng *rng, uint8_t *to, unsigned size_bytes)
{
	const unsigned kind = diff_pick(rng, 4);

	if (size_bytes == 10) {
		diff_extended(rng, to);
		return;
	}
	for (unsigned at = 0; at < size_bytes; at += 8) {
		uint64_t value = diff_integer(rng);
		if (kind == 0)
			value = real(rng);
		else if (kind == 1)
			value = single(rng) | (uint64_t)single(rng) << 32;
		memcpy(to + at, &value, MIN(size_bytes - at, 8u));
	}
}

void diff_pattern(uint64_t seed, unsigned number, uint8_t *to)
{
	struct diff_rng rng = {seed ^ (number + 1) * 0xd1342543de82ef95ull};

	for (unsigned at = 0; at < DIFF_DATA_BYTES; at += 16)
		diff_values(&rng, to + at, 16);
}
