/*
 * The x86 instruction set as data. One row of a table (isa/x86/rows_*.inc) is one instruction form;
 * decode tables, interpreter dispatch, flag liveness, disassembly and test skeletons come from it.
 *
 *   ROW(encoding, name, operands, flags_in, flags_out, flags_undef, attributes, cpuid, semantic)
 *
 * encoding: the SDM's own notation (volume 2, 3.1.1), blank-separated, upper-case hex bytes:
 *	"00 /r"  "80 /0 ib"  "REX.W 0F C7 /1"  "66 0F 38 00 /r"  "F3 0F B8 /r"  "50+r"  "NP 0F 58 /r"
 *	"0F 01 =C1" (that exact ModRM byte)  "VEX.128.66.0F.WIG 6F /r"  "VEX.LIG.F3.0F.W0 2A /r"
 *	"VEX.LZ.NP.0F38.W1 F2 /r" "VEX.256.66.0F3A.W0 06 /r ib" (NP, 66, F3 or F2 is always given)
 *	NP/66/F3/F2 = mandatory prefix. With none of them the row takes any prefix, and yields to a
 *	row of the same opcode that names the prefix present (F3/F2 win over 66). NP: none of the
 *	three; NFx: neither F3 nor F2 (66 is the operand size).
 *	"D9 C0+i" and "D9 D0": a byte after the opcode is ModRM, as "=D0" (+i: its low three bits free).
 *	A row whose operands say it is of memory or register form only (M O / U R N STi) needs no more.
 *	Immediate tokens (ib iw id cb ...) are allowed as documentation; the operands decide.
 *	REX.W / REX.W0 = only with / without REX.W.
 * operands: the opcode map's notation (volume 2, appendix A.2), comma-separated, destination first:
 *	letter = where (A B C D E G H I J L M N O P Q R S U V W X Y Z) and size suffix:
 *	b 1, w 2, d 4, q 8, v osize (2,4,8), z min(osize,4), y osize but 2 -> 4, p far pointer,
 *	s pseudo-descriptor, dq/ps/pd 16 or VL by VEX.L ("x" the same), o 16 always, qq 32 always,
 *	ss 4, sd 8, t 10, h half of VL, f quarter, e eighth, n natural (8 in 64-bit mode, else 4),
 *	m any memory without a size (LEA, INVLPG, FXSAVE...)
 *	Z = register in the opcode's low three bits. M and U/R/N force mod != 3 / mod == 3.
 *	Fixed: AL CL AX DX eAX rAX rDX... ES CS SS DS FS GS, 1, ST0, STi, XMM0.
 *	  (eAX.. = by osize up to 4; rAX.. by osize up to 8)
 *	"Ib" zero-extended, "Ibs" sign-extended to osize, "Iz" sign-extended from 4 to osize.
 *	Implicit operands that need no decoding (XMM0 apart) are left out.
 *	X = [rSI] with DS or the override, Y = [rDI] with ES: op.reg tells which of the two, insn->base
 *	and seg are X's if both are present. O = moffs: the whole offset is in insn->imm (disp holds its low
 *	32 bits, base and index are X86_ZERO; so x86_ea() is right unless asize is 8).
 *	The second immediate of ENTER is in imm2; its op is X86_O_IMM with reg = 1.
 *	R beside C or D ignores mod. "a" (BOUND): two of osize. #UD of the decoder: CR1 5 6 7 9.., DR8..,
 *	segment registers 6 and 7, MOV to CS, LOCK where it may not be, gathers with equal registers.
 * flags_*: letters among "oszapc" + "d" (DF) "i" (IF) "*" (any): read, written, left undefined.
 * attributes: X86_A_* below.   cpuid: X86_F_* feature, tested against the guest's model at decode.
 * semantic: function that executes it.
 */
#ifndef LODGE_ISA_X86_INSN_H
#define LODGE_ISA_X86_INSN_H

#include "isa/x86/state.h"

struct x86_cpu;
struct x86_insn;

/*
 * What a semantic function says. cpu->s.reg[X86_RIP] is already the next instruction's address when it
 * is called. Nothing of the guest's state may have changed when it returns X86_FAULT (REP strings keep
 * their finished iterations in the registers).
 */
enum x86_status {
	X86_OK = 0,   /* done; go on with the next instruction */
	X86_FAULT,    /* cpu->fault holds the exception; RIP goes back to this instruction */
	X86_JUMP,     /* done; RIP was set: leave the block */
	X86_BOUNDARY, /* done; the block ends: mode, mapping or interruptibility may have changed */
	X86_REPEAT,   /* not finished: RIP goes back, poll for events, execute it again */
	X86_HLT,      /* done; the vCPU halts (s.activity was set) */
	X86_TRIPLE,   /* triple fault: the vCPU is shut down */
	X86_STOP,     /* done; return to the machine (hypercall exit, debug exit, reset) */
};

typedef enum x86_status x86_semantic(struct x86_cpu *cpu, const struct x86_insn *insn);

enum x86_attribute {
	X86_A_LOCK = 1u << 0,	 /* LOCK allowed (with a memory destination) */
	X86_A_D64 = 1u << 1,	 /* operand size defaults to 64 in 64-bit mode (66 -> 16) */
	X86_A_F64 = 1u << 2,	 /* operand size is 64 in 64-bit mode whatever the prefix */
	X86_A_NO64 = 1u << 3,	 /* #UD in 64-bit mode */
	X86_A_ONLY64 = 1u << 4,	 /* exists in 64-bit mode only */
	X86_A_NOREAL = 1u << 5,	 /* #UD in real and virtual-8086 mode */
	X86_A_CPL0 = 1u << 6,	 /* #GP(0) unless CPL 0 (checked before the semantic function) */
	X86_A_END = 1u << 7,	 /* ends a decoded block: jumps and whatever may return non-OK on success */
	X86_A_REP = 1u << 8,	 /* string instruction: F3/F2 repeat it */
	X86_A_ALIGN = 1u << 9,	 /* memory operand must be aligned to its size: #GP(0) */
	X86_A_X87 = 1u << 10,	 /* x87: CR0.EM/TS -> #NM, pending #MF */
	X86_A_MMX = 1u << 11,	 /* MMX: CR0.EM -> #UD, TS -> #NM, pending #MF */
	X86_A_SSE = 1u << 12,	 /* legacy SSE: CR0.EM or !CR4.OSFXSR -> #UD, TS -> #NM */
	X86_A_AVX = 1u << 13,	 /* VEX: needs CR4.OSXSAVE and XCR0[2:1], TS -> #NM */
	X86_A_MXCSR = 1u << 14,	 /* reads or writes MXCSR: may raise #XM */
	X86_A_NOWAIT = 1u << 15, /* x87 control that ignores a pending #MF */
	X86_A_VSIB = 1u << 16,	 /* gather: memory operand has a vector index */
	X86_A_OPSIZE_MANDATORY = 1u << 17, /* 66 is a mandatory prefix, not operand size (the decoder sets it) */
	X86_A_NATIVE = 1u << 18, /* unprivileged, at most one memory operand: the JIT may copy it */
	X86_A_WRITES_MEM = 1u << 19, /* memory operand 0 is written without being read */
	X86_A_RMW = 1u << 20,	 /* operand 0 is read and written */
	X86_A_NOTEST = 1u << 21, /* the result depends on time or host: not comparable (RDTSC, RDRAND) */
	X86_A_IO = 1u << 22,	 /* port I/O */
	X86_A_STORES = 1u << 24, /* writes memory that is no operand (PUSHA, MASKMOVQ) */
	X86_A_DEF8 = 1u << 23,	 /* the VEX/SSE row's GPR result zero-extends to 64 bits (documentation) */
};

/* Rows whose availability depends on control registers or privilege: for x86_check_row(). */
#define X86_A_CHECKED                                                                              \
	(X86_A_CPL0 | X86_A_X87 | X86_A_MMX | X86_A_SSE | X86_A_AVX | X86_A_NOREAL | X86_A_IO)

enum x86_feature {
	X86_F_BASE, X86_F_FPU, X86_F_TSC, X86_F_MSR, X86_F_CX8, X86_F_SEP, X86_F_CMOV, X86_F_CLFLUSH,
	X86_F_MMX, X86_F_FXSR, X86_F_SSE, X86_F_SSE2, X86_F_SSE3, X86_F_PCLMULQDQ, X86_F_MONITOR,
	X86_F_SSSE3, X86_F_FMA, X86_F_CX16, X86_F_PCID, X86_F_SSE41, X86_F_SSE42, X86_F_X2APIC,
	X86_F_MOVBE, X86_F_POPCNT, X86_F_TSC_DEADLINE, X86_F_AES, X86_F_XSAVE, X86_F_AVX, X86_F_F16C,
	X86_F_RDRAND, X86_F_FSGSBASE, X86_F_BMI1, X86_F_AVX2, X86_F_SMEP, X86_F_BMI2, X86_F_ERMS,
	X86_F_INVPCID, X86_F_RDSEED, X86_F_ADX, X86_F_SMAP, X86_F_CLFLUSHOPT, X86_F_CLWB, X86_F_SHA,
	X86_F_RDPID, X86_F_XSAVEOPT, X86_F_XSAVEC, X86_F_XGETBV1, X86_F_XSAVES, X86_F_LAHF64,
	X86_F_ABM, X86_F_3DNOWPREFETCH, X86_F_SYSCALL, X86_F_NX, X86_F_PDPE1GB, X86_F_RDTSCP, X86_F_LM,
	X86_F_PSE, X86_F_PAE, X86_F_PGE, X86_F_PSE36, X86_F_MCE, X86_F_PAT, X86_F_MTRR, X86_F_APIC,
	X86_F_UMIP, X86_F_VAES, X86_F_VPCLMULQDQ, X86_F_GFNI, X86_F_MOVDIRI, X86_F_MOVDIR64B,
	X86_F_SERIALIZE, X86_F_AVX_VNNI, X86_F_SSE4A, X86_F_VMCALL,
	X86_FEATURES
};

enum x86_operand_kind {
	X86_O_NONE,
	X86_O_GPR,   /* reg = enum x86_reg; size 1 = low byte */
	X86_O_GPR8H, /* AH CH DH BH: reg = 0..3 */
	X86_O_MEM,   /* address from seg, base, index, scale, disp, asize */
	X86_O_IMM,   /* value in imm, already extended */
	X86_O_REL,   /* branch displacement in imm */
	X86_O_FAR,   /* immediate far pointer: offset in imm, selector in imm2 */
	X86_O_SEG, X86_O_CR, X86_O_DR,
	X86_O_MMX, X86_O_VEC, /* reg = number */
	X86_O_ST,
};

struct x86_operand {
	uint8_t kind; /* enum x86_operand_kind */
	uint8_t reg;
	uint8_t size; /* bytes; 0 = none or not fixed */
};

#define X86_OPERANDS_MAX 5
#define X86_INSN_BYTES_MAX 15

enum x86_insn_prefix {
	X86_P_LOCK = 1, X86_P_REP = 2 /* F3 */, X86_P_REPNE = 4 /* F2 */, X86_P_OPSIZE = 8,
	X86_P_ADDRSIZE = 16, X86_P_REX = 32, X86_P_VEX = 64, X86_P_SEG = 128 /* explicit override */
};

struct x86_insn {
	x86_semantic *fn;
	const struct x86_row *row;
	uint64_t imm;
	int32_t disp;
	uint16_t imm2; /* far pointer's selector; ENTER's and EXTRQ's second immediate */
	uint8_t len;
	uint8_t prefix;	 /* enum x86_insn_prefix */
	uint8_t mode;	 /* code size: 16, 32 or 64 */
	uint8_t osize;	 /* effective operand size in bytes: 2, 4, 8 */
	uint8_t asize;	 /* effective address size in bytes: 2, 4, 8 */
	uint8_t seg;	 /* enum x86_seg_index of the memory operand, override applied */
	uint8_t base, index, scale; /* enum x86_reg (X86_RIP and X86_ZERO too); shift count. With
				       X86_A_VSIB, index is a vector register */
	uint8_t opcode, modrm;
	uint8_t rex;	 /* W R X B in bits 3..0 (from REX or VEX) */
	uint8_t vl;	 /* vector length in bytes: 16 or 32 */
	uint8_t operand_count;
	uint8_t engine; /* the decoder leaves 0; free for the engine that keeps the instruction */
	struct x86_operand op[X86_OPERANDS_MAX];
};

struct x86_row {
	const char *encoding, *name, *operands, *flags_in, *flags_out, *flags_undef;
	uint32_t attr; /* enum x86_attribute */
	uint16_t feature;
	x86_semantic *fn;
};

/* All rows, in table order. */
extern const struct x86_row x86_rows[];
extern const unsigned x86_row_count;

/* Flags of a row as RFLAGS masks. */
uint32_t x86_flags_mask(const char *letters);

/* The set of features a guest has: one bit an x86_feature. */
struct x86_feature_set {
	uint64_t bits[(X86_FEATURES + 63) / 64];
};

static inline bool x86_has(const struct x86_feature_set *set, unsigned feature)
{
	return feature == X86_F_BASE || (set->bits[feature / 64] >> (feature % 64) & 1);
}

enum x86_decode_result {
	X86_DECODE_OK,
	X86_DECODE_UD,	      /* no such instruction (insn->len is how far it looked, at least 1) */
	X86_DECODE_TRUNCATED, /* needs more than `avail` bytes */
	X86_DECODE_TOO_LONG,  /* over 15 bytes: #GP(0) */
};

/*
 * Decode one instruction for a code segment of `mode` bits (16, 32, 64). Pure; any thread. features
 * NULL = all. `real` = real or virtual-8086 mode (rows that do not exist there are #UD).
 */
enum x86_decode_result x86_decode(struct x86_insn *insn, const uint8_t *bytes, unsigned avail,
	unsigned mode, bool real, const struct x86_feature_set *features);

/* Intel-syntax text, for logs and the differ; returns buf. */
char *x86_format(const struct x86_insn *insn, uint64_t rip, char *buf, size_t size);

#endif
