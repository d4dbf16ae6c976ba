/*
 * The translating engine: the loop that finds, makes and enters blocks, what translated code calls, and the
 * engine's slots. docs/jit.md tells the whole; engine/jit/jit.h what is where while translated code runs.
 *
 * What cannot be translated (16-bit code, segments that are not flat, single step) goes through x86_step, one
 * instruction at a time.
 */
#include "engine/jit/jit.h"
#include "engine/jit/translate.h"

#include "base/error.h"
#include "isa/x86/access.h"
#include "isa/x86/native_stub.h"
#include "memory/memory.h"

#include <asm/prctl.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <x86intrin.h>

#if defined(__SANITIZE_ADDRESS__)
#define JIT_LEAK_ROOTS
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define JIT_LEAK_ROOTS
#endif
#endif
#ifdef JIT_LEAK_ROOTS
#include <sanitizer/lsan_interface.h>
#endif

#define MXCSR_MASKS 0x1f80u

/* ---- the processor's state and translated code's ---- */

static void flags_take(struct engine_vcpu *v)
{
	unsigned kept = v->flags_kept;
	uint64_t *flags = &v->soft.cpu.s.rflags;

	*flags = (*flags & ~(uint64_t)X86_FLAGS_ARITH) | (kept >> 8 & (X86_FLAGS_ARITH & ~X86_OF)) |
		 (kept & 1) << 11;
}

static void flags_give(struct engine_vcpu *v)
{
	unsigned flags = (unsigned)v->soft.cpu.s.rflags;

	v->flags_kept = (uint16_t)((flags & 0xff) << 8 | (flags >> 11 & 1));
}

static bool host_has_fsgsbase(void)
{
	return getauxval(AT_HWCAP2) & 2; /* HWCAP2_FSGSBASE */
}

static void gs_set(struct engine_vcpu *v)
{
	const struct x86_cpu *cpu = &v->soft.cpu;
	const uintptr_t tables = (uintptr_t)cpu->tlb_now - (cpu->cpl == 3 ? sizeof(struct x86_tlb) : 0);

	if (likely(v->gs == tables))
		return;
	v->gs = tables;
	if (likely(v->has_fsgsbase))
		__asm__ volatile("wrgsbase %0" : : "r"(tables) : "memory");
	else
		syscall(SYS_arch_prctl, ARCH_SET_GS, tables);
}

static void vectors_down(struct engine_vcpu *v)
{
	v->vec_live = false;
	v->vec_entry = v->stub.vec_load;
}

/* ---- called by translated code ---- */

static unsigned mode_now(const struct x86_cpu *cpu)
{
	const struct x86_state *s = &cpu->s;
	unsigned mode = JIT_MODE_ANY | (cpu->mode == 64 ? JIT_MODE_64 : 0) |
			(cpu->cpl == 3 ? JIT_MODE_USER : 0);

	if (!(s->cr0 & X86_CR0_TS))
		mode |= (x86_vectors_off(cpu, X86_A_SSE) ? 0 : JIT_MODE_SSE) |
			(x86_vectors_off(cpu, X86_A_AVX) ? 0 : JIT_MODE_AVX);
	if ((s->fpu.mxcsr & MXCSR_MASKS) == MXCSR_MASKS)
		mode |= JIT_MODE_MASKED;
	return mode;
}

static uint64_t rip_of(const struct engine_vcpu *v, unsigned page_offset)
{
	uint64_t rip = v->rip_page + page_offset;

	return v->soft.cpu.mode == 64 ? rip : (uint32_t)rip;
}

static enum x86_status run_site(struct engine_vcpu *v, struct jit_site *site)
{
	struct x86_cpu *cpu = &v->soft.cpu;
	struct x86_insn space;
	const struct x86_insn *insn = jit_site_insn(v, site, &space);
	enum x86_status status = X86_OK;

	do {
		cpu->s.reg[X86_RIP] = rip_of(v, site->page_offset + site->len);
		if (site->checked)
			status = x86_check_row(cpu, insn);
		if (likely(status == X86_OK))
			status = insn->fn(cpu, insn);
		if (status == X86_FAULT || status == X86_REPEAT)
			cpu->s.reg[X86_RIP] = rip_of(v, site->page_offset);
		if (status != X86_REPEAT || v->code_changed || v->options.count)
			return status;
		status = X86_OK;
	} while (!atomic_load_explicit(&v->soft.attention, memory_order_relaxed));
	return X86_REPEAT;
}

/*
 * After an instruction that may have changed everything: may translated code go on where RIP points, through the
 * branch cache? Not if the dispatcher has something to do first.
 */
static bool may_branch(struct engine_vcpu *v)
{
	struct x86_cpu *cpu = &v->soft.cpu;

	if (!v->options.branches || cpu->mode != 64 || soft_needs_step(cpu) || v->code_changed ||
		v->interrupt_aside || atomic_load_explicit(&v->soft.attention, memory_order_relaxed))
		return false;
	v->mode = mode_now(cpu);
	return cpu->tlb_now->branch_mode == v->mode;
}

uint32_t jit_slow(struct engine_vcpu *v, uint32_t name)
{
	struct jit_site *site = (struct jit_site *)(v->cache.meta + name);
	enum x86_status status;

	if (site->helper)
		v->soft.counters.helper_calls++;
	else
		v->soft.counters.slow_paths++;
	flags_take(v);
	status = run_site(v, site);
	if (likely(status == X86_OK && !site->leaves && !v->code_changed)) {
		flags_give(v);
		gs_set(v);
		return JIT_SLOW_DONE;
	}
	if (v->options.count)
		v->soft.cpu.instructions +=
			site->done + (status != X86_FAULT && status != X86_REPEAT);
	if (status == X86_FAULT) {
		v->soft.counters.exceptions++;
		status = x86_deliver_fault(&v->soft.cpu);
	}
	if ((status == X86_OK || status == X86_JUMP || status == X86_BOUNDARY) && may_branch(v)) {
		v->branch_site = JIT_NO_SITE;
		flags_give(v);
		gs_set(v);
		return JIT_SLOW_BRANCH;
	}
	v->status = status;
	vectors_down(v);
	return JIT_SLOW_LEAVE;
}

/* ---- finding blocks ---- */

/* Code and data whose linear addresses are their offsets, all 4 GiB of them. */
static bool flat(const struct x86_cpu *cpu)
{
	const struct x86_segment *cs = &cpu->s.seg[X86_CS];
	const unsigned data = 1u << X86_DS | 1u << X86_ES | 1u << X86_SS;

	return cpu->mode == 32 && !cpu->real && !cs->base && cs->limit == 0xffffffff &&
	       (cpu->flat & data) == data && cpu->stack_bytes == 4;
}

static void mode_change(struct engine_vcpu *v, unsigned mode)
{
	struct x86_tlb *tlb = v->soft.cpu.tlb_now;

	/* The branch cache is keyed by addresses alone. Each of its tables has a mode, as a 32-bit program and
	 * its 64-bit kernel take turns. */
	if (unlikely(tlb->branch_mode != mode)) {
		x86_branch_clear_now(&v->soft.cpu);
		tlb->branch_mode = mode;
	}
	if (likely(v->mode == mode))
		return;
	v->mode = mode;
	jit_untie(v);
}

static void evict_randomly(struct engine_vcpu *v)
{
	v->random = v->random * 1664525 + 1013904223;
	struct jit_block *block = v->cache.page[v->random >> 8 & (JIT_PAGE_HASH - 1)];
	if (v->options.evict && (v->random >> 4) % v->options.evict == 0 && block)
		jit_cache_forget(v, block);
}

static struct jit_block *find_block(struct engine_vcpu *v)
{
	struct x86_cpu *cpu = &v->soft.cpu;
	gva_t linear = soft_linear_rip(cpu);
	unsigned in_page = linear & ~GUEST_PAGE_MASK;
	const uint8_t *host;
	gpa_t gpa;

	if (unlikely(cpu->mode != 64 && !flat(cpu)))
		return NULL;
	host = soft_code_host(cpu, linear, &gpa);
	if (unlikely(!host))
		return NULL;
	mode_change(v, mode_now(cpu));
	v->rip_page = cpu->s.reg[X86_RIP] - in_page;
	const unsigned mode = v->mode | (v->pending && v->pending->plain ? JIT_MODE_PLAIN : 0);
	struct jit_block *block = jit_cache_find(v, jit_key(gpa, mode));
	if (likely(block))
		return block;
	evict_randomly(v);
	return jit_translate(v, gpa, host - in_page, mode);
}

/* Another page: the guest has mapped it where the first was, which was still running by what the branch cache knew.
 * A way out of spans leads to the same page's code without them. */
static bool same_page(const struct jit_block *a, const struct jit_block *b)
{
	return !((a->key ^ b->key) & ~jit_key(GUEST_PAGE_SIZE - 1, JIT_MODE_PLAIN));
}

/* Tie the way that was taken to its target, so that it is not missed again. */
static void tie(struct engine_vcpu *v, struct jit_block *block)
{
	if (v->pending && v->options.chain && same_page(v->pending->from, block))
		jit_exit_link(v, v->pending, block);
	if (v->has_pending_branch && v->options.branches) {
		x86_branch_fill(&v->soft.cpu, v->pending_branch, jit_rx(v, block->branch_entry));
		v->soft.counters.branch_fills++;
	}
}

/* ---- running ---- */

/*
 * A branch to what is no address, or code that went on to there: undo what it did (CALL through a register or
 * memory looks before it pushes; below RSP another one leaves its return address) and let the semantic
 * function fault.
 */
static enum x86_status bad_branch(struct engine_vcpu *v)
{
	uint64_t *reg = v->soft.cpu.s.reg;
	struct x86_insn space;

	v->soft.counters.bad_branches++;
	if (v->branch_site == JIT_NO_SITE) {
		reg[X86_RIP] = v->exit_arg; /* which x86_step() finds out */
		return X86_OK;
	}
	struct jit_site *site = (struct jit_site *)(v->cache.meta + v->branch_site);
	const struct x86_insn *insn = jit_site_insn(v, site, &space);
	const unsigned kind = jit_row_of(v->rows, insn)->kind;

	if (kind == JIT_RET)
		reg[X86_RSP] -= 8 + (insn->operand_count ? (uint16_t)insn->imm : 0);
	else if (kind == JIT_CALL)
		reg[X86_RSP] += 8;
	if (v->options.count)
		v->soft.cpu.instructions--; /* delivery counts it */
	return run_site(v, site);
}

static enum x86_status left(struct engine_vcpu *v, uint32_t kind)
{
	struct x86_cpu *cpu = &v->soft.cpu;
	struct jit_exit *exit = (struct jit_exit *)(v->cache.meta + (uint32_t)v->exit_arg);

	if (kind == JIT_EXIT_STATUS)
		return v->status;
	vectors_down(v);
	flags_take(v);
	if (kind == JIT_EXIT_BRANCH) {
		v->soft.counters.branch_misses++;
		if (unlikely(cpu->mode == 64 && !x86_canonical(cpu, v->exit_arg)))
			return bad_branch(v);
		cpu->s.reg[X86_RIP] = v->pending_branch = v->exit_arg;
		v->has_pending_branch = true;
		return X86_OK;
	}
	cpu->s.reg[X86_RIP] = rip_of(v, exit->target);
	if (kind == JIT_EXIT_STEP) {
		v->soft.counters.steps++;
		return x86_step(cpu);
	}
	if (kind == JIT_EXIT_POLL)
		v->soft.counters.polls++;
	else if (!exit->from->gone)
		v->pending = exit;
	return X86_OK;
}

static enum x86_status run_some(struct engine_vcpu *v)
{
	struct jit_block *block = find_block(v);
	enum x86_status status;

	if (unlikely(!block)) {
		jit_untie(v);
		v->soft.counters.steps++;
		return x86_step(&v->soft.cpu);
	}
	tie(v, block);
	jit_untie(v);
	v->code_changed = false;
	flags_give(v);
	gs_set(v);
	v->soft.counters.enters++;
	status = left(v, v->stub.enter(v, jit_rx(v, block->entry)));
	if (status == X86_FAULT) {
		v->soft.counters.exceptions++;
		status = x86_deliver_fault(&v->soft.cpu);
	}
	return status;
}

/*
 * What needs attention now. An interrupt that cannot be taken is put aside, or every poll in translated code
 * would come back for it; whatever sets IF leaves translated code, so it is seen here in time.
 */
static uint32_t attention_now(struct engine_vcpu *v)
{
	uint32_t attention = atomic_load_explicit(&v->soft.attention, memory_order_relaxed);
	const bool open = v->soft.cpu.s.rflags & X86_IF;

	if (likely(!attention && !v->interrupt_aside))
		return 0;
	if (v->interrupt_aside && open) {
		v->interrupt_aside = false;
		return atomic_fetch_or(&v->soft.attention, SOFT_INTR) | SOFT_INTR;
	}
	if ((attention & SOFT_INTR) && !open) {
		v->interrupt_aside = true;
		return atomic_fetch_and(&v->soft.attention, ~(uint32_t)SOFT_INTR) & ~(uint32_t)SOFT_INTR;
	}
	return attention;
}

static enum x86_status run_blocks(struct soft_vcpu *soft)
{
	struct engine_vcpu *v = (struct engine_vcpu *)soft;
	struct x86_cpu *cpu = &soft->cpu;

	v->gs = 0; /* another thread may run it now */
	v->tsc.span = 0; /* and time have stood still */
	jit_untie(v);
	for (;;) {
		uint32_t attention = attention_now(v);
		enum x86_status status;

		if (unlikely(attention & SOFT_KICK) || unlikely(cpu->instructions >= soft->stop_at))
			return X86_STOP;
		if (soft_must_attend(soft, attention)) {
			status = soft_attend(soft, attention);
			if (status == X86_TRIPLE)
				return status;
			if (status != X86_OK) {
				jit_untie(v);
			}
		}
		if (unlikely(soft_needs_step(cpu))) {
			jit_untie(v);
			v->soft.counters.steps++;
			status = x86_step(cpu);
		} else {
			status = run_some(v);
		}
		if (unlikely(status == X86_HLT || status == X86_TRIPLE || status == X86_STOP))
			return status;
	}
}

static enum x86_status run_loop(struct soft_vcpu *soft)
{
	struct engine_vcpu *v = (struct engine_vcpu *)soft;
	enum x86_status status = run_blocks(soft);

	if (v->interrupt_aside)
		atomic_fetch_or(&soft->attention, SOFT_INTR);
	v->interrupt_aside = false;
	return status;
}

static enum engine_exit jit_run(struct engine_vcpu *v, struct error *err)
{
	return soft_run(&v->soft, run_loop);
}

/* ---- code that changes ---- */

/* Only what rests on the bytes written: code and data that share a page, as a guest's own translator has them,
 * leave the rest alone. */
static void forget(struct soft_vm *vm, struct soft_vcpu *self, gpa_t gpa, uint64_t size)
{
	const gpa_t page = gpa & GUEST_PAGE_MASK;
	const uint64_t lines = memory_code_mask(gpa, size);

	soft_exclusive_begin(vm, self);
	memory_code_clear(vm->config.memory, page, lines);
	for (unsigned i = 0; i < vm->vcpu_count; i++)
		jit_cache_invalidate((struct engine_vcpu *)vm->vcpu[i], page, lines);
	soft_exclusive_end(vm, self);
}

/* A vCPU has written code. */
static void env_code_written(struct x86_cpu *cpu, gpa_t gpa, unsigned size)
{
	forget(soft_of(cpu)->vm, soft_of(cpu), gpa, size);
}

/* A device has, or the machine: perhaps called by a vCPU, which is not to wait for itself. */
static void listen_to_writes(void *opaque, gpa_t gpa, uint64_t size)
{
	struct soft_vcpu *self = soft_running_here(opaque);

	for (uint64_t done = 0, part; done < size; done += part) {
		part = MIN(size - done, GUEST_PAGE_SIZE - ((gpa + done) & ~GUEST_PAGE_MASK));
		forget(opaque, self, gpa + done, part);
	}
}

/* ---- time ---- */

/* All reads of one machine go by the same lines: see struct engine_tsc_line. */
static uint64_t env_tsc(struct x86_cpu *cpu)
{
	struct engine_vcpu *v = (struct engine_vcpu *)soft_of(cpu);
	const struct engine_hooks *hooks = v->soft.vm->config.hooks;

	_mm_lfence(); /* as of RDTSCP */
	int64_t ticks = (int64_t)(__rdtsc() - v->tsc.host);
	if (v->options.count || !hooks->tsc_line)
		return soft_env.tsc(cpu);
	if ((uint64_t)ticks >= v->tsc.span) {
		if (!hooks->tsc_line(v->soft.config.opaque, &v->tsc)) {
			v->tsc.span = 0;
			return soft_env.tsc(cpu);
		}
		/* The line may be ahead of this processor's TSC, or have ended meanwhile. */
		ticks = MIN((int64_t)(__rdtsc() - v->tsc.host), (int64_t)v->tsc.span);
		ticks = MAX(ticks, 0);
	}
	return v->tsc.guest + ((uint64_t)ticks * v->tsc.scale >> 32);
}

static void env_adjust_tsc(struct x86_cpu *cpu, uint64_t delta)
{
	((struct engine_vcpu *)soft_of(cpu))->tsc.span = 0;
	soft_env.adjust_tsc(cpu, delta);
}

/* ---- the engine's slots ---- */

static void jit_probe(struct engine_probe *ret_probe)
{
	const bool bmi2 = x86_native_host_has(X86_F_BMI2);

	*ret_probe = (struct engine_probe){ .usable = true };
	if (bmi2 && x86_native_host_has(X86_F_AVX))
		return;
	ret_probe->usable = false;
	snprintf(ret_probe->reason, sizeof(ret_probe->reason),
		"this host's processor lacks %s, which translated code uses; --engine interp works",
		bmi2 ? "AVX" : "BMI2");
}

static void jit_vm_free(struct engine_vm *vm)
{
	if (!vm)
		return;
	memory_set_code_listener(vm->soft.config.memory, NULL, NULL);
	soft_vm_done(&vm->soft);
	free(vm);
}

/* The environment is for tests, which reach every machine of a program by it. */
static int take_options(struct jit_options *options, const struct engine_tuning *tuning,
	struct error *err)
{
	int status = jit_options_parse(options, tuning->jit ? tuning->jit : getenv("LODGE_JIT"), err);

	if (tuning->block_instructions)
		options->insns_max = MIN(tuning->block_instructions, options->insns_max);
	options->precise |= tuning->precise;
	options->count |= tuning->count;
	return status;
}

static int jit_vm_create(struct engine_vm **ret_vm, const struct engine_vm_config *config,
	struct error *err)
{
	struct engine_vm *vm = calloc(1, sizeof(*vm));
	struct engine_probe probe;

	if (!vm)
		return error_set(err, ENOMEM, "no memory for the virtual machine");
	jit_probe(&probe);
	int status = probe.usable ? take_options(&vm->options, &config->tuning, err)
				  : error_set(err, ENOTSUP, "%s", probe.reason);
	if (status == 0)
		status = soft_vm_init(&vm->soft, config, "translator", err);
	if (status < 0) {
		free(vm);
		return status;
	}
	vm->env = soft_env;
	vm->env.code_written = env_code_written;
	vm->env.tsc = env_tsc;
	vm->env.adjust_tsc = env_adjust_tsc;
	memory_set_code_listener(config->memory, listen_to_writes, &vm->soft);
	*ret_vm = vm;
	return 0;
}

#define VCPU_BYTES ALIGN_UP(sizeof(struct engine_vcpu), (size_t)GUEST_PAGE_SIZE)

/* The leak check of the address sanitizer looks for pointers in the heap, not in what was mapped. */
static void leak_root(void *at, bool on)
{
#ifdef JIT_LEAK_ROOTS
	(on ? __lsan_register_root_region : __lsan_unregister_root_region)(at, VCPU_BYTES);
#endif
}

/* Below it: a page that faults, and the stack of translated code. */
static struct engine_vcpu *vcpu_alloc(void)
{
	uint8_t *at = mmap(NULL, GUEST_PAGE_SIZE + JIT_STACK_BYTES + VCPU_BYTES, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == MAP_FAILED)
		return NULL;
	mprotect(at, GUEST_PAGE_SIZE, PROT_NONE);
	leak_root(at + GUEST_PAGE_SIZE + JIT_STACK_BYTES, true);
	return (struct engine_vcpu *)(at + GUEST_PAGE_SIZE + JIT_STACK_BYTES);
}

static void vcpu_release(struct engine_vcpu *v)
{
	leak_root(v, false);
	munmap((uint8_t *)v - JIT_STACK_BYTES - GUEST_PAGE_SIZE,
		GUEST_PAGE_SIZE + JIT_STACK_BYTES + VCPU_BYTES);
}

static void jit_vcpu_free(struct engine_vcpu *v)
{
	if (!v)
		return;
	jit_cache_done(v);
	free(v->translation);
	soft_vcpu_done(&v->soft);
	vcpu_release(v);
}

static int vcpu_init(struct engine_vcpu *v, struct error *err)
{
	const struct jit_row *rows = jit_rows();

	v->translation = malloc(sizeof(*v->translation));
	if (!rows || !v->translation)
		return error_set(err, ENOMEM, "no memory for vCPU %u", v->soft.config.index);
	v->rows = rows;
	v->has_fsgsbase = host_has_fsgsbase();
	v->branch_mask = (uint64_t)(X86_BRANCH_SIZE - 1) << X86_BRANCH_SHIFT;
	int status = jit_cache_init(v, err);
	if (status < 0)
		return status;
	x86_branch_set_miss(&v->soft.cpu, jit_rx(v, v->stub.branch_miss));
	vectors_down(v);
	return 0;
}

static int jit_vcpu_create(struct engine_vcpu **ret_vcpu, struct engine_vm *vm,
	const struct engine_vcpu_config *config, struct error *err)
{
	struct engine_vcpu *v = vcpu_alloc();

	if (!v)
		return error_set(err, ENOMEM, "no memory for vCPU %u", config->index);
	v->options = vm->options;
	int status = soft_vcpu_init(&v->soft, &vm->soft, config, &vm->env, err);
	if (status < 0) {
		vcpu_release(v);
		return status;
	}
	status = vcpu_init(v, err);
	if (status < 0) {
		jit_vcpu_free(v);
		return status;
	}
	*ret_vcpu = v;
	return 0;
}

static int jit_set_budget(struct engine_vcpu *v, uint64_t instructions)
{
	if (!v->options.count && instructions != UINT64_MAX)
		return -ENOTSUP;
	return soft_set_budget(v, instructions);
}

static void jit_counters(struct engine_vcpu *v, struct engine_counters *ret_counters)
{
	soft_counters(&v->soft, ret_counters);
}

const struct engine_ops engine_jit_ops = {
	.name = "jit",
	.probe = jit_probe,
	.vm_create = jit_vm_create,
	.vm_free = jit_vm_free,
	.vcpu_create = jit_vcpu_create,
	.vcpu_free = jit_vcpu_free,
	.run = jit_run,
	.counters = jit_counters,
	SOFT_ENGINE_SLOTS,
	.set_budget = jit_set_budget,
};
