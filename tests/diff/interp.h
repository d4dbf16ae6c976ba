/*
 * The harness's interpreter half: a processor in ring 3 of long mode whose linear addresses are those
 * of the native process, and the rows that cannot be compared.
 */
#ifndef LODGE_TESTS_DIFF_INTERP_H
#define LODGE_TESTS_DIFF_INTERP_H

#include "guest.h"

/* Why an instruction, or a case, is not compared. */
enum diff_skip {
	DIFF_SKIP_NONE,
	DIFF_SKIP_NOTEST,    /* the row says that its result depends on time or host */
	DIFF_SKIP_SYSCALL,   /* enters the host's kernel */
	DIFF_SKIP_VSYSCALL,  /* Linux acts on faults there, or tells of an earlier fault */
	DIFF_SKIP_INTERRUPT, /* goes through the host's IDT */
	DIFF_SKIP_UMIP,	     /* Linux emulates it */
	DIFF_SKIP_XCR0,	     /* shows the host's XCR0, or AVX-512 state */
	DIFF_SKIP_HOST,	     /* this host lacks the feature */
	DIFF_SKIP_UNDEFINED, /* reads a flag that the one before left undefined */
	DIFF_SKIP_ENDLESS,
	DIFF_SKIP_EXTRA,     /* an instruction that the host has and the table does not */
	DIFF_SKIP_HOST_LOOP, /* faults here, and for ever on the host: 32-bit pushes across 4 GiB */
	DIFF_SKIP_MODE32,    /* 32-bit code, which this host's kernel does not run */
	DIFF_SKIP_MXCSR,     /* MXCSR.MM, which guests are not offered */
	DIFF_SKIP_CPU_NODE,  /* a selector of Linux that says which CPU this is */
	DIFF_SKIP_XINUSE,    /* XSAVEOPT, XSAVEC: is zeroed AVX state in use? */
	DIFF_SKIP_PARTIAL,   /* faults half-way; what was done by then is left open */
	DIFF_SKIP_VENDOR,    /* Intel's and AMD's processors differ, each as documented */
	DIFF_SKIPS,
};

extern const char *const diff_skip_names[DIFF_SKIPS];

struct diff_interp {
	struct x86_cpu cpu;
	struct diff_guest guest;
	bool mode32;   /* the host runs 32-bit code */
	bool unmended; /* show what guests see where the host has more, see diff_notes.mended */
};

/* What of a result is not to be compared exactly. */
struct diff_notes {
	uint32_t undefined;    /* flags that the table says are not defined at the end */
	bool cr2_open;	       /* the order of the faulting instruction's accesses is not */
	bool mxcsr_open;       /* flags of #XM: which of DPPS's and DPPD's steps were done is not */
	bool checks_open;      /* ... nor is that of its checks: any #GP or #PF will do */
	bool mended;	       /* FXSAVE or its kin ran: the result was made the host's */
	uint64_t instructions; /* completed, or ended by the exception */
	bool length_open; /* no instruction, of no known length: over 15 bytes it would be #GP */
};

int diff_interp_create(const struct diff_shared *shared, struct diff_interp **ret_interp);
void diff_interp_free(struct diff_interp *interp);

/* Why a row is never compared; NONE = it is. */
enum diff_skip diff_row_skip(const struct diff_interp *interp, const struct x86_row *row);

/*
 * Run a case. A skip means that there is no result and that the case must not run natively either.
 */
enum diff_skip diff_interp_run(struct diff_interp *interp, const struct diff_case *c,
	struct diff_result *ret_result, struct diff_notes *ret_notes);

#endif
