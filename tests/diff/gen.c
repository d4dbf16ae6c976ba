/*
 * Makes the differential harness's cases. Bytes come from encode.c. They are decoded again, and what the
 * decoder says of its operands is used to choose registers and memory for them: memory operands lie in
 * data pages at all alignments, at and across the ends of pages, in read-only and missing ones, and
 * at addresses that are not canonical.
 *
 * Left out: MOV to SS with TF set.
 */
#include "case.h"

#include "base/util.h"
#include "isa/x86/index.h"
#include "isa/x86/semantics.h"

#define SEQUENCE_MAX 8
#define TAIL_BYTES   16
#define TRIES	     40
#define MASKS_OFF    0x1f80u

/* ---- memory ---- */

uint64_t gen_address(struct gen *g, unsigned size, bool aligned)
{
	const unsigned die = diff_pick(&g->rng, 100);
	const uint64_t page = 0x1000, within = 1 + diff_pick(&g->rng, size > 1 ? size - 1 : 1);
	uint64_t at;

	if (die < 62) {
		static const uint8_t writable[] = {0, 1, 4};
		at = writable[diff_pick(&g->rng, 3)] * page + diff_pick(&g->rng, 0x1000 - size);
		if (aligned || gen_percent(g, 30))
			at &= ~(uint64_t)(size >= 64 ? 63
					  : size > 1 ? BIT(63 - __builtin_clzll(size)) - 1
						     : 0);
	} else if (die < 70) {
		at = (gen_percent(g, 50) ? 2 : 5) * page - size; /* ends where the page does */
	} else if (die < 79) {
		at = page - within; /* across two pages that are there */
	} else if (die < 86) {
		at = (gen_percent(g, 50) ? 2 : 5) * page - within; /* into one that is not */
	} else if (die < 88) {
		at = 3 * page - within; /* out of it */
	} else if (die < 94) {
		at = 3 * page + diff_pick(&g->rng, 0x1000 - size);
	} else if (die < 96) {
		at = 4 * page - within;
	} else if (die < 97) {
		at = (uint64_t)0 -
		     within; /* around the end of the data, and of the address space */
		if (gen_percent(g, 50))
			return at;
	} else {
		return diff_integer(&g->rng);
	}
	return DIFF_DATA + at;
}

static bool in_data(uint64_t address, unsigned size)
{
	return address >= DIFF_DATA && address - DIFF_DATA <= DIFF_DATA_BYTES - size;
}

static void add_patch(struct gen *g, uint64_t address, const void *bytes, unsigned size)
{
	struct diff_case *c = g->c;

	if (size > DIFF_PATCH_BYTES || c->patch_count == DIFF_PATCHES || !in_data(address, size))
		return;
	struct diff_patch *patch = &c->patch[c->patch_count++];
	patch->offset = (uint32_t)(address - DIFF_DATA);
	patch->size_bytes = size;
	memcpy(patch->bytes, bytes, size);
}

uint64_t gen_code_address(struct gen *g)
{
	return DIFF_CODE + diff_pick(&g->rng, DIFF_CODE_BYTES);
}

static uint16_t choose_selector(struct gen *g)
{
	static const uint16_t known[] = {0x33, 0x2b, 0x23, 0x2b, 0, 3, 0x08, 0x10, 0x18, 0x1b, 0x13,
		0x43, 0x63, 0x7b, 0x80, 0x2f, 0x28, 0x2a};

	return gen_percent(g, 90) ? known[diff_pick(&g->rng, ARRAY_SIZE(known))]
				  : (uint16_t)diff_random(&g->rng);
}

/* ---- images that instructions load ---- */

static uint16_t choose_fcw(struct gen *g)
{
	unsigned fcw = 0x37f;

	if (gen_percent(g, 50))
		fcw = (fcw & 0xff) | (diff_pick(&g->rng, 16) << 8);
	if (gen_percent(g, 15))
		fcw = (fcw & ~63u) | diff_pick(&g->rng, 64);
	return (uint16_t)fcw;
}

/* Consistent with the control word; rarely with an exception pending. */
static uint16_t choose_fsw(struct gen *g, uint16_t fcw)
{
	unsigned fsw = (unsigned)diff_random(&g->rng) & 0x7f7f;

	if (gen_percent(g, 50))
		fsw &= ~0x7fu;
	if (gen_percent(g, 92))
		fsw &= ~(~fcw & 0x3fu);
	if (fsw & ~fcw & 0x3f)
		fsw |= 0x8080;
	return (uint16_t)fsw;
}

static uint32_t choose_mxcsr(struct gen *g)
{
	uint32_t r = (uint32_t)diff_random(&g->rng), mxcsr = MASKS_OFF;

	if (gen_percent(g, 40))
		mxcsr |= r & 0x3f;
	if (gen_percent(g, 30))
		mxcsr |= r & 0x6000;
	if (gen_percent(g, 15))
		mxcsr |= r & 0x8040;
	if (gen_percent(g, 20))
		mxcsr &= ~(r >> 8 & MASKS_OFF);
	return mxcsr;
}

/* FXSAVE's or XSAVE's image: its head, the vectors being whatever is there. */
static void patch_fxsave(struct gen *g, uint64_t at, bool xsave)
{
	const uint16_t fcw = choose_fcw(g);
	const uint16_t head[4] = {fcw, choose_fsw(g, fcw), (uint8_t)diff_random(&g->rng),
		diff_random(&g->rng) & 0x7ff};
	uint32_t mxcsr[2] = {choose_mxcsr(g), 0xffff};
	uint64_t header[8] = {0};

	if (gen_percent(g, 5))
		mxcsr[0] |= BIT(diff_pick(&g->rng, 32));
	if (mxcsr[0] >> 17 & 1)
		mxcsr[0] ^= BIT(17); /* MM: see DIFF_SKIP_MXCSR */
	add_patch(g, at, head, 8);
	add_patch(g, at + 24, mxcsr, 8);
	if (!xsave)
		return;
	header[0] = diff_pick(&g->rng, 8);
	if (gen_percent(g, 3))
		header[diff_pick(&g->rng, 3)] |= BIT(diff_pick(&g->rng, 64)) & ~0xe0ull;
	add_patch(g, at + 512, header, 64);
}

static void patch_environment(struct gen *g, uint64_t at, const struct x86_insn *insn)
{
	const unsigned width = insn->osize == 2 ? 2 : 4;
	const uint16_t fcw = choose_fcw(g), fsw = choose_fsw(g, fcw),
		       tags = (uint16_t)diff_random(&g->rng);

	add_patch(g, at, &fcw, 2);
	add_patch(g, at + width, &fsw, 2);
	add_patch(g, at + 2 * width, &tags, 2);
}

static void patch_far_pointer(struct gen *g, uint64_t at, unsigned size)
{
	const uint64_t offset = gen_code_address(g);
	const uint16_t selector = choose_selector(g);

	add_patch(g, at, &offset, size - 2);
	add_patch(g, at + size - 2, &selector, 2);
}

static void patch_decimal(struct gen *g, uint64_t at)
{
	uint8_t digits[10];

	for (unsigned i = 0; i < 10; i++)
		digits[i] = (uint8_t)(diff_pick(&g->rng, 10) | diff_pick(&g->rng, 10) << 4);
	digits[9] = gen_percent(g, 50) ? 0x80 : 0;
	add_patch(g, at, digits, 10);
}

void gen_patch_operand(struct gen *g, const struct x86_insn *insn, uint64_t at, unsigned size)
{
	uint8_t values[DIFF_PATCH_BYTES];
	x86_semantic *fn = insn->fn;
	uint64_t code = gen_code_address(g);
	uint16_t selector = choose_selector(g), fcw = choose_fcw(g);
	uint32_t mxcsr = choose_mxcsr(g);

	if (fn == x86_fpu_fxrstor || fn == x86_fpu_xrstor) {
		patch_fxsave(g, at, fn == x86_fpu_xrstor);
	} else if (fn == x86_fpu_ldenv || fn == x86_fpu_restore) {
		patch_environment(g, at, insn);
	} else if (fn == x86_fpu_ldcw && gen_percent(g, 80)) {
		add_patch(g, at, &fcw, 2);
	} else if (strstr(insn->row->name, "ldmxcsr")) {
		add_patch(g, at, &mxcsr, 4);
	} else if (insn->row->operands[0] && strstr(insn->row->operands, "Mp")) {
		patch_far_pointer(g, at, size);
	} else if (fn == x86_sem_call_rm || fn == x86_sem_jmp_rm) {
		add_patch(g, at, &code, size);
	} else if (fn == x86_mov_to_seg || fn == x86_lar || fn == x86_lsl || fn == x86_verr ||
		   fn == x86_verw || fn == x86_arpl) {
		add_patch(g, at, &selector, 2);
	} else if (strcmp(insn->row->name, "fbld") == 0 && gen_percent(g, 80)) {
		patch_decimal(g, at);
	} else if (size && size <= sizeof(values) && gen_percent(g, 60)) {
		diff_values(&g->rng, values, size);
		add_patch(g, at, values, size);
	}
}

/* ---- operands ---- */

static bool claim(struct gen *g, unsigned reg)
{
	if (reg >= 16 || g->claimed >> reg & 1)
		return false;
	g->claimed |= 1u << reg;
	return true;
}

static void set_reg(struct gen *g, unsigned reg, uint64_t value)
{
	g->c->in.reg[reg] = g->c->mode == 64 ? value : (uint32_t)value;
}

unsigned gen_memory_size(const struct x86_insn *insn, unsigned size)
{
	x86_semantic *fn = insn->fn;

	if (size)
		return size;
	if (fn == x86_fpu_fxsave || fn == x86_fpu_fxrstor)
		return 512;
	if (fn == x86_fpu_save || fn == x86_fpu_restore)
		return 108;
	if (fn == x86_fpu_stenv || fn == x86_fpu_ldenv)
		return 28;
	if (insn->row->feature >= X86_F_XSAVE && strstr(insn->row->name, "xs"))
		return 832;
	return strcmp(insn->row->name, "xrstor") == 0 ? 832 : 8;
}

uint64_t gen_segment_base(const struct gen *g, const struct x86_insn *insn)
{
	if (g->c->mode != 64)
		return 0;
	return insn->seg == X86_FS ? g->c->in.fs_base : insn->seg == X86_GS ? g->c->in.gs_base : 0;
}

/* Small indices for a gather, of either width. */
void gen_indices(struct gen *g, unsigned reg)
{
	const bool wide = gen_percent(g, 50);

	for (unsigned i = 0; i < 32; i += 4) {
		int32_t index = (int)diff_pick(&g->rng, 512) - 256;
		if (wide && i % 8)
			index = -(g->c->in.vec[reg][i - 1] >> 7);
		memcpy(g->c->in.vec[reg] + i, &index, 4);
	}
}

/* Make the operand's address what was chosen, by its base register or its displacement. */
static void aim(struct gen *g, const struct x86_insn *insn, uint64_t address)
{
	const bool vsib = insn->row->attr & X86_A_VSIB;
	const unsigned start = g->c->code_bytes;
	uint64_t index = 0;

	if (vsib) {
		gen_indices(g, insn->index);
	} else if (insn->index < 16 && insn->index != insn->base) {
		claim(g, insn->index);
		index = g->c->in.reg[insn->index] << insn->scale;
	}
	address -= gen_segment_base(g, insn);
	if (insn->base == X86_RIP && g->e.disp_bytes) {
		gen_fix(g, FIX_RELATIVE, start + g->e.disp_at, 4, start + insn->len, address);
	} else if (insn->base == X86_ZERO && g->e.disp_bytes) {
		const unsigned bytes = g->e.disp_bytes == 8 ? insn->asize : 4;
		gen_fix(g, FIX_ABSOLUTE, start + g->e.disp_at, bytes, 0, address - index);
	} else if (insn->base != insn->index && claim(g, insn->base)) {
		address -= index + (uint64_t)(int64_t)insn->disp;
		if (insn->asize == 4 && g->c->mode == 64)
			address = (uint32_t)address | diff_random(&g->rng) << 32;
		set_reg(g, insn->base, address);
	}
}

static void choose_string(struct gen *g, const struct x86_insn *insn, const struct x86_operand *op)
{
	const uint64_t address = gen_address(g, op->size * 8, false);

	if (claim(g, op->reg))
		set_reg(g, op->reg,
			op->reg == X86_RSI ? address - gen_segment_base(g, insn) : address);
	if (insn->prefix & (X86_P_REP | X86_P_REPNE) && claim(g, X86_RCX)) {
		uint64_t count = diff_pick(&g->rng, 40);
		if (insn->asize == 4)
			count |= diff_random(&g->rng) << 32;
		set_reg(g, X86_RCX, count);
	}
}

bool gen_is_bit_string(const struct x86_insn *insn)
{
	return (insn->fn == x86_sem_bt || insn->fn == x86_sem_bts || insn->fn == x86_sem_btr ||
		       insn->fn == x86_sem_btc) &&
	       insn->op[1].kind == X86_O_GPR;
}

/* CMPXCHG finds what it looks for in one of two cases. */
static void choose_accumulator(
	struct gen *g, const struct x86_insn *insn, uint64_t at, unsigned size)
{
	uint64_t value[2] = {diff_integer(&g->rng), diff_integer(&g->rng)};

	if (!strstr(insn->row->name, "CMPXCHG") || gen_percent(g, 50) || !claim(g, X86_RAX))
		return;
	add_patch(g, at, value, size);
	if (insn->fn == x86_sem_cmpxchg8b)
		value[1] = value[0] >> 32;
	set_reg(g, X86_RAX, value[0]);
	if (insn->fn != x86_sem_cmpxchg && claim(g, X86_RDX))
		set_reg(g, X86_RDX, value[1]);
}

static void choose_memory(struct gen *g, const struct x86_insn *insn, const struct x86_operand *op)
{
	const unsigned size = gen_memory_size(insn, op->size);
	const bool aligned = (insn->row->attr & X86_A_ALIGN || size >= 512) && gen_percent(g, 80);
	const uint64_t address = gen_address(g, size, aligned);

	if (gen_is_bit_string(insn) && claim(g, insn->op[1].reg))
		set_reg(g, insn->op[1].reg,
			gen_percent(g, 80)
				? (uint64_t)(int64_t)((int)diff_pick(&g->rng, 1024) - 512)
				: diff_integer(&g->rng));
	aim(g, insn, address);
	gen_patch_operand(g, insn, address, size);
	choose_accumulator(g, insn, address, size);
}

/* Registers with a meaning that chance would hardly meet. */
static void choose_registers(struct gen *g, const struct x86_insn *insn)
{
	const struct x86_operand *op =
		&insn->op[insn->fn == x86_lar || insn->fn == x86_lsl || insn->fn == x86_mov_to_seg];
	const bool selector = insn->fn == x86_lar || insn->fn == x86_lsl ||
			      insn->fn == x86_mov_to_seg || insn->fn == x86_verr ||
			      insn->fn == x86_verw || insn->fn == x86_arpl;
	const bool target = insn->fn == x86_sem_call_rm || insn->fn == x86_sem_jmp_rm;

	if (op->kind == X86_O_GPR && (selector || target) && gen_percent(g, 80) &&
		claim(g, op->reg))
		set_reg(g, op->reg, target ? gen_code_address(g) : choose_selector(g));
	if ((insn->fn == x86_sem_div || insn->fn == x86_sem_idiv) && gen_percent(g, 60) &&
		claim(g, X86_RDX))
		set_reg(g, X86_RDX, gen_percent(g, 50) ? 0 : ~0ull);
	if (insn->row->feature >= X86_F_XSAVE &&
		strstr("xsaveopt xsavec xrstor", insn->row->name)) {
		if (claim(g, X86_RAX))
			set_reg(g, X86_RAX, diff_pick(&g->rng, 8));
	}
}

/* Returns: what RET, RETF and IRET take off the stack. */
static void choose_stack(struct gen *g, const struct x86_insn *insn)
{
	const uint64_t values[5] = {gen_code_address(g), choose_selector(g),
		(diff_random(&g->rng) & 0x244cd5) | 0x202, gen_address(g, 8, true),
		gen_percent(g, 70) ? DIFF_DS : choose_selector(g)};
	uint8_t image[40];

	if (insn->fn != x86_sem_ret && insn->fn != x86_retf && insn->fn != x86_iret)
		return;
	for (unsigned i = 0; i < 5; i++)
		memcpy(image + i * insn->osize, &values[i], insn->osize);
	g->claimed |= 1u << X86_RSP;
	add_patch(g, g->c->in.reg[X86_RSP], image, 5u * insn->osize);
}

static void choose_branch(struct gen *g, const struct x86_insn *insn)
{
	const unsigned start = g->c->code_bytes, end = start + insn->len;

	for (unsigned i = 0; i < insn->operand_count; i++) {
		const struct x86_operand *op = &insn->op[i];
		const unsigned bytes = insn->prefix & X86_P_OPSIZE && g->c->mode == 32 ? 2 : 4;
		const uint8_t *at = g->e.bytes + insn->len - bytes;
		if (op->kind == X86_O_REL && insn->opcode >= 0x80 &&
			(insn->opcode & 0xfc) != 0xe0 && insn->opcode != 0xeb &&
			gen_percent(g, 85) && at > g->e.bytes)
			gen_fix(g, FIX_RELATIVE, end - bytes, bytes, end, gen_code_address(g));
		if (op->kind == X86_O_FAR) {
			const unsigned size = insn->osize == 2 ? 2 : 4;
			gen_fix(g, FIX_ABSOLUTE, end - 2 - size, size, 0, gen_code_address(g));
			gen_fix(g, FIX_ABSOLUTE, end - 2, 2, 0, choose_selector(g));
		}
	}
}

static void choose_operands(struct gen *g, const struct x86_insn *insn, const struct x86_form *form)
{
	for (unsigned i = 0; i < insn->operand_count; i++) {
		if (insn->op[i].kind != X86_O_MEM)
			continue;
		if (form->op[i].where == X86_W_X || form->op[i].where == X86_W_Y)
			choose_string(g, insn, &insn->op[i]);
		else
			choose_memory(g, insn, &insn->op[i]);
	}
	choose_registers(g, insn);
	choose_stack(g, insn);
	choose_branch(g, insn);
}

/* ---- state ---- */

static void choose_fpu(struct gen *g)
{
	struct diff_state *s = &g->c->in;

	s->fcw = choose_fcw(g);
	s->fsw = choose_fsw(g, s->fcw);
	s->ftw = gen_percent(g, 50) ? 0xff : gen_percent(g, 50) ? 0 : (uint8_t)diff_random(&g->rng);
	s->mxcsr = choose_mxcsr(g);
	s->fop = 0;
	s->fip = s->fdp = 0;
	memset(s->st, 0, sizeof(s->st));
	for (unsigned i = 0; i < 8; i++)
		diff_extended(&g->rng, s->st[i]);
	const bool upper = gen_percent(g, 70);
	for (unsigned i = 0; i < 16; i++) {
		diff_values(&g->rng, s->vec[i], 16);
		memset(s->vec[i] + 16, 0, 16);
		if (upper)
			diff_values(&g->rng, s->vec[i] + 16, 16);
	}
}

static uint64_t choose_base(struct gen *g)
{
	const uint64_t r = diff_random(&g->rng);

	switch (diff_pick(&g->rng, 5)) {
	case 0: return 0;
	case 1: return (uint64_t)((int64_t)r >> 17);
	default: return DIFF_DATA + (r & 0x3fff);
	}
}

static void choose_state(struct gen *g)
{
	struct diff_state *s = &g->c->in;
	const uint16_t cs = g->c->mode == 64 ? DIFF_CS64 : DIFF_CS32;
	const uint16_t seg[6] = {DIFF_DS, cs, DIFF_DS, DIFF_DS, 0, 0};

	memcpy(s->seg, seg, sizeof(seg));
	for (unsigned i = 0; i < 16; i++) {
		const unsigned die = diff_pick(&g->rng, 100);
		const uint64_t value = die < 40	  ? gen_address(g, 8, false)
				       : die < 50 ? gen_code_address(g)
						  : diff_integer(&g->rng);
		s->reg[i] = g->c->mode == 64 || i >= 8 ? value : (uint32_t)value;
	}
	set_reg(g, X86_RSP, gen_address(g, gen_percent(g, 70) ? 64 : 8, true));
	s->rflags = 0x202 | (diff_random(&g->rng) & X86_FLAGS_ARITH);
	s->rflags |= gen_percent(g, 10) ? X86_DF : 0;
	s->rflags |= gen_percent(g, 5) ? X86_AC : 0;
	s->fs_base = choose_base(g);
	s->gs_base = choose_base(g);
	choose_fpu(g);
}

/* ---- cases ---- */

/* Add an instruction of the row. Returns false if the code is full, or no encoding was found. */
static bool add_row(struct gen *g, unsigned number)
{
	const struct x86_form *form = &x86_index_get()->forms[number];
	const struct x86_row *row = &x86_rows[number];
	struct x86_insn insn;

	for (unsigned i = 0; i < TRIES; i++) {
		diff_emit_row(&g->e, row, form);
		if (x86_decode(&insn, g->e.bytes, g->e.count, g->c->mode, false,
			    &g->interp->cpu.features) != X86_DECODE_OK ||
			insn.row != row)
			continue;
		if (g->c->code_bytes + insn.len > DIFF_CODE_MAX)
			return false;
		choose_operands(g, &insn, form);
		memcpy(g->c->code + g->c->code_bytes, g->e.bytes, insn.len);
		g->c->code_bytes += insn.len;
		return true;
	}
	return false;
}

static void choose_place(struct gen *g)
{
	const unsigned bytes = g->c->code_bytes, die = diff_pick(&g->rng, 100);

	if (die < 70)
		g->c->code_offset = diff_pick(&g->rng, 0xf00);
	else if (die < 80)
		g->c->code_offset = DIFF_CODE_BYTES - bytes;
	else if (die < 95)
		g->c->code_offset = 0x1000 - diff_pick(&g->rng, bytes + 1);
	else
		g->c->code_offset = DIFF_CODE_BYTES - 1 - diff_pick(&g->rng, bytes);
	g->c->in.rip = DIFF_CODE + g->c->code_offset;
}

static void apply_fixes(struct gen *g)
{
	for (unsigned i = 0; i < g->fix_count; i++) {
		const struct fix *fix = &g->fix[i];
		uint64_t value = fix->target;
		if (fix->kind >= FIX_LABEL_RELATIVE)
			value += g->c->in.rip;
		if (fix->kind == FIX_RELATIVE || fix->kind == FIX_LABEL_RELATIVE)
			value -= g->c->in.rip + fix->end;
		if (fix->size_bytes == 1 && value != (uint64_t)(int64_t)(int8_t)value)
			value = 0;
		memcpy(g->c->code + fix->at, &value, fix->size_bytes);
	}
}

static void mutate(struct gen *g)
{
	static const uint8_t prefixes[] = {
		0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x64, 0x48, 0x41, 0x0f};
	struct diff_case *c = g->c;

	for (unsigned n = 1 + diff_pick(&g->rng, 3); n; n--) {
		const unsigned at = diff_pick(&g->rng, c->code_bytes);
		switch (diff_pick(&g->rng, 4)) {
		case 0: c->code[at] ^= (uint8_t)(1u << diff_pick(&g->rng, 8)); break;
		case 1: c->code[at] = (uint8_t)diff_random(&g->rng); break;
		case 2:
			if (c->code_bytes == DIFF_CODE_MAX)
				break;
			memmove(c->code + at + 1, c->code + at, c->code_bytes - at);
			c->code[at] = prefixes[diff_pick(&g->rng, sizeof(prefixes))];
			c->code_bytes++;
			break;
		default:
			memmove(c->code + at, c->code + at + 1, c->code_bytes - at - 1u);
			c->code[c->code_bytes - 1] = (uint8_t)diff_random(&g->rng);
			break;
		}
	}
}

static uint8_t choose_mode(struct gen *g, const struct x86_row *row)
{
	if (row->attr & X86_A_NO64)
		return 32;
	if ((row->attr & X86_A_ONLY64) || !g->interp->mode32)
		return 64;
	return gen_percent(g, 25) ? 32 : 64;
}

bool gen_row_has_mode(const struct x86_row *row, unsigned mode)
{
	return !(row->attr & (mode == 64 ? X86_A_NO64 : X86_A_ONLY64));
}

void diff_generate(const struct diff_interp *interp, const struct diff_rows *rows, uint64_t seed,
	uint64_t index, struct diff_case *ret_case, int *ret_row)
{
	struct gen g = {.interp = interp, .c = ret_case};
	const unsigned number = rows->row[index % rows->count];

	g.rng.state = seed * 0xd6e8feb86659fd93ull + index;
	diff_random(&g.rng);
	memset(ret_case, 0, offsetof(struct diff_case, code));
	ret_case->mode = choose_mode(&g, &x86_rows[number]);
	ret_case->pattern = (uint8_t)diff_pick(&g.rng, DIFF_PATTERNS);
	g.e.rng = &g.rng;
	g.e.mode = ret_case->mode;
	choose_state(&g);
	*ret_row = (int)number;
	if (rows->programs_percent && diff_percent(&g.rng, rows->programs_percent)) {
		gen_program(&g, rows, number);
		choose_place(&g);
		apply_fixes(&g);
		return;
	}
	const unsigned kind = diff_pick(&g.rng, 100);
	unsigned more = kind < 75 ? 0 : 1 + diff_pick(&g.rng, SEQUENCE_MAX - 1);

	add_row(&g, number);
	while (more--) {
		const unsigned next = rows->row[diff_pick(&g.rng, rows->count)];
		if (gen_row_has_mode(&x86_rows[next], ret_case->mode) && !add_row(&g, next))
			break;
	}
	if (!ret_case->code_bytes || kind >= 92) {
		if (!ret_case->code_bytes)
			ret_case->code[ret_case->code_bytes++] = 0x90;
		mutate(&g);
		*ret_row = -1;
	}
	choose_place(&g);
	apply_fixes(&g);
}
