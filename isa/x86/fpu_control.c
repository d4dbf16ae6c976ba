/*
 * x87 control instructions, done in C: FNINIT, FNCLEX, control and status words, environment (SDM 1
 * 8.1.10, figures 8-9 to 8-12), FNSAVE, FRSTOR, FWAIT. None of them sets FIP, FDP, FOP.
 *
 * The waiting ones (FLDCW, FLDENV, FRSTOR, FWAIT) were checked for a pending #MF before they get
 * here, FWAIT excepted.
 */
#include "isa/x86/access.h"
#include "isa/x86/fpu.h"
#include "isa/x86/semantics.h"
#include "isa/x86/xsave.h"

enum x86_status x86_fpu_nop(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return X86_OK;
}

enum x86_status x86_fpu_wait(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	const uint64_t both = X86_CR0_MP | X86_CR0_TS;

	if ((cpu->s.cr0 & both) == both)
		return x86_fault(cpu, X86_NM);
	if (x86_fpu_pending(&cpu->s.fpu))
		return x86_fault(cpu, X86_MF);
	return X86_OK;
}

/* The registers keep their contents, they are only marked empty. */
static void fpu_init(struct x86_fpu *fpu)
{
	x86_fpu_set_top(fpu, 0);
	fpu->fcw = X86_FCW_RESET;
	fpu->fsw = fpu->fop = fpu->fcs = fpu->fds = 0;
	fpu->ftw = 0;
	fpu->fip = fpu->fdp = 0;
}

enum x86_status x86_fpu_init(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	fpu_init(&cpu->s.fpu);
	return X86_OK;
}

enum x86_status x86_fpu_clex(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	cpu->s.fpu.fsw &= 0x7f00;
	return X86_OK;
}

enum x86_status x86_fpu_ldcw(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t value;

	X86_TRY(x86_op_read(cpu, insn, 0, &value));
	cpu->s.fpu.fcw = x86_fcw_fix((uint16_t)value);
	x86_fpu_summarize(&cpu->s.fpu);
	return X86_OK;
}

enum x86_status x86_fpu_stcw(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return x86_op_write(cpu, insn, 0, cpu->s.fpu.fcw);
}

enum x86_status x86_fpu_stsw(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return x86_op_write(cpu, insn, 0, cpu->s.fpu.fsw);
}

/* ---- tag word ---- */

enum { TAG_VALID, TAG_ZERO, TAG_SPECIAL, TAG_EMPTY };

static unsigned register_tag(const uint8_t st[16])
{
	unsigned exponent = (st[8] | st[9] << 8) & 0x7fff;
	uint64_t mantissa;

	memcpy(&mantissa, st, 8);
	if (exponent == 0)
		return mantissa ? TAG_SPECIAL : TAG_ZERO;
	return exponent == 0x7fff || !(mantissa >> 63) ? TAG_SPECIAL : TAG_VALID;
}

static uint16_t tag_word(const struct x86_fpu *fpu)
{
	unsigned word = 0, top = x86_fpu_top(fpu);

	for (unsigned i = 0; i < 8; i++) {
		bool used = fpu->ftw >> i & 1;

		word |= (used ? register_tag(fpu->st[(i - top) & 7]) : TAG_EMPTY) << 2 * i;
	}
	return (uint16_t)word;
}

static uint8_t abridged_tags(uint16_t word)
{
	unsigned tags = 0;

	for (unsigned i = 0; i < 8; i++)
		if ((word >> 2 * i & 3) != TAG_EMPTY)
			tags |= 1u << i;
	return (uint8_t)tags;
}

/* ---- environment: seven words or doublewords ---- */

#define ENV_WORDS 7

static unsigned env_word_bytes(const struct x86_insn *insn)
{
	return insn->osize == 2 ? 2 : 4;
}

static void env_pack_protected(const struct x86_fpu *fpu, unsigned size, uint32_t env[ENV_WORDS])
{
	env[3] = (uint32_t)fpu->fip;
	env[4] = fpu->fcs | (size == 4 ? (uint32_t)(fpu->fop & 0x7ff) << 16 : 0);
	env[5] = (uint32_t)fpu->fdp;
	env[6] = fpu->fds | (size == 4 ? 0xffff0000u : 0);
}

/* Real mode: 20 (16-bit) or 32-bit linear addresses. */
static void env_pack_real(const struct x86_fpu *fpu, unsigned size, uint32_t env[ENV_WORDS])
{
	uint32_t ip = (uint32_t)fpu->fip + ((uint32_t)fpu->fcs << 4);
	uint32_t dp = (uint32_t)fpu->fdp + ((uint32_t)fpu->fds << 4);
	uint32_t high = size == 4 ? 0xffff0000u : 0;

	env[3] = (ip & 0xffff) | high;
	env[4] = (ip >> 16 << 12) | (fpu->fop & 0x7ff);
	env[5] = (dp & 0xffff) | high;
	env[6] = dp >> 16 << 12;
}

static void env_pack(const struct x86_cpu *cpu, unsigned size, uint8_t *bytes)
{
	const struct x86_fpu *fpu = &cpu->s.fpu;
	uint32_t high = 0xffff0000u;
	uint32_t env[ENV_WORDS] = {fpu->fcw | high, fpu->fsw | high, tag_word(fpu) | high};

	if (cpu->real)
		env_pack_real(fpu, size, env);
	else
		env_pack_protected(fpu, size, env);
	for (unsigned i = 0; i < ENV_WORDS; i++)
		memcpy(bytes + (size_t)i * size, &env[i], size);
}

static void env_unpack(struct x86_cpu *cpu, unsigned size, const uint8_t *bytes)
{
	struct x86_fpu *fpu = &cpu->s.fpu;
	uint32_t env[ENV_WORDS] = {0};

	for (unsigned i = 0; i < ENV_WORDS; i++)
		memcpy(&env[i], bytes + (size_t)i * size, size);
	fpu->fcw = x86_fcw_fix((uint16_t)env[0]);
	x86_fpu_set_top(fpu, env[1] >> X86_FSW_TOP_SHIFT & 7);
	fpu->fsw = (uint16_t)env[1];
	fpu->ftw = abridged_tags((uint16_t)env[2]);
	x86_fpu_summarize(fpu);
	if (cpu->real) {
		fpu->fip = (env[3] & 0xffff) | (env[4] >> 12 & 0xffff) << 16;
		fpu->fdp = (env[5] & 0xffff) | (env[6] >> 12 & 0xffff) << 16;
		fpu->fop = (uint16_t)(env[4] & 0x7ff);
		fpu->fcs = fpu->fds = 0;
		return;
	}
	fpu->fip = env[3];
	fpu->fcs = (uint16_t)env[4];
	fpu->fop = (uint16_t)(env[4] >> 16 & 0x7ff);
	fpu->fdp = env[5];
	fpu->fds = (uint16_t)env[6];
}

enum x86_status x86_fpu_stenv(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned size = env_word_bytes(insn);
	uint8_t env[ENV_WORDS * 4];

	env_pack(cpu, size, env);
	X86_TRY(x86_store_bytes(cpu, insn->seg, x86_ea(cpu, insn), ENV_WORDS * size, env));
	cpu->s.fpu.fcw |= X86_FCW_MASKS;
	x86_fpu_summarize(&cpu->s.fpu);
	return X86_OK;
}

enum x86_status x86_fpu_ldenv(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned size = env_word_bytes(insn);
	uint8_t env[ENV_WORDS * 4];

	X86_TRY(x86_load_bytes(cpu, insn->seg, x86_ea(cpu, insn), ENV_WORDS * size, env));
	env_unpack(cpu, size, env);
	return X86_OK;
}

/* FNSAVE: the environment, then the registers in stack order, 10 bytes each; then initialise. */
enum x86_status x86_fpu_save(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned size = env_word_bytes(insn), env_bytes = ENV_WORDS * size;
	uint8_t image[ENV_WORDS * 4 + 80];

	env_pack(cpu, size, image);
	for (unsigned i = 0; i < 8; i++)
		memcpy(image + env_bytes + i * 10, cpu->s.fpu.st[i], 10);
	X86_TRY(x86_store_bytes(cpu, insn->seg, x86_ea(cpu, insn), env_bytes + 80, image));
	fpu_init(&cpu->s.fpu);
	return X86_OK;
}

enum x86_status x86_fpu_restore(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned size = env_word_bytes(insn), env_bytes = ENV_WORDS * size;
	uint8_t image[ENV_WORDS * 4 + 80];

	X86_TRY(x86_load_bytes(cpu, insn->seg, x86_ea(cpu, insn), env_bytes + 80, image));
	env_unpack(cpu, size, image);
	for (unsigned i = 0; i < 8; i++)
		memcpy(cpu->s.fpu.st[i], image + env_bytes + i * 10, 10);
	return X86_OK;
}
