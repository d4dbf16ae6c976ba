/*
 * The interpreter engine: runs guest code through the semantic functions of isa/x86, block by block.
 * It is the semantic reference of the other engines: whatever is unusual (single step, breakpoints,
 * page-crossing instructions, interrupt shadows) goes through x86_step, one instruction at a time.
 *
 * What is not the running of blocks is engine/soft's: threads, events, exclusive sections, state. Each vCPU
 * has its own TLB and block cache; `attention` is read before every block.
 *
 * Invariant: between blocks RIP is the address of the next instruction and nothing is pending in
 * cpu->fault.
 */
#include "base/error.h"
#include "base/util.h"
#include "engine/engine.h"
#include "engine/interp/block.h"
#include "engine/soft/soft.h"
#include <errno.h>
#include <stdlib.h>

#define ARENA_BYTES MIB(24)

/* What both loops have: with two callers compilers leave it out of line, which costs 8 % of the speed. */
#define ALWAYS_INLINE inline __attribute__((always_inline))

struct engine_vm {
	struct soft_vm soft; /* first */
};

struct engine_vcpu {
	struct soft_vcpu soft; /* first */
	struct interp_cache *cache;
	struct interp_block *last; /* that ran before; NULL: none, or the arena was flushed since */
};

/* ---- execution ---- */

/* In 16 and 32-bit code the whole block lies within CS's limit. */
static inline bool within_limit(const struct x86_cpu *cpu, const struct interp_block *block)
{
	return cpu->mode == 64 ||
	       cpu->s.reg[X86_RIP] + block->size_bytes - 1 <= cpu->s.seg[X86_CS].limit;
}

/* Not among the successors of the last block: look it up or decode it, and make it one. */
static struct interp_block *find_slowly(struct engine_vcpu *v, uint64_t key, const uint8_t *host,
	unsigned room)
{
	struct x86_cpu *cpu = &v->soft.cpu;
	struct interp_block *block = interp_cache_find(v->cache, key, host, room);

	if (!block) {
		uint64_t decoded, before, after;

		interp_cache_counters(v->cache, &decoded, &before);
		block = interp_cache_decode(v->cache, key, host, room, cpu->mode, cpu->real,
			&cpu->features);
		interp_cache_counters(v->cache, &decoded, &after);
		if (before != after)
			v->last = NULL;
	}
	if (block && v->last)
		v->last->successor[v->last->turn++ & 1] = block;
	return block;
}

static ALWAYS_INLINE struct interp_block *find_block(struct engine_vcpu *v, const uint8_t **ret_host)
{
	struct x86_cpu *cpu = &v->soft.cpu;
	gva_t linear = soft_linear_rip(cpu);
	unsigned in_page = linear & ~GUEST_PAGE_MASK, room = GUEST_PAGE_SIZE - in_page;
	gpa_t gpa;
	const uint8_t *host = soft_code_host(cpu, linear, &gpa);
	struct interp_block *block, *last = v->last;

	if (unlikely(!host))
		return NULL;
	uint64_t key = interp_block_key(gpa, cpu->mode, cpu->real);
	if (likely(last && interp_block_good(last->successor[0], key, host, room)))
		block = last->successor[0];
	else if (last && interp_block_good(last->successor[1], key, host, room))
		block = last->successor[1];
	else
		block = find_slowly(v, key, host, room);
	if (unlikely(!block || !within_limit(cpu, block)))
		return NULL;
	v->last = block;
	*ret_host = host;
	return block;
}

/* The first `count` instructions of it. */
static ALWAYS_INLINE enum x86_status run_block(struct engine_vcpu *v, const struct interp_block *block,
	unsigned count, const uint8_t *host)
{
	struct x86_cpu *cpu = &v->soft.cpu;
	const struct x86_insn *insn = block->insn, *end = insn + count;
	const uint64_t start = cpu->s.reg[X86_RIP];
	enum x86_status status = X86_OK;
	unsigned done = 0;

	do {
		cpu->s.reg[X86_RIP] = start + done + insn->len;
		if (unlikely(insn->engine & INTERP_CHECKED))
			status = x86_check_row(cpu, insn);
		if (likely(status == X86_OK))
			status = insn->fn(cpu, insn);
		if (unlikely(status != X86_OK)) {
			if (status == X86_FAULT || status == X86_REPEAT)
				cpu->s.reg[X86_RIP] = start + done;
			else
				insn++;
			break;
		}
		done += insn->len;
		if ((insn->engine & INTERP_STORES) && unlikely(!interp_block_intact(block, host, done))) {
			insn++;
			break;
		}
	} while (++insn < end);
	cpu->instructions += (uint64_t)(insn - block->insn);
	return status;
}

/* One turn of the loop: a block, or one instruction where that does not do. */
static ALWAYS_INLINE enum x86_status run_some(struct engine_vcpu *v, bool counted)
{
	const uint8_t *host = NULL;
	struct interp_block *block = find_block(v, &host);

	if (unlikely(!block))
		return x86_step(&v->soft.cpu);
	unsigned count = block->insn_count;
	if (counted)
		count = (unsigned)MIN((uint64_t)count, v->soft.stop_at - v->soft.cpu.instructions);
	enum x86_status status = run_block(v, block, count, host);
	if (unlikely(status == X86_FAULT)) {
		v->soft.counters.exceptions++;
		status = x86_deliver_fault(&v->soft.cpu);
	}
	return status;
}

/* counted: not past soft->stop_at. */
static ALWAYS_INLINE enum x86_status loop(struct soft_vcpu *soft, bool counted)
{
	struct engine_vcpu *v = (struct engine_vcpu *)soft;
	struct x86_cpu *cpu = &soft->cpu;
	bool step = soft_needs_step(cpu);

	for (;;) {
		uint32_t attention = atomic_load_explicit(&soft->attention, memory_order_relaxed);
		enum x86_status status = X86_OK;

		if (unlikely(attention & SOFT_KICK))
			return X86_STOP;
		if (counted && cpu->instructions >= soft->stop_at)
			return X86_STOP;
		if (soft_must_attend(soft, attention)) {
			status = soft_attend(soft, attention);
			if (status == X86_TRIPLE)
				return status;
			step = soft_needs_step(cpu);
		}
		status = unlikely(step) ? x86_step(cpu) : run_some(v, counted);
		if (likely(!step && (status == X86_OK || status == X86_JUMP)))
			continue;
		if (status == X86_HLT || status == X86_TRIPLE || status == X86_STOP)
			return status;
		step = soft_needs_step(cpu);
	}
}

static enum x86_status run_loop(struct soft_vcpu *soft)
{
	return loop(soft, false);
}

static enum x86_status run_loop_counted(struct soft_vcpu *soft)
{
	return loop(soft, true);
}

static enum engine_exit interp_run(struct engine_vcpu *v, struct error *err)
{
	return soft_run(&v->soft, v->soft.stop_at == UINT64_MAX ? run_loop : run_loop_counted);
}

/* ---- the engine's slots ---- */

static void interp_probe(struct engine_probe *ret_probe)
{
	*ret_probe = (struct engine_probe){ .usable = true };
}

static void interp_vm_free(struct engine_vm *vm)
{
	if (!vm)
		return;
	soft_vm_done(&vm->soft);
	free(vm);
}

static int interp_vm_create(struct engine_vm **ret_vm, const struct engine_vm_config *config,
	struct error *err)
{
	struct engine_vm *vm = calloc(1, sizeof(*vm));

	if (!vm)
		return error_set(err, ENOMEM, "no memory for the virtual machine");
	int status = soft_vm_init(&vm->soft, config, "interpreter", err);
	if (status < 0) {
		free(vm);
		return status;
	}
	*ret_vm = vm;
	return 0;
}

static void interp_vcpu_free(struct engine_vcpu *v)
{
	if (!v)
		return;
	interp_cache_free(v->cache);
	soft_vcpu_done(&v->soft);
	free(v);
}

static int interp_vcpu_create(struct engine_vcpu **ret_vcpu, struct engine_vm *vm,
	const struct engine_vcpu_config *config, struct error *err)
{
	struct engine_vcpu *v = calloc(1, sizeof(*v));

	if (!v)
		return error_set(err, ENOMEM, "no memory for vCPU %u", config->index);
	int status = soft_vcpu_init(&v->soft, &vm->soft, config, &soft_env, err);
	if (status < 0) {
		free(v);
		return status;
	}
	if (interp_cache_create(&v->cache, ARENA_BYTES,
		    vm->soft.config.tuning.block_instructions) < 0) {
		interp_vcpu_free(v);
		return error_set(err, ENOMEM, "no memory for vCPU %u", config->index);
	}
	*ret_vcpu = v;
	return 0;
}

static void interp_counters(struct engine_vcpu *v, struct engine_counters *ret_counters)
{
	soft_counters(&v->soft, ret_counters);
	interp_cache_counters(v->cache, &ret_counters->blocks_decoded, &ret_counters->block_flushes);
}

const struct engine_ops engine_interp_ops = {
	.name = "interp",
	.probe = interp_probe,
	.vm_create = interp_vm_create,
	.vm_free = interp_vm_free,
	.vcpu_create = interp_vcpu_create,
	.vcpu_free = interp_vcpu_free,
	.run = interp_run,
	.counters = interp_counters,
	.set_budget = soft_set_budget,
	SOFT_ENGINE_SLOTS,
};
