/*
 * Inside of the native executor: the context that stubs work on, and how semantic functions of
 * vec_*.c and fpu_*.c get and run a stub. Private to isa/x86.
 *
 * A stub is a C function of one argument, the context. It loads the operands that
 * native_ctx.operand points to into fixed host registers, runs one instruction and leaves its
 * results in the context; guest state is changed by the caller, after everything that may fault.
 */
#ifndef LODGE_ISA_X86_NATIVE_STUB_H
#define LODGE_ISA_X86_NATIVE_STUB_H

#include "base/codebuf.h"
#include "isa/x86/access.h"
#include "isa/x86/native.h"

#define NATIVE_STUBS	  2048 /* slots of the cache, a power of two; flushed when half full */
#define NATIVE_CODE_BYTES (256u << 10)
#define NATIVE_STUB_BYTES 256 /* no stub is longer */

struct native_ctx {
	uint8_t fx[512] __attribute__((aligned(64))); /* FXSAVE image: x87 stubs only */
	uint8_t mem[64] __attribute__((aligned(64))); /* stands for the memory operand */
	union x86_vector out;		       /* operand 0's new value (XMM0's: PCMPxSTRM) */
	const void *operand[X86_OPERANDS_MAX]; /* register operands: where their value is */
	uint64_t out_gpr;		       /* the same if it is a GPR (ECX: PCMPxSTRI) */
	uint64_t rflags;
	uint64_t rax, rdx; /* implicit inputs of PCMPESTRx */
	uint32_t mxcsr, host_mxcsr;
	uint16_t host_fcw;
	uint16_t fcw, fsw; /* NATIVE_X87_LIGHT: in, out */
	uint8_t st[2][16]; /* the same: ST(0) and ST(i) in, the result out in [0] */
};

enum native_shape {
	NATIVE_VEC,	  /* vector, MMX and GPR operands from insn->op[] */
	NATIVE_PCMPSTR,	  /* and EAX, EDX in, ECX, XMM0 out */
	NATIVE_X87_LIGHT, /* arithmetic on ctx->st[0] and [1], or memory */
	NATIVE_X87,	  /* whole x87 state through the FXSAVE image */
};

typedef void native_fn(struct native_ctx *ctx);

struct x86_native {
	struct native_ctx ctx;
	struct codebuf code;
	size_t used;
	unsigned stub_count;
	struct {
		uint64_t key; /* 0 = free */
		native_fn *fn;
	} stub[NATIVE_STUBS];
};

/*
 * The stub for this instruction, made if need be; the context belongs to it until it was called.
 * NULL: this host cannot execute it, or has no memory for code: the guest gets #UD.
 */
native_fn *x86_native_stub(
	struct x86_cpu *cpu, const struct x86_insn *insn, enum native_shape shape);

/* Memory operand in ctx->mem: alignment check and load. */
enum x86_status x86_native_load(
	struct x86_cpu *cpu, const struct x86_insn *insn, void *buf, unsigned size);
enum x86_status x86_native_store(
	struct x86_cpu *cpu, const struct x86_insn *insn, const void *buf, unsigned size);

/* How an instruction is encoded, parsed from its row; registers and immediates apart. */
struct native_encoding {
	uint8_t prefix; /* 0, 0x66, 0xf3, 0xf2 */
	uint8_t map;	/* 0: one byte, 1: 0F, 2: 0F38, 3: 0F3A */
	bool vex;
	int8_t digit; /* /digit, or -1 */
};

int x86_native_encoding(const struct x86_row *row, struct native_encoding *ret_encoding);

/* Can this host execute instructions of this feature? */
bool x86_native_host_has(unsigned feature);

#endif
