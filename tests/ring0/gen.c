/*
 * Makes the cases of the ring-0 test: bytes come from tests/diff/encode.c, one to four instructions, most of
 * them of the table's system rows. They are decoded again, and what the decoder says of their operands is
 * used to choose registers, memory and control state for them. state.c makes the state they start from.
 *
 * A case is a function of the seed and its number (and of the features that the guest has).
 */
#include "tests/ring0/gen.h"

#include "base/util.h"
#include "isa/x86/index.h"
#include "isa/x86/semantics.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define TRIES	   40
#define TAIL_BYTES 2
#define PAGE	   0x1000u

static x86_semantic *const system_functions[] = {
#define ROW(encoding, name, operands, in, out, undef, attr, feature, fn) fn,
#include "isa/x86/rows_ctl.inc"
#include "isa/x86/rows_sys.inc"
#undef ROW
	x86_sem_pushf,
	x86_sem_popf,
	x86_sem_movs,
	x86_sem_cmps,
	x86_sem_stos,
	x86_sem_lods,
	x86_sem_scas,
};

/* ---- rows ---- */

static bool is_system(const struct x86_row *row)
{
	for (unsigned i = 0; i < ARRAY_SIZE(system_functions); i++)
		if (system_functions[i] == row->fn)
			return true;
	return false;
}

/* What depends on time or on the host, or waits. Ports are this test's own: they can be compared. */
static bool comparable(const struct r0_source *source, const struct x86_row *row)
{
	if (row->fn == x86_hlt)
		return false;
	/* QEMU 7.2 does not let KVM have XSETBV: XCR0 of the machine that KVM runs on is changed. And it refuses
	 * VEX.L in scalar instructions, though the interpreter may have it execute them, too. */
	if (source->host == R0_HOST_TCG &&
		(row->fn == sem_xsetbv || strstr(row->encoding, "VEX.LIG")))
		return false;
	return !(row->attr & X86_A_NOTEST) || row->attr & X86_A_IO || row->fn == sem_invpcid;
}

int r0_rows_choose(struct r0_source *source, const char *only)
{
	struct r0_rows *rows = &source->rows;

	rows->system = calloc(x86_row_count, sizeof(*rows->system));
	rows->any = calloc(x86_row_count, sizeof(*rows->any));
	if (!rows->system || !rows->any)
		return -ENOMEM;
	for (unsigned i = 0; i < x86_row_count; i++) {
		const struct x86_row *row = &x86_rows[i];

		if (!comparable(source, row) || !x86_has(&source->features, row->feature))
			continue;
		if (only && strcasecmp(row->name, only) != 0)
			continue;
		if (is_system(row) || only)
			rows->system[rows->system_count++] = (uint16_t)i;
		else
			rows->any[rows->any_count++] = (uint16_t)i;
	}
	return rows->system_count ? 0 : -ENOENT;
}

static bool row_has_mode(const struct x86_row *row, unsigned bits)
{
	return !(row->attr & (bits == 64 ? X86_A_NO64 : X86_A_ONLY64));
}

static unsigned choose_row(struct r0_gen *g)
{
	const struct r0_rows *rows = &g->source->rows;
	unsigned row;

	do
		row = rows->any_count && r0_percent(g, 30)
			      ? rows->any[r0_pick(g, rows->any_count)]
			      : rows->system[r0_pick(g, rows->system_count)];
	while (!row_has_mode(&x86_rows[row], g->e.mode) && !g->only_mode);
	return row;
}

/* ---- numbers ---- */

/* Where far and indirect transfers go, at a privilege. */
uint64_t r0_code_address(struct r0_gen *g, unsigned rpl)
{
	const uint32_t base = rpl == 3 && r0_paged(g->c->mode) ? R0_UCODE : R0_CODE;

	if (r0_percent(g, 4))
		return diff_integer(&g->rng);
	return base + r0_pick(g, 2 * PAGE);
}

uint16_t r0_data_selector(struct r0_gen *g)
{
	static const uint16_t known[] = {R0_KDATA, R0_UDATA, R0_KDATA, R0_UDATA, R0_READONLY,
		R0_READONLY | 3, R0_EXPAND, R0_DATA1, R0_DATA1 | 1, R0_SMALL | 3, R0_BASED | 3,
		R0_DATA_NEW, R0_ABSENT_DATA, 0, 3, R0_KCODE64, R0_UCODE64, R0_EXECONLY, 0x14, 0x2f,
		0x0c, R0_CONFORMING64};

	return r0_percent(g, 96) ? known[r0_pick(g, ARRAY_SIZE(known))]
				 : (uint16_t)diff_random(&g->rng);
}

uint16_t r0_code_selector(struct r0_gen *g)
{
	static const uint16_t known[] = {R0_CONFORMING64, R0_CONFORMING32, R0_CONFORMING64 | 3,
		R0_ABSENT_CODE, R0_CODE1 | 1, R0_EXECONLY, R0_CODE_LD, R0_CODE16, R0_CODE_NEW,
		R0_CALL, R0_CALL | 3, R0_CALL_ABSENT, R0_CALL_WRONG, R0_TASK_GATE, R0_TR_FREE,
		R0_TR, R0_INT_GATE, R0_RESERVED, R0_ZERO, R0_KDATA, 0, 3, 0x0c, 0x1c, 0x37, R0_LDTR,
		R0_KCODE64 | 1, R0_UCODE64 & ~3};
	static const uint16_t good[] = {R0_KCODE64, R0_KCODE32, R0_UCODE32, R0_UCODE64};

	if (r0_percent(g, 55))
		return good[r0_pick(g, ARRAY_SIZE(good))];
	const uint16_t selector = r0_percent(g, 96) ? known[r0_pick(g, ARRAY_SIZE(known))]
						    : (uint16_t)diff_random(&g->rng);
	/* QEMU does not refuse a code segment that is both wide and long. */
	return g->source->host == R0_HOST_TCG && selector == R0_CODE_LD ? R0_CODE_NEW : selector;
}

static uint16_t any_selector(struct r0_gen *g)
{
	static const uint16_t tables[] = {
		R0_LDTR, R0_TR_FREE, R0_TR, R0_LDTR | 3, R0_TR_FREE | 3, 0, 4, R0_CALL};

	switch (r0_pick(g, 3)) {
	case 0: return r0_data_selector(g);
	case 1: return r0_code_selector(g);
	default: return tables[r0_pick(g, ARRAY_SIZE(tables))];
	}
}

/* An address for a memory operand of this size. */
uint64_t r0_address(struct r0_gen *g, unsigned size, bool aligned)
{
	static const uint8_t user[] = {4, 5, 9, 11, 15, 6},
			     kernel[] = {0, 1, 10, 8, 13, 3, 4, 5, 15};
	static const uint32_t tables[] = {
		R0_GDT, R0_IDT, R0_LDT, R0_TSS, R0_CODE, R0_STACK, R0_USTACK};
	const unsigned die = r0_pick(g, 100), page = r0_pick(g, R0_DATA_PAGES);
	const bool known = r0_percent(g, 60);
	uint64_t at = R0_DATA + PAGE * page;

	if (known)
		at = R0_DATA + PAGE * (g->c->cpl == 3 ? user[r0_pick(g, sizeof(user))]
						      : kernel[r0_pick(g, sizeof(kernel))]);
	if (die < 60)
		at += r0_pick(g, PAGE - MIN(size, PAGE - 1));
	else if (die < 80)
		at += PAGE - 1 - r0_pick(g, size > 1 ? size : 1); /* across its end, or just not */
	else if (die < 84)
		at = tables[r0_pick(g, ARRAY_SIZE(tables))] + r0_pick(g, 0x100);
	else if (die < 97)
		at += r0_pick(g, PAGE / 8) * 8;
	else
		return diff_integer(&g->rng);
	if (aligned && size)
		at &= ~(uint64_t)(BIT(63 - __builtin_clzll(size)) - 1);
	if (r0_paged(g->c->mode) && r0_percent(g, 12))
		at += r0_percent(g, 60) ? R0_LARGE_S : R0_LARGE_U;
	if (g->c->mode == R0_LONG && r0_percent(g, 10))
		at += R0_HIGH;
	return at;
}

/* ---- memory ---- */

void r0_patch(struct r0_gen *g, uint64_t linear, const void *bytes, unsigned size)
{
	struct r0_case *c = g->c;
	uint64_t gpa = linear >= R0_HIGH && g->c->mode == R0_LONG ? linear - R0_HIGH : linear;

	if (gpa >= R0_LARGE_S && gpa < R0_LARGE_S + R0_RAM_BYTES)
		gpa -= R0_LARGE_S;
	else if (gpa >= R0_LARGE_U && gpa < R0_LARGE_U + R0_RAM_BYTES)
		gpa -= R0_LARGE_U;
	if (size > R0_PATCH_BYTES || c->patch_count == R0_PATCHES || gpa < PAGE ||
		gpa > R0_RAM_BYTES - size)
		return;
	struct r0_patch *patch = &c->patch[c->patch_count++];
	patch->gpa = (uint32_t)gpa;
	patch->size_bytes = size;
	memcpy(patch->bytes, bytes, size);
}

static void patch_table(struct r0_gen *g, uint64_t at, bool idt)
{
	uint64_t base = idt ? R0_IDT : R0_GDT;
	uint16_t limit = idt ? R0_VECTORS * 16 - 1 : R0_GDT_LIMIT;

	if (r0_percent(g, 25))
		limit = (uint16_t)r0_pick(g, 0x400);
	if (r0_percent(g, 15))
		base = r0_address(g, 8, true);
	if (g->c->mode == R0_LONG && r0_percent(g, 15))
		base += R0_HIGH;
	r0_patch(g, at, &limit, 2);
	r0_patch(g, at + 2, &base, 8);
}

static void patch_far(struct r0_gen *g, uint64_t at, unsigned size, bool data)
{
	const uint16_t selector = data ? r0_data_selector(g) : r0_code_selector(g);
	const uint64_t offset = r0_code_address(g, selector & 3);

	r0_patch(g, at, &offset, size - 2);
	r0_patch(g, at + size - 2, &selector, 2);
}

static bool takes_selector(x86_semantic *fn)
{
	return fn == x86_mov_to_seg || fn == x86_lar || fn == x86_lsl || fn == x86_verr ||
	       fn == x86_verw || fn == x86_arpl || fn == x86_lldt || fn == x86_ltr;
}

static uint16_t selector_for(struct r0_gen *g, x86_semantic *fn)
{
	return fn == x86_mov_to_seg ? r0_data_selector(g) : any_selector(g);
}

static void patch_operand(struct r0_gen *g, const struct x86_insn *insn, uint64_t at, unsigned size)
{
	x86_semantic *fn = insn->fn;
	uint8_t values[64];

	if (fn == x86_lgdt || fn == x86_lidt) {
		patch_table(g, at, fn == x86_lidt);
	} else if (strstr(insn->row->operands, "Mp")) {
		patch_far(g, at, size, fn != x86_jmp_far && fn != x86_call_far);
	} else if (takes_selector(fn)) {
		uint16_t selector = selector_for(g, fn);
		r0_patch(g, at, &selector, 2);
	} else if (fn == x86_sem_call_rm || fn == x86_sem_jmp_rm) {
		uint64_t to = r0_code_address(g, g->c->cpl);
		r0_patch(g, at, &to, size);
	} else if (fn == sem_invpcid) {
		uint64_t what[2] = {r0_percent(g, 80) ? r0_pick(g, 4) : diff_random(&g->rng),
			r0_address(g, 1, false)};
		r0_patch(g, at, what, 16);
	} else if (size && size <= sizeof(values) && r0_percent(g, 50)) {
		diff_values(&g->rng, values, (unsigned)BIT(63 - __builtin_clzll(size)));
		r0_patch(g, at, values, (unsigned)BIT(63 - __builtin_clzll(size)));
	}
}

/* ---- operands ---- */

bool r0_claim(struct r0_gen *g, unsigned reg)
{
	if (reg >= 16 || g->claimed >> reg & 1)
		return false;
	g->claimed |= 1u << reg;
	return true;
}

void r0_set_reg(struct r0_gen *g, unsigned reg, uint64_t value)
{
	g->c->in.reg[reg] = g->e.mode == 64 ? value : (uint32_t)value;
}

static uint64_t segment_base(const struct r0_gen *g, unsigned seg)
{
	if (seg >= 6 || (g->e.mode == 64 && seg != X86_FS && seg != X86_GS))
		return 0;
	return g->c->in.seg[seg].base;
}

/* Write a value over bytes of the instruction being made. */
static void overwrite(struct r0_gen *g, unsigned at, uint64_t value, unsigned bytes)
{
	memcpy(g->e.bytes + at, &value, bytes);
}

/* Make the operand's address what was chosen, by its base register or its displacement. */
static void aim(struct r0_gen *g, const struct x86_insn *insn, uint64_t address)
{
	uint64_t index = 0;

	if (insn->row->attr & X86_A_VSIB)
		return;
	if (insn->index < 16 && insn->index != insn->base) {
		r0_claim(g, insn->index);
		index = g->c->in.reg[insn->index] << insn->scale;
	}
	address -= segment_base(g, insn->seg);
	if (insn->base == X86_RIP && g->e.disp_bytes)
		overwrite(g, g->e.disp_at,
			address - (g->c->in.reg[X86_RIP] + g->c->code_bytes + insn->len), 4);
	else if (insn->base == X86_ZERO && g->e.disp_bytes)
		overwrite(g, g->e.disp_at, address - index, g->e.disp_bytes == 8 ? insn->asize : 4);
	else if (insn->base != insn->index && r0_claim(g, insn->base))
		r0_set_reg(g, insn->base, address - index - (uint64_t)(int64_t)insn->disp);
}

static void choose_string(
	struct r0_gen *g, const struct x86_insn *insn, const struct x86_operand *op)
{
	const uint64_t address = r0_address(g, op->size * (1 + r0_pick(g, 16)), false);
	const unsigned seg = op->reg == X86_RSI ? insn->seg : X86_ES;

	if (r0_claim(g, op->reg))
		r0_set_reg(g, op->reg, address - segment_base(g, seg));
	if (insn->prefix & (X86_P_REP | X86_P_REPNE) && r0_claim(g, X86_RCX))
		r0_set_reg(g, X86_RCX, r0_pick(g, 40));
	if (insn->row->attr & X86_A_IO && r0_claim(g, X86_RDX))
		r0_set_reg(g, X86_RDX, R0_PORT + r0_pick(g, 16));
}

static unsigned memory_size(const struct x86_insn *insn, unsigned size)
{
	if (size)
		return size;
	return insn->row->attr & (X86_A_X87 | X86_A_SSE) || insn->row->feature >= X86_F_FXSR ? 512
											     : 8;
}

static void choose_memory(
	struct r0_gen *g, const struct x86_insn *insn, const struct x86_operand *op)
{
	const unsigned size = memory_size(insn, op->size);
	const bool aligned = (insn->row->attr & X86_A_ALIGN || size >= 512) && r0_percent(g, 80);
	const uint64_t address = r0_address(g, size, aligned);

	if (insn->op[1].kind == X86_O_GPR && insn->row->operands[0] == 'E' &&
		strncmp(insn->row->name, "BT", 2) == 0 && r0_claim(g, insn->op[1].reg))
		r0_set_reg(g, insn->op[1].reg, (uint64_t)(int64_t)((int)r0_pick(g, 1024) - 512));
	aim(g, insn, address);
	patch_operand(g, insn, address, size);
}

static void choose_registers(struct r0_gen *g, const struct x86_insn *insn)
{
	x86_semantic *fn = insn->fn;
	const struct x86_operand *op =
		&insn->op[fn == x86_lar || fn == x86_lsl || fn == x86_mov_to_seg];

	if (op->kind != X86_O_GPR || !r0_percent(g, 90))
		return;
	if (takes_selector(fn) && r0_claim(g, op->reg))
		r0_set_reg(g, op->reg, selector_for(g, fn) | (diff_random(&g->rng) & ~0xffffull));
	if ((fn == x86_sem_call_rm || fn == x86_sem_jmp_rm) && r0_claim(g, op->reg))
		r0_set_reg(g, op->reg, r0_code_address(g, g->c->cpl));
}

/* ---- what returns and pops find on the stack ---- */

static void choose_stack(struct r0_gen *g, const struct x86_insn *insn)
{
	const bool iret = insn->fn == x86_iret, retf = insn->fn == x86_retf;
	const uint16_t cs = r0_code_selector(g);
	uint64_t flags = diff_random(&g->rng) & 0x247cd7, slots[9] = {0};
	uint8_t image[9 * 8];

	if (r0_percent(g, 90))
		flags &= ~(uint64_t)X86_NT;
	if (r0_percent(g, 3))
		flags |= X86_VM | X86_RF | X86_VIF | X86_VIP;
	const uint64_t rsp = r0_percent(g, 90) ? ((cs & 3) == 3 ? R0_USTACK : R0_STACK) + 0x800
					       : r0_address(g, 8, true);
	unsigned n = 0;
	if (iret || retf) {
		slots[n++] = r0_code_address(g, cs & 3);
		slots[n++] = cs | (diff_random(&g->rng) & ~0xffffull);
		if (iret)
			slots[n++] = flags;
		slots[n++] = rsp;
		slots[n++] = r0_percent(g, 70) ? ((cs & 3) == 3 ? R0_UDATA : R0_KDATA)
					       : r0_data_selector(g);
		while (n < 9)
			slots[n++] = r0_data_selector(g);
	} else if (insn->fn == x86_pop_seg) {
		slots[n++] = r0_data_selector(g);
	} else if (insn->fn == x86_sem_popf) {
		slots[n++] = flags;
	} else if (insn->fn == x86_sem_ret) {
		slots[n++] = r0_code_address(g, g->c->cpl);
	} else {
		return;
	}
	for (unsigned i = 0; i < n; i++)
		memcpy(image + i * insn->osize, &slots[i], insn->osize);
	g->claimed |= 1u << X86_RSP;
	r0_patch(g, g->c->in.reg[X86_RSP], image, MIN(n * insn->osize, 64u));
}

/* ---- immediates: interrupts, far pointers, ports, near branches ---- */

static void choose_immediate(struct r0_gen *g, const struct x86_insn *insn)
{
	const unsigned end = insn->len;

	if (insn->fn == x86_int && r0_percent(g, 95))
		overwrite(g, end - 1,
			r0_percent(g, 75) ? 0x20 + r0_pick(g, 0x18) : r0_pick(g, 0x48), 1);
	if (insn->row->attr & X86_A_IO && insn->opcode <= 0xe7 && insn->opcode >= 0xe4)
		overwrite(g, end - 1, 0xe0 + r0_pick(g, 16), 1);
	/* QEMU takes what RET and RETF release for a signed number. */
	if (g->source->host == R0_HOST_TCG && insn->operand_count &&
		(insn->fn == x86_retf || insn->fn == x86_sem_ret))
		g->e.bytes[end - 1] &= 0x7f;
	for (unsigned i = 0; i < insn->operand_count; i++) {
		const unsigned wide = insn->osize == 2 ? 2 : 4;

		if (insn->op[i].kind == X86_O_FAR) {
			const uint16_t selector = r0_code_selector(g);
			overwrite(g, end - 2 - wide, r0_code_address(g, selector & 3), wide);
			overwrite(g, end - 2, selector, 2);
		}
		if (insn->op[i].kind == X86_O_REL) {
			/* Forward, so that it ends. */
			const bool near = insn->opcode >= 0x80 && (insn->opcode & 0xfc) != 0xe0 &&
					  insn->opcode != 0xeb;
			const unsigned bytes = !near ? 1 : insn->osize == 2 ? 2 : 4;
			overwrite(g, end - bytes, r0_pick(g, near ? 0x1000 : 0x7f), bytes);
		}
	}
}

static void choose_operands(
	struct r0_gen *g, const struct x86_insn *insn, const struct x86_form *form)
{
	for (unsigned i = 0; i < insn->operand_count; i++) {
		if (insn->op[i].kind != X86_O_MEM)
			continue;
		if (form->op[i].where == X86_W_X || form->op[i].where == X86_W_Y)
			choose_string(g, insn, &insn->op[i]);
		else
			choose_memory(g, insn, &insn->op[i]);
	}
	if ((insn->fn == sem_in_dx || insn->fn == sem_out_dx) && r0_claim(g, X86_RDX))
		r0_set_reg(g, X86_RDX, R0_PORT + r0_pick(g, 16));
	choose_registers(g, insn);
	choose_stack(g, insn);
	r0_choose_control(g, insn);
	choose_immediate(g, insn);
}

/* ---- cases ---- */

/* Add an instruction of the row. Returns false if the code is full, or no encoding was found. */
static bool add_row(struct r0_gen *g, unsigned number)
{
	const struct x86_form *form = &x86_index_get()->forms[number];
	const struct x86_row *row = &x86_rows[number];
	struct r0_case *c = g->c;
	struct x86_insn insn;

	for (unsigned i = 0; i < TRIES; i++) {
		diff_emit_row(&g->e, row, form);
		if (x86_decode(&insn, g->e.bytes, g->e.count, g->e.mode, false,
			    &g->source->features) != X86_DECODE_OK ||
			insn.row != row)
			continue;
		if (c->code_bytes + insn.len > R0_CODE_MAX - TAIL_BYTES)
			return false;
		choose_operands(g, &insn, form);
		memcpy(c->code + c->code_bytes, g->e.bytes, insn.len);
		c->code_bytes += insn.len;
		c->row[c->insn_count++] = (uint16_t)number;
		return true;
	}
	return false;
}

/* Flags left undefined must not reach memory or another register: such a row can only be the last. Moves to
 * and from control registers leave them alone on every processor. */
static bool leaves_undefined(const struct x86_row *row)
{
	return row->flags_undef[0] && !(row->attr & X86_A_CPL0);
}

static unsigned find_row(const char *encoding)
{
	for (unsigned i = 0; i < x86_row_count; i++)
		if (strcmp(x86_rows[i].encoding, encoding) == 0)
			return i;
	return 0;
}

static void append(struct r0_case *c, const void *bytes, unsigned count)
{
	memcpy(c->code + c->code_bytes, bytes, count);
	c->code_bytes += (uint8_t)count;
}

/* Perhaps use a page; change its entry, drop its translation, use it. */
static void page_change(struct r0_gen *g)
{
	const uint32_t page = R0_DATA + PAGE * r0_pick(g, R0_DATA_PAGES);
	const uint64_t high = g->c->mode == R0_LONG && r0_percent(g, 20) ? R0_HIGH : 0;
	const uint64_t base = segment_base(g, X86_DS);
	uint32_t entry = 0; /* its low half */

	memcpy(&entry, g->source->image[g->c->mode] + r0_entry_gpa(g->c->mode, page), 4);
	r0_set_reg(g, X86_RBX, entry ^ 1u << r0_pick(g, 9));
	r0_set_reg(g, X86_RCX, r0_entry_gpa(g->c->mode, page) + high - base);
	r0_set_reg(g, X86_RDX, page + r0_pick(g, PAGE - 3) + high - base);
	if (r0_percent(g, 50))
		append(g->c, "\x39\x32", 2);			      /* cmp [rdx], esi */
	append(g->c, "\x89\x19", 2);				      /* mov [rcx], ebx */
	append(g->c, "\x0f\x01\x3a", 3);			      /* invlpg [rdx] */
	append(g->c, r0_percent(g, 50) ? "\x8b\x02" : "\x89\x32", 2); /* mov eax, [rdx] or back */
	g->c->row[g->c->insn_count++] = (uint16_t)find_row("0F 01 /7");
}

static void instructions(struct r0_gen *g)
{
	static const uint8_t more[] = {0, 0, 0, 1, 1, 2, 3};
	const unsigned count = 1u + more[r0_pick(g, sizeof(more))];

	for (unsigned i = 0; i < count; i++) {
		const unsigned row = choose_row(g);
		const bool last = leaves_undefined(&x86_rows[row]);

		if (!add_row(g, row))
			return;
		if (last) {
			g->c->undefined = x86_flags_mask(x86_rows[row].flags_undef);
			g->c->in.rflags &= ~(uint64_t)X86_TF;
			return;
		}
	}
}

void r0_generate(
	const struct r0_source *source, uint64_t seed, uint64_t index, struct r0_case *ret_case)
{
	static const uint8_t tail[TAIL_BYTES] = {0xe6, R0_END_PORT};
	struct r0_gen g = {.source = source, .c = ret_case};

	g.rng.state = seed * 0xd6e8feb86659fd93ull + index;
	diff_random(&g.rng);
	memset(ret_case, 0, offsetof(struct r0_case, code));
	do
		ret_case->mode = (uint8_t)(r0_percent(&g, 45) ? R0_LONG : r0_pick(&g, R0_MODES));
	while (!(source->modes >> ret_case->mode & 1));
	ret_case->cpl = r0_percent(&g, 15) ? 3 : 0;
	g.e.rng = &g.rng;
	g.e.mode = r0_code_bits(ret_case->mode);
	g.only_mode = source->rows.any_count == 0;
	r0_choose_state(&g);
	if (r0_paged(ret_case->mode) && !ret_case->cpl && !g.only_mode && r0_percent(&g, 7))
		page_change(&g);
	else
		instructions(&g);
	memcpy(ret_case->code + ret_case->code_bytes, tail, TAIL_BYTES);
	ret_case->code_bytes += TAIL_BYTES;
}
