/*
 * Small macros that C lacks. Arguments are evaluated once unless said otherwise.
 */
#ifndef LODGE_BASE_UTIL_H
#define LODGE_BASE_UTIL_H

#include <stddef.h>
#include <stdint.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

/* Numbered names, so that MIN(MIN(a, b), c) does not shadow its own variables. */
#define UTIL_PASTE_(a, b) a##b
#define UTIL_PASTE(a, b)  UTIL_PASTE_(a, b)
#define UTIL_PICK(op, a, b, x, y)      \
	({                             \
		__typeof__(a) x = (a); \
		__typeof__(b) y = (b); \
		x op y ? x : y;        \
	})
#define MIN(a, b) \
	UTIL_PICK(<, a, b, UTIL_PASTE(min_a_, __COUNTER__), UTIL_PASTE(min_b_, __COUNTER__))
#define MAX(a, b) \
	UTIL_PICK(>, a, b, UTIL_PASTE(max_a_, __COUNTER__), UTIL_PASTE(max_b_, __COUNTER__))

/* align is a power of two and is evaluated more than once. ALIGN_UP wraps to 0 past the type's end. */
#define ALIGN_DOWN(x, align) ((x) & ~((__typeof__(x))(align)-1))
#define ALIGN_UP(x, align)   ALIGN_DOWN((x) + ((__typeof__(x))(align)-1), align)
#define IS_ALIGNED(x, align) (((x) & ((__typeof__(x))(align)-1)) == 0)

#define BIT(n) (1ULL << (n))
/* The bits hi..lo, both included; 63 >= hi >= lo. */
#define BIT_MASK(hi, lo) ((~0ULL >> (63 - (hi))) & (~0ULL << (lo)))

/* The struct of the given type whose field `member` is at ptr. */
#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#define MUST_CHECK		      __attribute__((warn_unused_result))
#define PRINTF_LIKE(fmt_index, first) __attribute__((format(printf, fmt_index, first)))

#define KIB(n) ((uint64_t)(n) << 10)
#define MIB(n) ((uint64_t)(n) << 20)
#define GIB(n) ((uint64_t)(n) << 30)

#endif
