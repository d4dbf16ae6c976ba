/*
 * Holds two results of a ring-0 case against each other: the whole canonical state and all memory.
 *
 * Not compared, as nobody defines it: time, the local APIC, KVM's own MSRs, the x87 pointers, the hidden part
 * of a segment register that is not usable (but for FS's and GS's base in long mode), the flags that the
 * last instruction leaves undefined, and anything after a triple fault but that it was one.
 */
#include "ring0.h"

#include "base/util.h"
#include "isa/x86/descriptor.h"

#include <string.h>

#define INSN_TEXT    128
#define MEMORY_LINES 12

/* ---- the state without what is not defined ---- */

static void settle_segment(struct x86_segment *seg, bool keep_base)
{
	/* KVM makes G up from the limit. */
	seg->attr &= (uint16_t)~X86_SEG_G;
	if (seg->attr & X86_SEG_P)
		return;
	*seg = (struct x86_segment){.base = keep_base ? seg->base : 0, .selector = seg->selector};
}

static void settle_fpu(struct x86_fpu *f, bool avx)
{
	f->fip = f->fdp = 0;
	f->fcs = f->fds = f->fop = 0;
	for (unsigned i = 0; i < 8; i++)
		memset(f->st[i] + 10, 0, 6);
	for (unsigned i = 0; i < 16; i++)
		memset(f->vec[i].b + (avx ? 32 : 16), 0, avx ? 32 : 48);
	memset(&f->vec[16], 0, 16 * sizeof(f->vec[0]));
	memset(f->opmask, 0, sizeof(f->opmask));
}

static struct x86_state settle(const struct r0_case *c, const struct x86_state *from, bool avx)
{
	struct x86_state s = *from;
	const bool wide = s.msr.efer & X86_EFER_LMA;

	s.rflags &= ~c->undefined;
	s.tr.attr |= X86_TSS_BUSY_BIT; /* KVM says busy whatever it is */
	for (unsigned i = 0; i < 6; i++)
		settle_segment(&s.seg[i], wide && i >= X86_FS);
	if (!(s.ldtr.selector & 0xfffc))
		s.ldtr.attr = 0;
	settle_segment(&s.ldtr, false);
	settle_fpu(&s.fpu, avx);
	if (wide || !(s.cr0 & X86_CR0_PG) || !(s.cr4 & X86_CR4_PAE))
		memset(s.pdpte, 0, sizeof(s.pdpte));
	memset(&s.lapic, 0, sizeof(s.lapic));
	s.tsc = s.msr.tsc_adjust = 0;
	s.msr.kvm_system_time = s.msr.kvm_wall_clock = s.msr.kvm_async_pf = 0;
	s.msr.kvm_steal_time = s.msr.kvm_eoi = s.msr.kvm_poll_control = 0;
	s.sipi_vector = 0;
	return s;
}

static void settle_both(const struct r0_verdict *v, struct x86_state *x, struct x86_state *y)
{
	*x = settle(v->c, &v->interp->out, v->avx);
	*y = settle(v->c, &v->other->out, v->avx);
	r0_excuse_state(v, x, y);
}

/* ---- fields ---- */

#define FIELD(name_, field_)                                                                       \
	{                                                                                          \
		name_, offsetof(struct x86_state, field_), sizeof(((struct x86_state *)0)->field_) \
	}
static const struct field {
	const char *name;
	uint32_t offset, size_bytes;
} fields[] = {
	FIELD("rax", reg[0]),
	FIELD("rcx", reg[1]),
	FIELD("rdx", reg[2]),
	FIELD("rbx", reg[3]),
	FIELD("rsp", reg[4]),
	FIELD("rbp", reg[5]),
	FIELD("rsi", reg[6]),
	FIELD("rdi", reg[7]),
	FIELD("r8", reg[8]),
	FIELD("r9", reg[9]),
	FIELD("r10", reg[10]),
	FIELD("r11", reg[11]),
	FIELD("r12", reg[12]),
	FIELD("r13", reg[13]),
	FIELD("r14", reg[14]),
	FIELD("r15", reg[15]),
	FIELD("rip", reg[16]),
	FIELD("rflags", rflags),
	FIELD("gdtr.base", gdtr.base),
	FIELD("gdtr.limit", gdtr.limit),
	FIELD("idtr.base", idtr.base),
	FIELD("idtr.limit", idtr.limit),
	FIELD("cr0", cr0),
	FIELD("cr2", cr2),
	FIELD("cr3", cr3),
	FIELD("cr4", cr4),
	FIELD("cr8", cr8),
	FIELD("xcr0", xcr0),
	FIELD("pdpte", pdpte),
	FIELD("dr0", dr[0]),
	FIELD("dr1", dr[1]),
	FIELD("dr2", dr[2]),
	FIELD("dr3", dr[3]),
	FIELD("dr6", dr[6]),
	FIELD("dr7", dr[7]),
	FIELD("efer", msr.efer),
	FIELD("star", msr.star),
	FIELD("lstar", msr.lstar),
	FIELD("cstar", msr.cstar),
	FIELD("sfmask", msr.sfmask),
	FIELD("kernel_gs_base", msr.kernel_gs_base),
	FIELD("sysenter_cs", msr.sysenter_cs),
	FIELD("sysenter_esp", msr.sysenter_esp),
	FIELD("sysenter_eip", msr.sysenter_eip),
	FIELD("pat", msr.pat),
	FIELD("misc_enable", msr.misc_enable),
	FIELD("tsc_aux", msr.tsc_aux),
	FIELD("spec_ctrl", msr.spec_ctrl),
	FIELD("debugctl", msr.debugctl),
	FIELD("xss", msr.xss),
	FIELD("mtrr_def_type", msr.mtrr_def_type),
	FIELD("mtrr_fixed", msr.mtrr_fixed),
	FIELD("mtrr_base", msr.mtrr_base),
	FIELD("mtrr_mask", msr.mtrr_mask),
	FIELD("fcw", fpu.fcw),
	FIELD("fsw", fpu.fsw),
	FIELD("ftw", fpu.ftw),
	FIELD("mxcsr", fpu.mxcsr),
	FIELD("st", fpu.st),
	FIELD("vec", fpu.vec),
	FIELD("activity", activity),
	FIELD("interrupt_shadow", interrupt_shadow),
	FIELD("mov_ss_shadow", mov_ss_shadow),
	FIELD("nmi_blocked", nmi_blocked),
	FIELD("nmi_pending", nmi_pending),
};

static const char *const segment_names[8] = {"es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"};

static const struct x86_segment *segment_of(const struct x86_state *s, unsigned i)
{
	return i < 6 ? &s->seg[i] : i == 6 ? &s->ldtr : &s->tr;
}

static bool same_segment(const struct x86_segment *a, const struct x86_segment *b)
{
	return a->base == b->base && a->limit == b->limit && a->selector == b->selector &&
	       a->attr == b->attr;
}

static bool same_field(const struct field *f, const struct x86_state *a, const struct x86_state *b)
{
	return memcmp((const char *)a + f->offset, (const char *)b + f->offset, f->size_bytes) == 0;
}

static bool same_word(const struct r0_verdict *v, uint32_t at)
{
	uint32_t x, y;

	memcpy(&x, v->interp->ram + at, 4);
	memcpy(&y, v->other->ram + at, 4);
	return x == y || r0_excuse_memory(v, at, x, y);
}

/* What differs may be half of a word that was pushed on a stack that is not aligned. */
static bool same_memory(const struct r0_verdict *v, uint32_t at)
{
	const uint32_t shift = (at - (uint32_t)v->interp->out.reg[X86_RSP]) & 3;

	if (same_word(v, at))
		return true;
	return shift && at >= 4 && at + 8 <= R0_RAM_BYTES && same_word(v, at - shift) &&
	       same_word(v, at + 4 - shift);
}

static bool agree_in_memory(const struct r0_verdict *v)
{
	for (uint32_t page = 0; page < R0_RAM_BYTES; page += 0x1000) {
		if (memcmp(v->interp->ram + page, v->other->ram + page, 0x1000) == 0)
			continue;
		for (uint32_t at = page; at < page + 0x1000; at += 4)
			if (!same_memory(v, at))
				return false;
	}
	return true;
}

bool r0_agree(const struct r0_verdict *v)
{
	if (v->interp->end != v->other->end)
		return false;
	if (v->interp->end == R0_END_SHUTDOWN)
		return true;
	struct x86_state x, y;

	settle_both(v, &x, &y);
	for (unsigned i = 0; i < ARRAY_SIZE(fields); i++)
		if (!same_field(&fields[i], &x, &y))
			return false;
	for (unsigned i = 0; i < 8; i++)
		if (!same_segment(segment_of(&x, i), segment_of(&y, i)))
			return false;
	return agree_in_memory(v);
}

/* ---- report ---- */

static uint64_t number(const struct field *f, const struct x86_state *s, uint32_t at)
{
	uint64_t value = 0;

	memcpy(&value, (const char *)s + f->offset + at, MIN(f->size_bytes - at, 8u));
	return value;
}

/* Where in the field the first eight bytes that differ are; 0 if none do. */
static uint32_t first_difference(
	const struct field *f, const struct x86_state *a, const struct x86_state *b)
{
	for (uint32_t at = 0; at < f->size_bytes; at += 8)
		if (number(f, a, at) != number(f, b, at))
			return at;
	return 0;
}

static void print_code(FILE *out, const struct r0_source *source, const struct r0_case *c)
{
	unsigned at = 0;

	while (at < c->code_bytes) {
		struct x86_insn insn;
		char text[INSN_TEXT] = "?";
		const bool ok =
			x86_decode(&insn, c->code + at, c->code_bytes - at, r0_code_bits(c->mode),
				false, &source->features) == X86_DECODE_OK;
		const unsigned length = ok ? insn.len : 1;

		if (ok)
			x86_format(&insn, c->in.reg[X86_RIP] + at, text, sizeof(text));
		fprintf(out, "  %8llx ", (unsigned long long)c->in.reg[X86_RIP] + at);
		for (unsigned i = 0; i < length; i++)
			fprintf(out, "%02x", c->code[at + i]);
		fprintf(out, "  %s\n", text);
		at += length;
	}
}

static void print_patches(FILE *out, const struct r0_case *c)
{
	for (unsigned i = 0; i < c->patch_count; i++) {
		fprintf(out, "   memory %05x     ", c->patch[i].gpa);
		for (unsigned j = 0; j < c->patch[i].size_bytes; j++)
			fprintf(out, "%s%02x", j % 8 ? "" : " ", c->patch[i].bytes[j]);
		fprintf(out, "\n");
	}
}

static void print_segment(FILE *out, const struct x86_segment *s)
{
	fprintf(out, " %04x:%llx+%x/%04x", s->selector, (unsigned long long)s->base, s->limit,
		s->attr);
}

/* Before, then what the two have; `all`: fields that agree, too. */
static void print_states(FILE *out, const struct r0_case *c, const struct x86_state *a,
	const struct x86_state *b, bool all)
{
	for (unsigned i = 0; i < ARRAY_SIZE(fields); i++) {
		const bool same = same_field(&fields[i], a, b);
		const uint32_t at = first_difference(&fields[i], a, b);
		const bool boring =
			same && i > 26 && number(&fields[i], a, 0) == number(&fields[i], &c->in, 0);

		if (boring || (same && !all))
			continue;
		fprintf(out, "%s %-11s +%03x %16llx -> %16llx", same ? "  " : "!!", fields[i].name,
			at, (unsigned long long)number(&fields[i], &c->in, at),
			(unsigned long long)number(&fields[i], a, at));
		if (!same)
			fprintf(out, " %16llx", (unsigned long long)number(&fields[i], b, at));
		fprintf(out, "\n");
	}
	for (unsigned i = 0; i < 8; i++) {
		const bool same = same_segment(segment_of(a, i), segment_of(b, i));

		if (same && !all)
			continue;
		fprintf(out, "%s %-5s", same ? "  " : "!!", segment_names[i]);
		print_segment(out, segment_of(&c->in, i));
		fprintf(out, " ->");
		print_segment(out, segment_of(a, i));
		if (!same)
			print_segment(out, segment_of(b, i));
		fprintf(out, "\n");
	}
}

static void print_memory(FILE *out, const struct r0_verdict *v)
{
	unsigned lines = 0;

	for (uint32_t at = 0; at < R0_RAM_BYTES && lines < MEMORY_LINES; at += 4) {
		uint32_t x, y;

		if (same_memory(v, at))
			continue;
		memcpy(&x, v->interp->ram + at, 4);
		memcpy(&y, v->other->ram + at, 4);
		fprintf(out, "!! memory %05x      %16x %16x\n", at, x, y);
		lines++;
	}
}

void r0_print(FILE *out, const struct r0_verdict *v, bool all)
{
	static const char *const modes[] = {"64-bit", "compatibility", "32-bit without paging",
		"32-bit, two-level tables", "32-bit, PAE"};
	static const char *const ends[] = {
		"ended", "triple fault", "halted", "did not end", "error", "reset"};
	struct x86_state x, y;

	settle_both(v, &x, &y);

	fprintf(out, "%s, privilege %u; interp: %s, %s: %s %s%s\n", modes[v->c->mode], v->c->cpl,
		ends[v->interp->end], v->name, ends[v->other->end], v->other->error,
		v->other->emulated ? " (in part by the interpreter)" : "");
	print_code(out, v->source, v->c);
	if (all)
		print_patches(out, v->c);
	print_states(out, v->c, &x, &y, all);
	print_memory(out, v);
}
