/*
 * A host's CPUID as a list of rows, for the tests of CPU models.
 */
#ifndef LODGE_TESTS_CPUID_ROWS_H
#define LODGE_TESTS_CPUID_ROWS_H

#include "base/util.h"

#include <stdint.h>
#include <string.h>

struct cpuid_row {
	uint32_t leaf, subleaf, regs[4];
};

/* What is not in the list is 0. */
static inline void cpuid_rows_find(const struct cpuid_row *rows, unsigned count, uint32_t leaf, uint32_t subleaf,
	uint32_t regs[4])
{
	memset(regs, 0, 16);
	for (unsigned i = 0; i < count; i++)
		if (rows[i].leaf == leaf && rows[i].subleaf == subleaf)
			memcpy(regs, rows[i].regs, 16);
}

#endif
