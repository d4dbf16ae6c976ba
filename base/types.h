/*
 * The address types every room shares. They are distinct names, never mixed: a guest-physical
 * address is only meaningful to memory/, a guest-virtual (linear) one only to isa/.
 */
#ifndef LODGE_BASE_TYPES_H
#define LODGE_BASE_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint64_t gpa_t; /* guest-physical address */
typedef uint64_t gva_t; /* guest-virtual (linear) address */

#define GUEST_PAGE_SHIFT 12
#define GUEST_PAGE_SIZE  4096ull
#define GUEST_PAGE_MASK  (~(GUEST_PAGE_SIZE - 1))

#endif
