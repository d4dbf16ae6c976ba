/*
 * Two machines in step: see pair.h.
 */
#include "pair.h"

#include "device/irq/lapic.h"
#include "machine/private.h"
#include "machine/virtual.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- life ---- */

static void console_output(void *opaque, const uint8_t *bytes, size_t count)
{
	struct pair_side *side = opaque;

	side->console_bytes += count;
	for (size_t i = 0; i < count; i++)
		side->console_hash =
			(side->console_hash ^ bytes[i]) * 0x100000001b3ull; /* FNV-1a */
	if (side->echo)
		fwrite(bytes, 1, count, stdout);
}

static int side_create(struct pair *pair, unsigned index, struct error *err)
{
	struct pair_side *side = &pair->side[index];
	struct machine_config config = pair->config->machine;

	config.name = pair->config->name[index];
	config.engine = pair->config->engine[index];
	config.tuning = pair->config->tuning[index];
	config.console_output = console_output;
	config.console_opaque = side;
	side->echo = index == 0 && pair->config->console;
	int status = machine_create(&side->machine, &config, err);
	if (status < 0)
		return status;
	const struct machine *m = side->machine;
	side->viewer = calloc(1, sizeof(*side->viewer));
	if (!side->viewer || x86_cpu_init(side->viewer, m->memory, &m->cpuid, NULL, NULL) < 0)
		return error_set(err, ENOMEM, "no memory");
	return 0;
}

static void side_free(struct pair_side *side)
{
	if (side->viewer)
		x86_cpu_done(side->viewer);
	free(side->viewer);
	machine_free(side->machine);
}

static int log_writes(struct pair *pair, struct error *err)
{
	struct machine *a = pair->side[0].machine, *b = pair->side[1].machine;

	if (compare_ram_init(&pair->ram, a->memory, b->memory) < 0 ||
		a->config.engine->dirty_start(a->vm) < 0 ||
		b->config.engine->dirty_start(b->vm) < 0)
		return error_set(err, ENOMEM, "can't log what the machines write");
	return 0;
}

int pair_create(struct pair **ret_pair, const struct pair_config *config, struct error *err)
{
	struct pair *pair = calloc(1, sizeof(*pair));
	int status = 0;

	if (!pair)
		return error_set(err, ENOMEM, "no memory");
	pair->config = config;
	pair->damage = config->damage;
	for (unsigned i = 0; status == 0 && i < 2; i++)
		status = side_create(pair, i, err);
	if (status == 0)
		status = log_writes(pair, err);
	if (status < 0) {
		pair_free(pair);
		return status;
	}
	*ret_pair = pair;
	return 0;
}

void pair_free(struct pair *pair)
{
	if (!pair)
		return;
	compare_ram_done(&pair->ram);
	side_free(&pair->side[0]);
	side_free(&pair->side[1]);
	free(pair);
}

/* ---- looking ---- */

static void look(struct pair_side *side)
{
	const struct machine *m = side->machine;
	struct lapic_state lapic;

	m->config.engine->get_state(m->vcpu[0].engine, &side->state);
	lapic_save(m->vcpu[0].lapic, &lapic);
	side->state.lapic.apic_base = lapic.apic_base;
	memcpy(side->state.lapic.reg, lapic.reg, sizeof(lapic.reg));
	side->state.lapic.timer_left_ns = lapic.timer_left_ns;
	side->state.lapic.tsc_deadline = lapic.tsc_deadline;
}

/* The bytes at RIP, as many as there are up to `count`. */
static unsigned code_at_rip(struct pair_side *side, uint8_t *bytes, unsigned count)
{
	struct x86_cpu *viewer = side->viewer;

	viewer->s = side->state;
	x86_cpu_refresh(viewer);
	const uint64_t rip = viewer->s.reg[X86_RIP];
	for (unsigned i = 0; i < count; i++) {
		gva_t linear = viewer->mode == 64
				       ? rip + i
				       : (uint32_t)(viewer->s.seg[X86_CS].base + rip + i);
		gpa_t gpa;

		if (!x86_translate_debug(viewer, linear, &gpa) ||
			memory_read(side->machine->memory, gpa, &bytes[i], 1) < 0)
			return i;
	}
	return count;
}

/* F2, F3 */
static bool is_repeat_prefix(uint8_t byte)
{
	return (byte & 0xfe) == 0xf2;
}

static bool is_prefix(uint8_t byte, bool long_code)
{
	return is_repeat_prefix(byte) || byte == 0xf0 || (byte & 0xe7) == 0x26 ||
	       (byte & 0xfc) == 0x64 || (long_code && (byte & 0xf0) == 0x40);
}

/* INS, OUTS, MOVS, CMPS, STOS, LODS, SCAS */
static bool is_string_opcode(uint8_t byte)
{
	return (byte >= 0x6c && byte <= 0x6f) || (byte >= 0xa4 && byte <= 0xa7) ||
	       (byte >= 0xaa && byte <= 0xaf);
}

/* A string instruction with REP is at RIP, and may have done a part of its work. */
static bool at_repeat(struct pair_side *side)
{
	uint8_t bytes[X86_INSN_BYTES_MAX];
	unsigned i = 0;
	bool repeat = false;

	/* Most code begins with neither a prefix nor a string: one byte tells. */
	if (!code_at_rip(side, bytes, 1) || !is_prefix(bytes[0], side->viewer->mode == 64))
		return false;
	unsigned count = code_at_rip(side, bytes, sizeof(bytes));
	for (; i < count && is_prefix(bytes[i], side->viewer->mode == 64); i++)
		repeat |= is_repeat_prefix(bytes[i]);
	return repeat && i < count && is_string_opcode(bytes[i]);
}

bool pair_is_lazy(const struct pair *pair)
{
	return !pair->config->tuning[0].precise || !pair->config->tuning[1].precise;
}

uint64_t pair_dead_flags(const struct pair *pair)
{
	return pair_is_lazy(pair) ? X86_FLAGS_ARITH : 0;
}

/* ---- running ---- */

static uint64_t run_first(struct pair *pair, uint64_t budget)
{
	struct pair_side *side = &pair->side[0];
	uint64_t done = machine_virtual_run(side->machine, budget);

	look(side);
	while (!side->machine->stopping && side->state.activity == X86_RUNNING && at_repeat(side)) {
		done += machine_virtual_run(side->machine, 1);
		look(side);
	}
	return done;
}

static void do_damage(struct pair *pair)
{
	struct pair_side *side = &pair->side[1];
	const struct machine *m = side->machine;

	pair->damage.count = 0;
	if (pair->damage.gpa < 0) {
		look(side);
		side->state.rflags ^= X86_CF;
		m->config.engine->set_state(m->vcpu[0].engine, &side->state);
	} else {
		uint8_t byte;
		gpa_t gpa = (gpa_t)pair->damage.gpa;
		if (memory_read(m->memory, gpa, &byte, 1) == 0) {
			byte ^= 1;
			(void)!memory_write(m->memory, gpa, &byte, 1);
		}
	}
}

static uint64_t run_second(struct pair *pair, uint64_t budget)
{
	struct machine *m = pair->side[1].machine;
	uint64_t at = machine_virtual_count(m), done = 0;

	if (unlikely(pair->damage.count && pair->damage.count <= at + budget)) {
		if (pair->damage.count > at)
			done = machine_virtual_run(m, pair->damage.count - at);
		do_damage(pair);
	}
	return done < budget ? done + machine_virtual_run(m, budget - done) : done;
}

static void note(struct pair *pair, uint64_t count, bool starts_step)
{
	struct pair_side *side = &pair->side[1];
	struct pair_insn *insn = &pair->trace[pair->traced++ % PAIR_TRACE];

	look(side);
	*insn = (struct pair_insn){
		.count = count, .rip = side->state.reg[X86_RIP], .starts_step = starts_step};
	code_at_rip(side, insn->bytes, sizeof(insn->bytes));
	insn->mode = side->viewer->mode;
	insn->real = side->viewer->real;
}

/* Up to `wanted`, one by one. */
static uint64_t trace_second(struct pair *pair, uint64_t wanted)
{
	uint64_t done = 0;

	while (done < wanted) {
		note(pair, pair->count + done, !done);
		uint64_t one = run_second(pair, 1);
		if (!one)
			break;
		done += one;
	}
	return done;
}

/* ---- ticks ---- */

const char *pair_end_text(struct pair *pair)
{
	struct machine *m = pair->side[0].machine;

	return m->has_result ? m->result.text : "the guest sleeps, and nothing will wake it";
}

static enum pair_result compare_ends(struct pair *pair, struct error *ret_why)
{
	const struct machine *a = pair->side[0].machine, *b = pair->side[1].machine;

	if (a->result.end == b->result.end && a->result.status == b->result.status &&
		strcmp(a->result.text, b->result.text) == 0)
		return PAIR_OVER;
	error_set(ret_why, EIO, "they end differently: %s: %s; %s: %s", pair->config->name[0],
		a->result.text, pair->config->name[1], b->result.text);
	return PAIR_DIFFERENT;
}

/* Begin a slice. */
static enum pair_result tick(struct pair *pair, struct error *ret_why)
{
	static const char *const words[] = {"goes on", "sleeps for ever", "has ended"};
	enum machine_tick a = machine_virtual_tick(pair->side[0].machine),
			  b = machine_virtual_tick(pair->side[1].machine);

	if (a != b) {
		error_set(ret_why, EIO, "%s %s, %s %s", pair->config->name[0], words[a],
			pair->config->name[1], words[b]);
		return PAIR_DIFFERENT;
	}
	if (a == MACHINE_ENDED)
		return compare_ends(pair, ret_why);
	pair->slice_end = pair->count + pair->config->slice;
	return a == MACHINE_ASLEEP ? PAIR_OVER : PAIR_SAME;
}

/* ---- comparing ---- */

/* What the two said to their devices. */
static bool same_talk(const struct pair *pair, struct error *ret_why)
{
	const struct pair_side *a = &pair->side[0], *b = &pair->side[1];
	struct engine_counters ca, cb;

	if (a->console_bytes != b->console_bytes || a->console_hash != b->console_hash) {
		error_set(ret_why, EIO,
			"they differ in what they wrote to the console (%" PRIu64 " and %" PRIu64
			" bytes)",
			a->console_bytes, b->console_bytes);
		return false;
	}
	machine_counters(a->machine, 0, &ca);
	machine_counters(b->machine, 0, &cb);
	if (ca.mmio == cb.mmio && ca.pio == cb.pio && ca.interrupts == cb.interrupts)
		return true;
	error_set(ret_why, EIO,
		"they differ in MMIO (%" PRIu64 ", %" PRIu64 "), port I/O (%" PRIu64 ", %" PRIu64
		") or interrupts (%" PRIu64 ", %" PRIu64 ")",
		ca.mmio, cb.mmio, ca.pio, cb.pio, ca.interrupts, cb.interrupts);
	return false;
}

static enum pair_result compare_now(struct pair *pair, struct error *ret_why)
{
	look(&pair->side[1]);
	if (!compare_states(&pair->side[0].state, &pair->side[1].state, pair_dead_flags(pair))) {
		error_set(ret_why, EIO, "their processors differ");
		return PAIR_DIFFERENT;
	}
	return same_talk(pair, ret_why) ? PAIR_SAME : PAIR_DIFFERENT;
}

enum pair_result pair_step(
	struct pair *pair, enum pair_step step, bool compare, struct error *ret_why)
{
	if (pair->count >= pair->slice_end) {
		enum pair_result result = tick(pair, ret_why);
		if (result != PAIR_SAME)
			return result;
	}
	uint64_t a = run_first(pair, step == PAIR_FINE ? 1 : pair->slice_end - pair->count);
	uint64_t b = step == PAIR_FINE ? trace_second(pair, a) : run_second(pair, a);
	if (a != b) {
		look(&pair->side[1]);
		error_set(ret_why, EIO,
			"they cannot keep step: %s completed %" PRIu64 " instructions, %s %" PRIu64,
			pair->config->name[0], a, pair->config->name[1], b);
		return PAIR_DIFFERENT;
	}
	pair->count += a;
	/* Halted or ended: the next tick decides. */
	if (pair->side[0].state.activity != X86_RUNNING || pair->side[0].machine->stopping)
		pair->slice_end = 0;
	return compare ? compare_now(pair, ret_why) : PAIR_SAME;
}

enum pair_result pair_check_ram(
	struct pair *pair, bool whole, gpa_t *ret_gpa, struct error *ret_why)
{
	bool same;

	if (pair_is_lazy(pair))
		return PAIR_SAME;
	for (unsigned i = 0; i < 2; i++) {
		const struct machine *m = pair->side[i].machine;
		m->config.engine->dirty_sync(m->vm);
	}
	same = compare_ram(&pair->ram, whole, ret_gpa);
	for (unsigned i = 0; i < 2; i++) {
		const struct machine *m = pair->side[i].machine;
		m->config.engine->dirty_start(m->vm);
	}
	if (same)
		return PAIR_SAME;
	error_set(ret_why, EIO, "their memory differs at %" PRIx64, *ret_gpa);
	return PAIR_DIFFERENT;
}
