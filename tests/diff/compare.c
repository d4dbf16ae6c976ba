/*
 * Comparing and printing, see compare.h.
 *
 * Not compared: RF (Linux shows the saved image's, the interpreter's is before delivery); flags that
 * the table calls undefined; the error code's P bit for faults in the kernel's half, where Linux
 * always sets it; CR2 and error code of exceptions that have none.
 */
#include "compare.h"

#include "base/util.h"

#define KERNEL_HALF 0x7ffffffff000ull
#define FSW_ES	    0x80
#define MXCSR_OE    0x08
#define MXCSR_UE    0x10
#define MXCSR_PE    0x20

static uint32_t error_of(const struct diff_result *r, const struct diff_notes *notes)
{
	const uint32_t with_error = 1u << X86_DF_EXC | 1u << X86_TS | 1u << X86_NP |
				    1u << X86_SS_EXC | 1u << X86_GP | 1u << X86_PF_EXC |
				    1u << X86_AC_EXC;

	if (r->vector >= 32 || !(with_error >> r->vector & 1))
		return 0;
	if (r->vector == X86_PF_EXC && (r->cr2 >= KERNEL_HALF || notes->cr2_open))
		return r->error | X86_PFEC_P;
	return r->error;
}

static uint64_t flags_of(const struct diff_result *r, const struct diff_notes *notes)
{
	return r->out.rflags & ~(uint64_t)(notes->undefined | X86_RF);
}

static uint64_t cr2_of(const struct diff_result *r, const struct diff_notes *notes)
{
	return r->vector != X86_PF_EXC || notes->cr2_open ? 0 : r->cr2;
}

/* One field: its name, and where it is. */
struct field {
	const char *name;
	uint16_t offset, size_bytes;
};
#define FIELD(name, member)                                      \
	{                                                        \
		name, offsetof(struct diff_state, member),       \
			sizeof(((struct diff_state *)0)->member) \
	}

static const struct field fields[] = {FIELD("rax", reg[0]), FIELD("rcx", reg[1]),
	FIELD("rdx", reg[2]), FIELD("rbx", reg[3]), FIELD("rsp", reg[4]), FIELD("rbp", reg[5]),
	FIELD("rsi", reg[6]), FIELD("rdi", reg[7]), FIELD("r8", reg[8]), FIELD("r9", reg[9]),
	FIELD("r10", reg[10]), FIELD("r11", reg[11]), FIELD("r12", reg[12]), FIELD("r13", reg[13]),
	FIELD("r14", reg[14]), FIELD("r15", reg[15]), FIELD("rip", rip), FIELD("fs_base", fs_base),
	FIELD("gs_base", gs_base), FIELD("es", seg[0]), FIELD("cs", seg[1]), FIELD("ss", seg[2]),
	FIELD("ds", seg[3]), FIELD("fs", seg[4]), FIELD("gs", seg[5]), FIELD("fcw", fcw),
	FIELD("fsw", fsw), FIELD("ftw", ftw), FIELD("fop", fop), FIELD("fip", fip),
	FIELD("fdp", fdp), FIELD("mxcsr", mxcsr), FIELD("st0", st[0]), FIELD("st1", st[1]),
	FIELD("st2", st[2]), FIELD("st3", st[3]), FIELD("st4", st[4]), FIELD("st5", st[5]),
	FIELD("st6", st[6]), FIELD("st7", st[7]), FIELD("ymm0", vec[0]), FIELD("ymm1", vec[1]),
	FIELD("ymm2", vec[2]), FIELD("ymm3", vec[3]), FIELD("ymm4", vec[4]), FIELD("ymm5", vec[5]),
	FIELD("ymm6", vec[6]), FIELD("ymm7", vec[7]), FIELD("ymm8", vec[8]), FIELD("ymm9", vec[9]),
	FIELD("ymm10", vec[10]), FIELD("ymm11", vec[11]), FIELD("ymm12", vec[12]),
	FIELD("ymm13", vec[13]), FIELD("ymm14", vec[14]), FIELD("ymm15", vec[15])};

/* Linux's context switches make 0 of every null selector. */
static bool both_null(const struct field *f, const struct diff_state *a, const struct diff_state *b)
{
	const unsigned i = (f->offset - offsetof(struct diff_state, seg)) / 2;

	return f->offset >= offsetof(struct diff_state, seg) && i < 6 && a->seg[i] < 4 &&
	       b->seg[i] < 4;
}

static uint64_t field_u64(const struct field *f, const struct diff_state *s)
{
	uint64_t value;

	memcpy(&value, (const char *)s + f->offset, 8);
	return value;
}

/* Of the x87 pointers only the bits that an address has: XRSTOR makes them canonical. */
static bool field_equal(
	const struct field *f, const struct diff_state *a, const struct diff_state *b)
{
	if (both_null(f, a, b))
		return true;
	/* After a far transfer to 32-bit code the upper half of RSP is not defined. */
	if (f->offset == offsetof(struct diff_state, reg[X86_RSP]) && a->seg[X86_CS] == DIFF_CS32)
		return (uint32_t)field_u64(f, a) == (uint32_t)field_u64(f, b);
	if (f->offset == offsetof(struct diff_state, fip) ||
		f->offset == offsetof(struct diff_state, fdp))
		return !((field_u64(f, a) ^ field_u64(f, b)) & BIT_MASK(56, 0));
	return memcmp((const char *)a + f->offset, (const char *)b + f->offset, f->size_bytes) == 0;
}

/* PE beside an unmasked overflow or underflow is known to be inexact (isa/x86/vec_run.c). */
static bool only_pe_differs(
	const struct field *f, const struct diff_state *a, const struct diff_state *b)
{
	return f->offset == offsetof(struct diff_state, mxcsr) &&
	       (a->mxcsr ^ b->mxcsr) == MXCSR_PE &&
	       (a->mxcsr & ~(a->mxcsr >> 7) & (MXCSR_OE | MXCSR_UE));
}

/* AMD's processors show the x87 pointers only while an exception is pending. */
static bool field_hidden(const struct field *f, const struct diff_state *native)
{
	const bool pointer = f->offset == offsetof(struct diff_state, fip) ||
			     f->offset == offsetof(struct diff_state, fdp) ||
			     f->offset == offsetof(struct diff_state, fop);

	return pointer && !(native->fsw & FSW_ES);
}

static bool states_agree(
	const struct diff_state *interp, const struct diff_state *native, bool mxcsr_open)
{
	for (unsigned i = 0; i < ARRAY_SIZE(fields); i++)
		if (!field_equal(&fields[i], interp, native) && !field_hidden(&fields[i], native) &&
			!only_pe_differs(&fields[i], interp, native) &&
			!(mxcsr_open && fields[i].offset == offsetof(struct diff_state, mxcsr)))
			return false;
	return true;
}

/* Bytes that are no instruction, at the end of a page: how many of them there are is not defined. */
static bool cut_short(const struct diff_result *a, const struct diff_result *b)
{
	return a->vector == X86_UD && b->vector == X86_PF_EXC && (b->error & X86_PFEC_I) &&
	       a->out.rip == b->out.rip && b->cr2 - b->out.rip < X86_INSN_BYTES_MAX;
}

static bool either_fault(const struct diff_result *r)
{
	return r->vector == X86_GP || r->vector == X86_PF_EXC || r->vector == X86_SS_EXC ||
	       r->vector == X86_AC_EXC;
}

/* Which of the two comes first is not defined (SDM 3A table 6-2, "faults from decoding"). */
static bool undecodable(const struct diff_result *a, const struct diff_result *b)
{
	return a->vector == X86_UD && b->vector == X86_GP && !b->error && a->out.rip == b->out.rip;
}

bool diff_agree(const struct diff_result *interp, const struct diff_result *native,
	const struct diff_notes *notes)
{
	if (cut_short(interp, native) || cut_short(native, interp))
		return true;
	if (notes->length_open && (undecodable(interp, native) || undecodable(native, interp)))
		return true;
	if (notes->checks_open && either_fault(interp) && either_fault(native))
		return true;
	if (interp->vector != native->vector ||
		error_of(interp, notes) != error_of(native, notes) ||
		cr2_of(interp, notes) != cr2_of(native, notes))
		return false;
	return flags_of(interp, notes) == flags_of(native, notes) &&
	       interp->memory_hash == native->memory_hash &&
	       states_agree(
		       &interp->out, &native->out, notes->mxcsr_open && interp->vector == X86_XM);
}

/* ---- instructions of the host ---- */

static bool extra_0f(uint8_t opcode, uint8_t modrm, bool rep, bool repne, bool opsize)
{
	switch (opcode) {
	case 0x00: return (modrm >> 3 & 6) == 4; /* VERR, VERW with LOCK */
	case 0x20:
	case 0x22: return true;		 /* MOV of CR0 with LOCK: CR8 on AMD's */
	case 0x01: return modrm >= 0xc0; /* CLZERO, RDPRU, RDPKRU ... */
	case 0x2b: return rep || repne;	 /* MOVNTSS, MOVNTSD */
	case 0x78:
	case 0x79: return repne || opsize;			 /* SSE4A */
	case 0x0e: return true;					 /* FEMMS */
	case 0xc7: return modrm < 0xc0 && (modrm >> 3 & 7) != 1; /* XSAVES, XRSTORS, VMX */
	case 0x38: return modrm == 0xf8 || modrm == 0xf9;	 /* MOVDIR64B, ENQCMD, MOVDIRI */
	default: return false;
	}
}

static bool extra_vex(const uint8_t *b, bool three)
{
	const unsigned map = three ? b[1] & 31 : 1;
	const uint8_t opcode = three ? b[3] : b[2];

	if (map == 1) /* AVX-512's mask registers */
		return (opcode >= 0x41 && opcode <= 0x4b) || (opcode >= 0x90 && opcode <= 0x99);
	if (map == 3 && opcode <= 1) /* VPERMQ, VPERMPD: AMD's ignore W, which must be 1 */
		return true;
	if (map == 3)
		return opcode >= 0x30 && opcode <= 0x33;
	return false;
}

bool diff_is_extra(const struct diff_case *c, const struct diff_result *interp,
	const struct diff_result *native)
{
	const uint64_t at = interp->out.rip - c->in.rip;
	const uint8_t *b = c->code, *end = c->code + c->code_bytes;
	bool rep = false, repne = false, opsize = false;

	if (interp->vector != X86_UD || at >= c->code_bytes)
		return false;
	for (b += at; b + 4 <= end; b++) {
		if (*b == 0xf3 || *b == 0xf2)
			*b == 0xf3 ? (rep = true) : (repne = true);
		else if (*b == 0x66)
			opsize = true;
		else if (!strchr("\x67\xf0\x2e\x26\x36\x3e\x64\x65", *b) &&
			 !(c->mode == 64 && (*b & 0xf0) == 0x40))
			break;
	}
	if (b + 4 > end)
		return b < end && (*b == 0x62 || *b == 0xc5 || *b == 0xc4 || *b == 0x0f);
	if (*b == 0x62 || *b == 0x8f)
		return true;
	if (*b == 0xc4 || *b == 0xc5)
		return extra_vex(b, *b == 0xc4);
	return *b == 0x0f && extra_0f(b[1], b[2], rep, repne, opsize);
}

/* ---- printing ---- */

static void print_bytes(FILE *out, const uint8_t *bytes, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		fprintf(out, "%02x%s", bytes[i], i % 8 == 7 && i + 1 < count ? " " : "");
}

static void print_value(FILE *out, const struct field *f, const struct diff_state *s)
{
	const uint8_t *p = (const uint8_t *)s + f->offset;
	uint64_t value = 0;

	if (f->size_bytes > 8) {
		for (unsigned i = f->size_bytes; i > 0; i--)
			fprintf(out, "%02x%s", p[i - 1], i % 8 == 1 && i > 1 ? "_" : "");
		return;
	}
	memcpy(&value, p, f->size_bytes);
	fprintf(out, "%llx", (unsigned long long)value);
}

static void print_state(FILE *out, const struct diff_state *s)
{
	fprintf(out, "  rflags=%llx", (unsigned long long)s->rflags);
	for (unsigned i = 0; i < ARRAY_SIZE(fields); i++) {
		fprintf(out, "%s%s=", fields[i].size_bytes > 8 || i % 6 == 5 ? "\n  " : " ",
			fields[i].name);
		print_value(out, &fields[i], s);
	}
	fprintf(out, "\n");
}

void diff_print_case(
	FILE *out, const struct diff_case *c, const struct diff_interp *interp, bool state)
{
	struct x86_insn insn;
	char text[128];

	fprintf(out, "  %u-bit code at %llx:\n", c->mode, (unsigned long long)c->in.rip);
	for (unsigned at = 0; at < c->code_bytes; at += insn.len) {
		const enum x86_decode_result result = x86_decode(&insn, c->code + at,
			c->code_bytes - at, c->mode, false, &interp->cpu.features);
		insn.len = (uint8_t)MIN((unsigned)insn.len, c->code_bytes - at);
		fprintf(out, "    ");
		print_bytes(out, c->code + at, insn.len);
		fprintf(out, "  %s\n",
			result != X86_DECODE_OK
				? "(not decoded)"
				: x86_format(&insn, c->in.rip + at, text, sizeof(text)));
	}
	if (!state)
		return;
	fprintf(out, "  before:\n");
	print_state(out, &c->in);
	fprintf(out, "  data pattern %u", c->pattern);
	for (unsigned i = 0; i < c->patch_count; i++) {
		fprintf(out, "\n    %x: ", DIFF_DATA + c->patch[i].offset);
		print_bytes(out, c->patch[i].bytes, c->patch[i].size_bytes);
	}
	fprintf(out, "\n");
}

static void print_end(
	FILE *out, const char *who, const struct diff_result *r, const struct diff_notes *notes)
{
	fprintf(out, "  %-11s ", who);
	switch (r->vector) {
	case DIFF_SYSCALL: fprintf(out, "made a system call"); break;
	case DIFF_RUNAWAY: fprintf(out, "did not end"); break;
	case DIFF_DIED: fprintf(out, "killed the process"); break;
	default:
		fprintf(out, "vector %u error %x cr2 %llx", r->vector, error_of(r, notes),
			(unsigned long long)(r->vector == X86_PF_EXC ? r->cr2 : 0));
	}
	fprintf(out, " at rip %llx\n", (unsigned long long)r->out.rip);
}

static const struct diff_chunk *find_chunk(const struct diff_result *r, uint32_t offset)
{
	for (unsigned i = 0; i < r->chunk_count; i++)
		if (r->chunk[i].offset == offset)
			return &r->chunk[i];
	return NULL;
}

static void print_chunk(FILE *out, uint32_t offset, const char *const who[2],
	const struct diff_result *interp, const struct diff_result *native)
{
	const struct diff_chunk *a = find_chunk(interp, offset), *b = find_chunk(native, offset);

	if (a && b && memcmp(a->bytes, b->bytes, DIFF_CHUNK_BYTES) == 0)
		return;
	for (unsigned i = 0; i < DIFF_CHUNK_BYTES; i += 16) {
		if (a && b && memcmp(a->bytes + i, b->bytes + i, 16) == 0)
			continue;
		fprintf(out, "    memory %x: %s ", DIFF_DATA + offset + i, who[0]);
		a ? print_bytes(out, a->bytes + i, 16) : (void)fprintf(out, "unchanged");
		fprintf(out, ", %s ", who[1]);
		b ? print_bytes(out, b->bytes + i, 16) : (void)fprintf(out, "unchanged");
		fprintf(out, "\n");
	}
}

void diff_print_results(FILE *out, const struct diff_case *c, const char *const who[2],
	const struct diff_result *interp, const struct diff_result *native,
	const struct diff_notes *notes, bool all)
{
	print_end(out, who[0], interp, notes);
	print_end(out, who[1], native, notes);
	const uint64_t a = flags_of(interp, notes), b = flags_of(native, notes);
	if (a != b || all)
		fprintf(out, "    rflags: %s %llx, %s %llx%s (undefined: %x)\n", who[0],
			(unsigned long long)interp->out.rflags, who[1],
			(unsigned long long)native->out.rflags, a != b ? " DIFFER" : "",
			notes->undefined);
	for (unsigned i = 0; i < ARRAY_SIZE(fields); i++) {
		const bool same = field_equal(&fields[i], &interp->out, &native->out) ||
				  field_hidden(&fields[i], &native->out);
		if (same && (!all || field_equal(&fields[i], &interp->out, &c->in)))
			continue;
		fprintf(out, "    %s: %s ", fields[i].name, who[0]);
		print_value(out, &fields[i], &interp->out);
		fprintf(out, ", %s ", who[1]);
		print_value(out, &fields[i], &native->out);
		fprintf(out, "%s\n", same ? "" : " DIFFER");
	}
	for (unsigned i = 0; i < interp->chunk_count; i++)
		print_chunk(out, interp->chunk[i].offset, who, interp, native);
	for (unsigned i = 0; i < native->chunk_count; i++)
		if (!find_chunk(interp, native->chunk[i].offset))
			print_chunk(out, native->chunk[i].offset, who, interp, native);
}
