/*
 * The guest that cases run in, where it is software that runs them: a processor in ring 3 of long mode whose
 * linear addresses are those of the native process.
 */
#ifndef LODGE_TESTS_DIFF_GUEST_H
#define LODGE_TESTS_DIFF_GUEST_H

#include "diff.h"

#include "isa/x86/cpu.h"
#include "isa/x86/cpuid.h"

#define DIFF_VECTORS	32
#define DIFF_GUEST_CODE 0x10000u /* guest-physical */
#define DIFF_GUEST_DATA 0x20000u

struct diff_guest {
	struct guest_memory *memory;
	struct x86_cpuid_model model;
	uint8_t *code, *data;
	const struct diff_shared *shared;
	int pattern_now; /* that the data pages have; -1: none */
	bool alias;	 /* DIFF_ALIAS is mapped */
};

/* Memory with tables, code and data in it. diff_guest_done() also after a failure. */
int diff_guest_init(struct diff_guest *guest, const struct diff_shared *shared);
void diff_guest_done(struct diff_guest *guest);

/* System registers; and features that are as the host's are dropped, if it has them not. */
void diff_guest_processor(struct x86_cpu *cpu);

void diff_guest_load(struct x86_cpu *cpu, const struct diff_state *in);
void diff_guest_save(const struct x86_cpu *cpu, struct diff_state *out);

/* See to it that the data pages hold the case's pattern, which diff_collect_data() puts back, and that the code is
 * mapped as the case wants it. */
void diff_guest_begin(struct diff_guest *guest, struct x86_cpu *cpu, const struct diff_case *c);

/*
 * For an engine that delivers exceptions: each handler is a HLT. What was delivered before the processor
 * halted: fills vector, error, CR2, and what of the state is in the frame. Returns the vector, or DIFF_DIED: it
 * is not in a handler.
 */
unsigned diff_guest_delivered(
	const struct diff_guest *guest, const struct x86_cpu *cpu, struct diff_result *r);

#endif
