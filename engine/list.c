/*
 * The engines there are, and the choice among them.
 */
#include "engine/engine.h"
#include <stddef.h>
#include <string.h>

const struct engine_ops *const engine_list[] = {
	&engine_kvm_ops,
	&engine_jit_ops,
	&engine_interp_ops,
	NULL,
};

const struct engine_ops *engine_find(const char *name)
{
	for (unsigned i = 0; engine_list[i]; i++)
		if (strcmp(engine_list[i]->name, name) == 0)
			return engine_list[i];
	return NULL;
}

const struct engine_ops *engine_choose(struct engine_probe *ret_kvm)
{
	engine_kvm_ops.probe(ret_kvm);
	if (ret_kvm->usable && !ret_kvm->ring0_emulated)
		return &engine_kvm_ops;
	struct engine_probe jit;
	engine_jit_ops.probe(&jit);
	return jit.usable ? &engine_jit_ops : &engine_interp_ops;
}

#define COUNTER(text, member) { text, offsetof(struct engine_counters, member) }

const struct engine_counter_name engine_counter_names[] = {
	COUNTER("instructions", instructions),
	COUNTER("blocks decoded", blocks_decoded),
	COUNTER("flushes", block_flushes),
	COUNTER("exits", exits),
	COUNTER("interrupts", interrupts),
	COUNTER("exceptions", exceptions),
	COUNTER("MMIO", mmio),
	COUNTER("port I/O", pio),
	COUNTER("emulated", emulated),
	COUNTER("TLB fills", tlb_fills),
	COUNTER("instructions translated", translated),
	COUNTER("links", links),
	COUNTER("branch fills", branch_fills),
	COUNTER("branch misses", branch_misses),
	COUNTER("entries", enters),
	COUNTER("steps", steps),
	COUNTER("slow paths", slow_paths),
	COUNTER("helper calls", helper_calls),
	COUNTER("polls", polls),
	COUNTER("invalidations", invalidations),
	COUNTER("evictions", evictions),
	COUNTER("bad branches", bad_branches),
	{ NULL, 0 },
};
