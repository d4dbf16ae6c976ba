/*
 * Comparing two machines: their processors' states field by field, their RAM page by page.
 */
#ifndef LODGE_TESTS_LOCKSTEP_COMPARE_H
#define LODGE_TESTS_LOCKSTEP_COMPARE_H

#include "isa/x86/state.h"
#include "memory/memory.h"

#include <stdio.h>

/* Are they the same but for the RFLAGS bits in dead_flags? Fast where they are. */
bool compare_states(const struct x86_state *a, const struct x86_state *b, uint64_t dead_flags);
/* One line for each field that differs. */
void compare_print_states(FILE *out, const struct x86_state *a, const struct x86_state *b,
	uint64_t dead_flags, const char *name_a, const char *name_b);

/* Two memories of one layout. */
struct compare_ram {
	struct guest_memory *memory[2];
	uint64_t *dirty[2]; /* room for the largest region's bits */
};

/* Both log from here on. Errors: -ENOMEM. */
int compare_ram_init(struct compare_ram *ram, struct guest_memory *a, struct guest_memory *b);
void compare_ram_done(struct compare_ram *ram);
/* Compare the pages that either wrote since the last time, by the dirty logs, which the engines have brought up
 * to date; `whole`: all pages. False: *ret_gpa is the first byte that differs. */
bool compare_ram(struct compare_ram *ram, bool whole, gpa_t *ret_gpa);
/* The 16 bytes around gpa in both. */
void compare_print_ram(FILE *out, const struct compare_ram *ram, gpa_t gpa, const char *name_a,
	const char *name_b);

#endif
