/*
 * Comparing two machines: see compare.h.
 *
 * Invariant: every byte of struct x86_state that is not padding is in one field of the table (test_lockstep.c).
 */
#include "compare.h"

#include "base/util.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* A member, `count` of them of `size_bytes` each. */
struct field {
	const char *name;
	uint16_t offset, size_bytes, count;
};

#define SIZE(member) sizeof(((struct x86_state *)0)->member)
#define ONE(name, member)                                                 \
	{                                                                 \
		name, offsetof(struct x86_state, member), SIZE(member), 1 \
	}
#define MANY(name, member)                                                 \
	{                                                                  \
		name, offsetof(struct x86_state, member), SIZE(member[0]), \
			SIZE(member) / SIZE(member[0])                     \
	}
#define SEGMENT(name, member)                                             \
	ONE(name ".base", member.base), ONE(name ".limit", member.limit), \
		ONE(name ".selector", member.selector), ONE(name ".attr", member.attr)
#define TABLE(name, member) ONE(name ".base", member.base), ONE(name ".limit", member.limit)
#define MSR(member)	    ONE(#member, msr.member)
#define FPU(member)	    ONE(#member, fpu.member)

static const struct field fields[] = {
	ONE("rax", reg[0]),
	ONE("rcx", reg[1]),
	ONE("rdx", reg[2]),
	ONE("rbx", reg[3]),
	ONE("rsp", reg[4]),
	ONE("rbp", reg[5]),
	ONE("rsi", reg[6]),
	ONE("rdi", reg[7]),
	ONE("r8", reg[8]),
	ONE("r9", reg[9]),
	ONE("r10", reg[10]),
	ONE("r11", reg[11]),
	ONE("r12", reg[12]),
	ONE("r13", reg[13]),
	ONE("r14", reg[14]),
	ONE("r15", reg[15]),
	ONE("rip", reg[X86_RIP]),
	ONE("zero", reg[X86_ZERO]),
	ONE("rflags", rflags),
	SEGMENT("es", seg[X86_ES]),
	SEGMENT("cs", seg[X86_CS]),
	SEGMENT("ss", seg[X86_SS]),
	SEGMENT("ds", seg[X86_DS]),
	SEGMENT("fs", seg[X86_FS]),
	SEGMENT("gs", seg[X86_GS]),
	SEGMENT("ldtr", ldtr),
	SEGMENT("tr", tr),
	TABLE("gdtr", gdtr),
	TABLE("idtr", idtr),
	ONE("cr0", cr0),
	ONE("cr2", cr2),
	ONE("cr3", cr3),
	ONE("cr4", cr4),
	ONE("cr8", cr8),
	ONE("xcr0", xcr0),
	MANY("pdpte", pdpte),
	MANY("dr", dr),
	MSR(efer),
	MSR(star),
	MSR(lstar),
	MSR(cstar),
	MSR(sfmask),
	MSR(kernel_gs_base),
	MSR(sysenter_cs),
	MSR(sysenter_esp),
	MSR(sysenter_eip),
	MSR(pat),
	MSR(misc_enable),
	MSR(tsc_aux),
	MSR(spec_ctrl),
	MSR(debugctl),
	MSR(xss),
	MSR(tsc_adjust),
	MSR(mtrr_def_type),
	MANY("mtrr_fixed", msr.mtrr_fixed),
	MANY("mtrr_base", msr.mtrr_base),
	MANY("mtrr_mask", msr.mtrr_mask),
	MSR(kvm_system_time),
	MSR(kvm_wall_clock),
	MSR(kvm_async_pf),
	MSR(kvm_steal_time),
	MSR(kvm_eoi),
	MSR(kvm_poll_control),
	MSR(mcg_status),
	MSR(mcg_ctl),
	ONE("tsc", tsc),
	FPU(fcw),
	FPU(fsw),
	FPU(fop),
	FPU(ftw),
	FPU(fip),
	FPU(fdp),
	FPU(fcs),
	FPU(fds),
	FPU(mxcsr),
	MANY("st", fpu.st),
	MANY("vec", fpu.vec),
	MANY("k", fpu.opmask),
	ONE("apic_base", lapic.apic_base),
	MANY("apic", lapic.reg),
	ONE("apic_timer", lapic.timer_left_ns),
	ONE("tsc_deadline", lapic.tsc_deadline),
	ONE("event.type", event.type),
	ONE("event.vector", event.vector),
	ONE("event.has_error", event.has_error),
	ONE("event.error", event.error),
	ONE("activity", activity),
	ONE("sipi_vector", sipi_vector),
	ONE("interrupt_shadow", interrupt_shadow),
	ONE("mov_ss_shadow", mov_ss_shadow),
	ONE("nmi_blocked", nmi_blocked),
	ONE("nmi_pending", nmi_pending),
};

/* ---- states ---- */

static const uint8_t *bytes_of(const struct x86_state *s, const struct field *f, unsigned i)
{
	return (const uint8_t *)s + f->offset + (size_t)i * f->size_bytes;
}

static bool element_same(const struct x86_state *a, const struct x86_state *b,
	const struct field *f, unsigned i, uint64_t dead_flags)
{
	if (f->offset == offsetof(struct x86_state, rflags))
		return !((a->rflags ^ b->rflags) & ~dead_flags);
	return memcmp(bytes_of(a, f, i), bytes_of(b, f, i), f->size_bytes) == 0;
}

bool compare_states(const struct x86_state *a, const struct x86_state *b, uint64_t dead_flags)
{
	if (memcmp(a, b, sizeof(*a)) == 0)
		return true;
	for (const struct field *f = fields; f < fields + ARRAY_SIZE(fields); f++)
		for (unsigned i = 0; i < f->count; i++)
			if (!element_same(a, b, f, i, dead_flags))
				return false;
	return true;
}

/* As a number, the highest byte first. */
static void print_value(FILE *out, const uint8_t *bytes, unsigned size)
{
	while (size > 1 && !bytes[size - 1])
		size--;
	fprintf(out, "%x", bytes[size - 1]);
	while (--size)
		fprintf(out, "%02x", bytes[size - 1]);
}

static void print_flags(FILE *out, uint64_t changed)
{
	static const char *const names[] = {"CF", NULL, "PF", NULL, "AF", NULL, "ZF", "SF", "TF",
		"IF", "DF", "OF", "IOPL", "IOPL", "NT", NULL, "RF", "VM", "AC", "VIF", "VIP", "ID"};

	for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
		if (names[i] && (changed >> i & 1))
			fprintf(out, " %s", names[i]);
}

void compare_print_states(FILE *out, const struct x86_state *a, const struct x86_state *b,
	uint64_t dead_flags, const char *name_a, const char *name_b)
{
	for (const struct field *f = fields; f < fields + ARRAY_SIZE(fields); f++) {
		for (unsigned i = 0; i < f->count; i++) {
			if (element_same(a, b, f, i, dead_flags))
				continue;
			fprintf(out, "  %s", f->name);
			if (f->count > 1)
				fprintf(out, "%u", i);
			fprintf(out, ": %s ", name_a);
			print_value(out, bytes_of(a, f, i), f->size_bytes);
			fprintf(out, ", %s ", name_b);
			print_value(out, bytes_of(b, f, i), f->size_bytes);
			if (f->offset == offsetof(struct x86_state, rflags))
				print_flags(out, (a->rflags ^ b->rflags) & ~dead_flags);
			fputc('\n', out);
		}
	}
}

/* ---- RAM ---- */

static size_t dirty_words(const struct memory_region *region)
{
	return (region->size_bytes / GUEST_PAGE_SIZE + 63) / 64;
}

int compare_ram_init(struct compare_ram *ram, struct guest_memory *a, struct guest_memory *b)
{
	size_t words = 1;

	for (unsigned i = 0; i < a->region_count; i++)
		words = MAX(words, dirty_words(&a->region[i]));
	*ram = (struct compare_ram){.memory = {a, b}};
	for (unsigned i = 0; i < 2; i++) {
		ram->dirty[i] = calloc(words, sizeof(uint64_t));
		if (!ram->dirty[i] || memory_dirty_start(ram->memory[i]) < 0)
			return -ENOMEM;
	}
	return 0;
}

void compare_ram_done(struct compare_ram *ram)
{
	free(ram->dirty[0]);
	free(ram->dirty[1]);
}

static bool page_same(const uint8_t *a, const uint8_t *b, gpa_t base, gpa_t *ret_gpa)
{
	if (memcmp(a, b, GUEST_PAGE_SIZE) == 0)
		return true;
	for (*ret_gpa = base; *a == *b; a++, b++)
		++*ret_gpa;
	return false;
}

static bool region_same(struct compare_ram *ram, unsigned index, bool whole, gpa_t *ret_gpa)
{
	const struct memory_region *a = &ram->memory[0]->region[index],
				   *b = &ram->memory[1]->region[index];

	for (unsigned i = 0; i < 2; i++)
		memory_dirty_fetch(ram->memory[i], index, ram->dirty[i]);
	for (uint64_t at = 0; at < a->size_bytes; at += GUEST_PAGE_SIZE) {
		uint64_t page = at / GUEST_PAGE_SIZE,
			 word = ram->dirty[0][page / 64] | ram->dirty[1][page / 64];

		if (!whole && !word) {
			at += (63 - page % 64) * GUEST_PAGE_SIZE; /* the rest of the word */
			continue;
		}
		if ((whole || (word >> page % 64 & 1)) &&
			!page_same(a->host + at, b->host + at, a->base + at, ret_gpa))
			return false;
	}
	return true;
}

bool compare_ram(struct compare_ram *ram, bool whole, gpa_t *ret_gpa)
{
	bool same = true;

	/* All are fetched, so that the next time begins here. */
	for (unsigned i = 0; i < ram->memory[0]->region_count; i++) {
		gpa_t gpa;

		if (!region_same(ram, i, whole, &gpa) && same) {
			*ret_gpa = gpa;
			same = false;
		}
	}
	return same;
}

void compare_print_ram(
	FILE *out, const struct compare_ram *ram, gpa_t gpa, const char *name_a, const char *name_b)
{
	const char *const name[] = {name_a, name_b};
	const gpa_t base = gpa & ~(gpa_t)15;

	fprintf(out, "  memory at %" PRIx64 ", byte %u:\n", base, (unsigned)(gpa & 15));
	for (unsigned i = 0; i < 2; i++) {
		uint8_t bytes[16] = {0};

		if (memory_read(ram->memory[i], base, bytes, sizeof(bytes)) < 0)
			continue;
		fprintf(out, "    %-12s", name[i]);
		for (unsigned k = 0; k < sizeof(bytes); k++)
			fprintf(out, " %02x", bytes[k]);
		fputc('\n', out);
	}
}
