/*
 * The table of CPUID flags (cpuid_flags.c): what a CPU model can be made of. For cpuid.c and cpu_choice.c.
 */
#ifndef LODGE_ISA_X86_CPUID_FLAGS_H
#define LODGE_ISA_X86_CPUID_FLAGS_H

#include "isa/x86/cpuid.h"

enum x86_cpuid_reg { EAX, EBX, ECX, EDX };

/* Who can have a flag, and which models do. */
enum x86_cpuid_need {
	NEED_NOTHING = 0,
	NEED_ROWS = 1,	   /* shown if the instruction table has a row of it */
	NEED_HOST = 2,	   /* shown if the host has it: its own instructions do the work */
	NEED_HIDDEN = 4,   /* not shown, but understood in a model made elsewhere */
	NEED_DERIVED = 8,  /* second place of a bit: shown if the first one is */
	NEED_AMD = 16,	   /* AMD's processors only */
	NEED_INTEL = 32,   /* all others */
	NEED_MACHINE = 64, /* every model has it: the board's, or any 64-bit processor's */
	NEED_FIXED = 128,  /* and it can't be taken away */
};

struct x86_cpuid_flag {
	const char *name; /* as in Linux's /proc/cpuinfo; NULL: can't be chosen */
	uint16_t feature; /* enum x86_feature; X86_F_BASE: a bit the decoder does not care for */
	uint16_t base;	  /* the feature without which it makes no sense, or X86_F_BASE */
	uint8_t need;	  /* enum x86_cpuid_need */
	uint8_t level;	  /* the first of x86-64-v1 .. v3 that has it (psABI), or 0 */
	uint8_t reg, bit; /* enum x86_cpuid_reg */
	uint32_t leaf, subleaf;
};

extern const struct x86_cpuid_flag x86_cpuid_flags[];
extern const unsigned x86_cpuid_flag_count; /* not more than X86_CPUID_FLAGS_MAX */

#define XSAVE_LEGACY 576u /* FXSAVE area and header */
#define XSAVE_AVX    256u

/* The leaf, or NULL. */
const struct x86_cpuid_leaf *x86_cpuid_leaf_find(
	const struct x86_cpuid_model *model, uint32_t leaf, uint32_t subleaf);

/* The flag of that name, or -1. Takes a few second names too, such as lzcnt for abm. */
int x86_cpuid_flag_find(const char *name, size_t length);

/* The flag that is a feature's own, or -1. */
int x86_cpuid_flag_of(unsigned feature);

static inline bool x86_cpuid_set_has(const struct x86_cpuid_flag_set *set, unsigned flag)
{
	return set->bits[flag / 64] >> (flag % 64) & 1;
}

static inline void x86_cpuid_set_put(struct x86_cpuid_flag_set *set, unsigned flag, bool on)
{
	const uint64_t bit = UINT64_C(1) << (flag % 64);

	set->bits[flag / 64] = on ? set->bits[flag / 64] | bit : set->bits[flag / 64] & ~bit;
}

#endif
