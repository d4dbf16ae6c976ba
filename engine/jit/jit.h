/*
 * The binary translator: what its parts share. docs/jit.md describes how it works; in short:
 *
 * Guest code is translated block by block to host code of the same instruction set. While translated code
 * runs, host RSP points at the vCPU (`struct engine_vcpu`, whose first member is the processor), so that
 * every field is one displacement away; the memory below is a small stack for signals and calls of stubs.
 * Guest registers are in the host registers of the same name, but guest RSP is in R9, and guest R9, R10, R11
 * stay in cpu.s.reg[]: host R10 and R11 are scratch. GS is based at the present context's tables; which of its
 * two a block uses hangs on its mode, so that system calls need not write it.
 *
 * Arithmetic flags are the host's ("native"), or `flags_kept` ("kept") after a memory access had to clobber
 * them; each point of a translation knows which. At a block's entry they are native; at its branch entry
 * (reached through the branch cache) they are kept. All other bits of RFLAGS are in cpu.s.rflags alone.
 *
 * Vector registers are the host's while `vec_live`; a block with vector instructions sees to that at its begin.
 *
 * Every instruction that touches memory has a slow path: spill the registers, call the row's semantic
 * function for the whole instruction, load the registers. So nothing of an instruction is committed before
 * its last access has been checked, and faults, devices, page crossings and code pages need no code here.
 *
 * Threads: everything is one vCPU's own, but for jit_cache_invalidate(), which another thread may call
 * while it holds all vCPUs outside translated code (soft_exclusive_begin()).
 */
#ifndef LODGE_ENGINE_JIT_JIT_H
#define LODGE_ENGINE_JIT_JIT_H

#include "base/codebuf.h"
#include "engine/engine.h"
#include "engine/jit/emit.h"
#include "engine/jit/options.h"
#include "engine/soft/soft.h"
#include "isa/x86/insn.h"

#define JIT_SEGMENTS	4   /* parts of the cache; the oldest is evicted as a whole */
#define JIT_STACK_BYTES 65536
#define JIT_SPAN_SLOTS	8

/* ---- what is known of a row (row.c) ---- */

/* How an instruction is translated. */
enum jit_kind {
	JIT_HELPER, /* by a call of its semantic function */
	JIT_NATIVE, /* by a copy with its operands replaced */
	JIT_NOP,
	JIT_RAW, /* by a copy of its bytes */
	JIT_RAW_VECTOR, /* the same, with vectors live */
	JIT_LEA,
	JIT_PUSH,
	JIT_POP,
	JIT_LEAVE,
	JIT_JMP,
	JIT_JCC,
	JIT_JRCXZ,
	JIT_CALL,
	JIT_JMP_RM,
	JIT_CALL_RM,
	JIT_RET,
	JIT_CLD,
	JIT_STD,
	JIT_CLI,
	JIT_STI,
	JIT_SWAPGS,
	JIT_PUSHF,
	JIT_RDTSC,
	JIT_RDTSCP,
	JIT_DIV,
	JIT_IDIV,
	JIT_BIT, /* BT and its kin with the number in a register */
};

/* The general registers that an instruction that is copied may write. */
enum jit_writes {
	JIT_WRITES_FIRST = 1, /* its first operand */
	JIT_WRITES_SECOND = 2,
	JIT_WRITES_AX_DX = 4,
	JIT_WRITES_ALL = 8, /* who knows */
};

struct jit_row {
	uint8_t kind;	      /* enum jit_kind */
	uint16_t flags_in;    /* arithmetic flags read */
	uint16_t flags_kill;  /* written or left undefined, in every case */
	uint16_t flags_undef; /* left undefined: the processor may keep them */
	bool checked;	      /* x86_check_row() before its semantic function */
	bool vector;	      /* uses XMM or YMM registers natively */
	bool leaves;	      /* what blocks are keyed by may change: go back to the dispatcher */
	bool modrm, plus_reg; /* has a ModRM byte; a register in the opcode */
	uint8_t writes;	      /* enum jit_writes */
	uint8_t prefix;	      /* mandatory F2 or F3, else 0 */
	uint8_t where[X86_OPERANDS_MAX]; /* enum x86_where */
};

/* The rows' table, in the order of x86_rows; made at the first call. */
const struct jit_row *jit_rows(void);

static inline const struct jit_row *jit_row_of(const struct jit_row *rows, const struct x86_insn *insn)
{
	return &rows[insn->row - x86_rows];
}

/* A relative branch whose target is cut to 16 bits. */
static inline bool jit_cuts_rip(const struct x86_insn *insn, const struct jit_row *row)
{
	return insn->osize == 2 && (row->kind == JIT_JMP || row->kind == JIT_JCC ||
					   row->kind == JIT_JRCXZ || row->kind == JIT_CALL);
}

/* ---- copies of instructions (rewrite.c) ---- */

struct jit_operands {
	uint8_t reg[X86_OPERANDS_MAX]; /* host register of each general-purpose operand */
	uint8_t base, index;	       /* host registers of the memory operand: [base + index + disp] */
	int32_t disp;
};

/*
 * Emit a copy of insn, whose bytes are at `bytes`, with its operands replaced. False: it cannot be
 * encoded (a high byte register with a REX), and nothing was emitted.
 */
bool jit_rewrite(struct emit *e, const struct jit_row *row, const struct x86_insn *insn,
	const uint8_t *bytes, const struct jit_operands *operands);

/* ---- the cache (cache.c) ---- */

/*
 * A place in translated code that calls a semantic function. Few are ever called, so the instruction is
 * decoded (again) when one is, and kept as long as the segment has room for it.
 */
struct jit_site {
	struct x86_insn *insn; /* NULL: not yet */
	uint8_t bytes[X86_INSN_BYTES_MAX], len;
	uint16_t page_offset; /* of the instruction */
	uint16_t done;	      /* instructions of the block before it */
	bool checked, leaves, helper;
	uint8_t segment;
};

/* A piece of memory for instructions of sites. */
#define JIT_INSNS 255
struct jit_insns {
	struct jit_insns *next;
	unsigned count;
	struct x86_insn insn[JIT_INSNS];
};

struct jit_block;
struct translation;

/* A jump out of a block to another of the same page. */
struct jit_exit {
	struct jit_block *from;
	struct jit_block *to; /* NULL: goes to its stub */
	struct jit_exit *next, **pprev; /* of those that lead to `to` */
	uint8_t *rel;	      /* the jump's rel32, writable mapping */
	uint8_t *stub;	      /* where it leads when not linked, writable mapping */
	bool vec;	      /* vectors are live when it is taken */
	bool plain;	      /* leads to a block without spans */
	uint16_t target;      /* page offset */
};

/* A block's place in a list that it can leave at once, however long the list is. */
struct jit_place {
	struct jit_block *next, **pprev;
};

struct jit_block {
	uint64_t key;
	struct jit_place by_hash, by_page, by_second;
	struct jit_block *segment_next;
	uint64_t lines, second_lines; /* marks of code that it rests on, of its page and the second */
	gpa_t second; /* the page that its one instruction ends in; JIT_NO_PAGE: the same */
	uint8_t *entry, *vec_entry; /* the second with vectors live */
	uint8_t *branch_entry; /* writable mapping */
	struct jit_exit *incoming;
	struct jit_exit **exit;
	uint16_t exit_count;
	bool gone;
};

#define JIT_NO_PAGE (~(gpa_t)0)
#define JIT_NO_SITE (~(uint32_t)0)

struct jit_segment {
	uint8_t *hot, *cold;  /* code grows up from its start, stubs grow down from its end */
	uint8_t *meta, *meta_end;
	struct jit_block *blocks;
	struct jit_insns *insns; /* of sites that were called */
	size_t insns_bytes;
};

#define JIT_HASH	131072
#define JIT_PAGE_HASH	32768
#define JIT_SECOND_HASH 1024
#define JIT_FRONT	4096

struct jit_cache {
	struct codebuf code;
	uint8_t *meta; /* sites are named by their offset in it */
	size_t segment_code, segment_meta;
	uint8_t *segments_start; /* behind the stubs; writable mapping */
	struct jit_segment segment[JIT_SEGMENTS];
	struct jit_insns *insns_free; /* of evicted segments, to be used again */
	unsigned now;
	/* What was looked up last, without a chain; a key of 0 is no block's. */
	struct {
		uint64_t key;
		struct jit_block *block;
	} front[JIT_FRONT];
	struct jit_block *hash[JIT_HASH];
	struct jit_block *page[JIT_PAGE_HASH]; /* blocks by hash of their page */
	struct jit_block *second[JIT_SECOND_HASH]; /* the same of their second page */
};

/* What a block is keyed by besides its address. */
enum jit_mode {
	JIT_MODE_64 = 1,
	JIT_MODE_SSE = 2,    /* SSE instructions are available */
	JIT_MODE_AVX = 4,
	JIT_MODE_MASKED = 8, /* all SIMD exceptions are masked */
	JIT_MODE_USER = 16,  /* CPL is 3: the second of the context's two tables */
	JIT_MODE_PLAIN = 32, /* without spans (span.c) */
	JIT_MODE_ANY = 128,  /* always set: no key is 0 */
};

/* Where the tables of a block of this mode are, from where GS is based. */
static inline int32_t jit_tables(unsigned mode)
{
	return mode & JIT_MODE_USER ? (int32_t)sizeof(struct x86_tlb) : 0;
}

static inline uint64_t jit_key(gpa_t gpa, unsigned mode)
{
	return gpa << 8 | mode;
}

struct engine_vcpu {
	struct soft_vcpu soft; /* first: see the head of this file */

	/* What translated code reads and writes. */
	uint64_t rip_page;   /* RIP of the first byte of the page that it came from */
	uint64_t host_rsp;
	uint64_t return_to;  /* of a stub's caller, while it has no stack */
	uint64_t scratch;
	uint64_t span[JIT_SPAN_SLOTS]; /* host addresses of spans (span.c) */
	uint16_t flags_kept; /* AH as LAHF makes it, and OF in AL */
	uint32_t branch_site; /* of the branch out of a page that is being taken, or JIT_NO_SITE */
	uint64_t branch_mask; /* for PEXT */
	uint64_t exit_arg;
	struct engine_tsc_line tsc; /* span 0: none */
	const void *vec_entry; /* what a block with vector instructions calls at its begin */
	bool vec_live;

	/* The dispatcher's. */
	enum x86_status status;
	bool interrupt_aside; /* one waits until IF is set: SOFT_INTR, but not polled */
	bool code_changed; /* blocks went: leave translated code at the next boundary */
	unsigned mode;
	struct jit_exit *pending; /* exit to link when its target is known */
	gva_t pending_branch;	  /* target to fill the branch cache with */
	bool has_pending_branch;
	uintptr_t gs; /* what GS is based at */
	bool has_fsgsbase;
	const struct jit_row *rows;
	struct jit_options options;
	struct jit_cache cache;
	struct translation *translation; /* work space */
	uint32_t random;
	struct {
		uint32_t (*enter)(struct engine_vcpu *vcpu, const void *code);
		const uint8_t *slow_native, *slow_kept, *exit_link, *exit_poll, *exit_step,
			*branch_miss; /* rw */
		const void *vec_load, *vec_ready; /* rx */
	} stub;
};

struct engine_vm {
	struct soft_vm soft;
	struct x86_env_ops env;
	struct jit_options options;
};

enum jit_exit_kind {
	JIT_EXIT_STATUS, /* a semantic function said so: vcpu->status */
	JIT_EXIT_LINK,	 /* exit_arg: struct jit_exit that has no block yet */
	JIT_EXIT_POLL,	 /* the same, to look at what needs attention */
	JIT_EXIT_STEP,	 /* the same, to run one instruction there outside of translated code */
	JIT_EXIT_BRANCH, /* exit_arg: target that the branch cache does not hold */
};

/* Errors: -ENOMEM, -EPERM (no executable memory). */
int jit_cache_init(struct engine_vcpu *v, struct error *err);
void jit_cache_done(struct engine_vcpu *v);
struct jit_block *jit_cache_find(struct engine_vcpu *v, uint64_t key);
void jit_cache_add(struct engine_vcpu *v, struct jit_block *block);
/* Room for one block of any size in the present segment: evicts the oldest one if it must. */
void jit_cache_make_room(struct engine_vcpu *v);
/* The instruction of a site: its own, or decoded into *space if memory for such has come to its end. */
const struct x86_insn *jit_site_insn(struct engine_vcpu *v, struct jit_site *site, struct x86_insn *space);
/* bytes of the present segment's metadata, zeroed and aligned; NULL: full. */
void *jit_cache_alloc(struct engine_vcpu *v, size_t bytes);
static inline uint32_t jit_cache_name(const struct engine_vcpu *v, const void *meta)
{
	return (uint32_t)((const uint8_t *)meta - v->cache.meta);
}
/* What is to be tied to the next block is not any more: it is not where the guest goes on. */
static inline void jit_untie(struct engine_vcpu *v)
{
	v->pending = NULL;
	v->has_pending_branch = false;
}
void jit_exit_link(struct engine_vcpu *v, struct jit_exit *exit, struct jit_block *to);
/* Forget the blocks of a page that rest on code with these marks; v is its owner's or stopped. Returns how
 * many. */
unsigned jit_cache_invalidate(struct engine_vcpu *v, gpa_t page, uint64_t lines);
void jit_cache_forget(struct engine_vcpu *v, struct jit_block *block);
static inline const void *jit_rx(const struct engine_vcpu *v, const uint8_t *rw)
{
	return rw + codebuf_delta(&v->cache.code);
}

/* ---- stubs (stub.c) ---- */

void jit_stubs_make(struct engine_vcpu *v, struct emit *e);
void jit_flags_keep(struct emit *e);	/* native -> kept; uses R10 */
void jit_flags_restore(struct emit *e); /* kept -> native; uses R10 */
void jit_flags_restore_slowly(struct emit *e); /* the same, uses no register */
void jit_branch(struct emit *e, unsigned mode); /* to R10 through the branch cache, flags kept; uses R11 */

/* ---- translation (translate.c, lower.c) ---- */

/*
 * Translate the block at `gpa`, whose page is at `page` in the host; NULL: its first instruction cannot be
 * translated (it crosses the page's end, or is none).
 */
struct jit_block *jit_translate(struct engine_vcpu *v, gpa_t gpa, const uint8_t *page, unsigned mode);

/* What a slow path came to. */
enum jit_slow_result {
	JIT_SLOW_DONE,	 /* go on behind the instruction */
	JIT_SLOW_LEAVE,	 /* to the dispatcher: vcpu->status */
	JIT_SLOW_BRANCH, /* go on at cpu.s.reg[X86_RIP], through the branch cache */
};

/* Called by translated code (jit.c). Returns enum jit_slow_result. */
uint32_t jit_slow(struct engine_vcpu *v, uint32_t site);

#endif
