/*
 * The canonical architectural state of one x86 vCPU: what every engine loads from and saves to, what
 * snapshots and migration carry, and what differential tests compare. Names and bit positions follow
 * the Intel SDM (volumes 1 and 3) and the AMD APM (volume 2).
 *
 * Plain data, no pointers: copying it is copying the processor. Nothing in it is lazy or derived.
 */
#ifndef LODGE_ISA_X86_STATE_H
#define LODGE_ISA_X86_STATE_H

#include "base/types.h"

/* General registers by their instruction encoding. */
enum x86_reg {
	X86_RAX, X86_RCX, X86_RDX, X86_RBX, X86_RSP, X86_RBP, X86_RSI, X86_RDI,
	X86_R8, X86_R9, X86_R10, X86_R11, X86_R12, X86_R13, X86_R14, X86_R15,
	X86_RIP,  /* kept with them so that RIP-relative addressing is an ordinary base */
	X86_ZERO, /* always zero: the base or index of an address that has none */
	X86_REGS,
};

enum x86_seg_index {
	X86_ES, X86_CS, X86_SS, X86_DS, X86_FS, X86_GS,
	X86_SEG_NONE, /* an operand with no segment (already linear) */
};

/* A segment register with its hidden part. */
struct x86_segment {
	uint64_t base;
	uint32_t limit;	   /* in bytes, granularity already applied: the last valid offset */
	uint16_t selector;
	uint16_t attr;	   /* X86_SEG_*: descriptor bits 40-47 in bits 0-7, bits 52-55 in 12-15 */
};

#define X86_SEG_TYPE	 0x000f
#define X86_SEG_ACCESSED 0x0001
#define X86_SEG_WRITE	 0x0002 /* data: writable; code: readable */
#define X86_SEG_EXPAND	 0x0004 /* data: expand-down; code: conforming */
#define X86_SEG_CODE	 0x0008
#define X86_SEG_S	 0x0010 /* code or data, not system */
#define X86_SEG_DPL	 0x0060
#define X86_SEG_DPL_SHIFT 5
#define X86_SEG_P	 0x0080 /* present. Clear in a loaded register = unusable (null selector) */
#define X86_SEG_AVL	 0x1000
#define X86_SEG_L	 0x2000
#define X86_SEG_DB	 0x4000
#define X86_SEG_G	 0x8000

struct x86_table_register {
	uint64_t base;
	uint16_t limit;
};

/* 64 bytes, so that AVX-512 state has its place; AVX uses the low 32. */
union x86_vector {
	uint8_t b[64];
	uint16_t w[32];
	uint32_t d[16];
	uint64_t q[8];
	float f[16];
	double df[8];
};

struct x86_fpu {
	uint16_t fcw, fsw, fop;
	uint8_t ftw; /* abridged, as FXSAVE: bit set = register (physical number) not empty */
	uint64_t fip, fdp;
	uint16_t fcs, fds;
	uint32_t mxcsr;
	uint8_t st[8][16]; /* ST(0)..ST(7) in stack order, 80 bits used of each, as FXSAVE */
	union x86_vector vec[32]; /* XMM/YMM/ZMM; MMX registers alias st[] */
	uint64_t opmask[8];
};

/* The local APIC's register page, one entry for each 16-byte slot, as xAPIC lays it out (SDM 3A 11.4.1).
 * Timer count-down is carried as the time left. */
struct x86_lapic {
	uint64_t apic_base; /* the MSR: enabled, x2APIC, BSP, address */
	uint32_t reg[64];
	uint64_t timer_left_ns; /* until the current count reaches zero; 0 = not counting */
	uint64_t tsc_deadline;	/* guest TSC; 0 = disarmed */
};

enum x86_activity { X86_RUNNING, X86_HALTED, X86_WAIT_FOR_SIPI, X86_SHUTDOWN };

/* An exception or interrupt whose delivery was interrupted and must be resumed. */
enum x86_event_type {
	X86_EVENT_NONE,
	X86_EVENT_INTR,	     /* external interrupt */
	X86_EVENT_NMI,
	X86_EVENT_EXCEPTION, /* hardware exception: fault, trap or abort */
	X86_EVENT_SOFT_INT,  /* INT n: descriptor privilege is checked */
	X86_EVENT_SOFT_EXC,  /* INT3, INTO: privilege checked, vector fixed */
	X86_EVENT_ICEBP,     /* INT1: no privilege check */
};

struct x86_event {
	uint8_t type; /* enum x86_event_type */
	uint8_t vector;
	bool has_error;
	uint32_t error;
};

#define X86_MTRR_VARIABLE 8

struct x86_msrs {
	uint64_t efer, star, lstar, cstar, sfmask, kernel_gs_base;
	uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
	uint64_t pat, misc_enable, tsc_aux, spec_ctrl, debugctl, xss, tsc_adjust;
	uint64_t mtrr_def_type, mtrr_fixed[11], mtrr_base[X86_MTRR_VARIABLE],
		mtrr_mask[X86_MTRR_VARIABLE];
	uint64_t kvm_system_time, kvm_wall_clock, kvm_async_pf, kvm_steal_time, kvm_eoi,
		kvm_poll_control;
	uint64_t mcg_status, mcg_ctl;
};

struct x86_state {
	uint64_t reg[X86_REGS]; /* enum x86_reg */
	uint64_t rflags;
	struct x86_segment seg[6], ldtr, tr;
	struct x86_table_register gdtr, idtr;
	uint64_t cr0, cr2, cr3, cr4, cr8, xcr0;
	uint64_t pdpte[4]; /* loaded at MOV CR3 under PAE outside long mode */
	uint64_t dr[8];	   /* 4 and 5 unused */
	struct x86_msrs msr;
	uint64_t tsc; /* the guest's TSC at the moment of the save */
	struct x86_fpu fpu;
	struct x86_lapic lapic;
	struct x86_event event; /* being delivered; NONE between instructions */
	uint8_t activity;	/* enum x86_activity */
	uint8_t sipi_vector;
	bool interrupt_shadow; /* after STI */
	bool mov_ss_shadow;    /* after MOV SS / POP SS: also holds off #DB and NMI */
	bool nmi_blocked, nmi_pending;
};

/* RFLAGS */
#define X86_CF	 (1u << 0)
#define X86_PF	 (1u << 2)
#define X86_AF	 (1u << 4)
#define X86_ZF	 (1u << 6)
#define X86_SF	 (1u << 7)
#define X86_TF	 (1u << 8)
#define X86_IF	 (1u << 9)
#define X86_DF	 (1u << 10)
#define X86_OF	 (1u << 11)
#define X86_IOPL (3u << 12)
#define X86_IOPL_SHIFT 12
#define X86_NT	 (1u << 14)
#define X86_RF	 (1u << 16)
#define X86_VM	 (1u << 17)
#define X86_AC	 (1u << 18)
#define X86_VIF	 (1u << 19)
#define X86_VIP	 (1u << 20)
#define X86_ID	 (1u << 21)
#define X86_FLAGS_FIXED 0x2u
#define X86_FLAGS_ARITH (X86_CF | X86_PF | X86_AF | X86_ZF | X86_SF | X86_OF)
#define X86_FLAGS_WRITABLE 0x00247fd5u /* every defined flag but RF, VM, VIF, VIP: see POPF */

/* Control registers */
#define X86_CR0_PE (1u << 0)
#define X86_CR0_MP (1u << 1)
#define X86_CR0_EM (1u << 2)
#define X86_CR0_TS (1u << 3)
#define X86_CR0_ET (1u << 4)
#define X86_CR0_NE (1u << 5)
#define X86_CR0_WP (1u << 16)
#define X86_CR0_AM (1u << 18)
#define X86_CR0_NW (1u << 29)
#define X86_CR0_CD (1u << 30)
#define X86_CR0_PG (1u << 31)
#define X86_CR4_VME (1u << 0)
#define X86_CR4_PVI (1u << 1)
#define X86_CR4_TSD (1u << 2)
#define X86_CR4_DE (1u << 3)
#define X86_CR4_PSE (1u << 4)
#define X86_CR4_PAE (1u << 5)
#define X86_CR4_MCE (1u << 6)
#define X86_CR4_PGE (1u << 7)
#define X86_CR4_PCE (1u << 8)
#define X86_CR4_OSFXSR (1u << 9)
#define X86_CR4_OSXMMEXCPT (1u << 10)
#define X86_CR4_UMIP (1u << 11)
#define X86_CR4_LA57 (1u << 12)
#define X86_CR4_FSGSBASE (1u << 16)
#define X86_CR4_PCIDE (1u << 17)
#define X86_CR4_OSXSAVE (1u << 18)
#define X86_CR4_SMEP (1u << 20)
#define X86_CR4_SMAP (1u << 21)
#define X86_CR4_PKE (1u << 22)
#define X86_EFER_SCE (1u << 0)
#define X86_EFER_LME (1u << 8)
#define X86_EFER_LMA (1u << 10)
#define X86_EFER_NXE (1u << 11)
#define X86_XCR0_X87 1u
#define X86_XCR0_SSE 2u
#define X86_XCR0_AVX 4u

/* Exception vectors */
enum x86_vector_number {
	X86_DE = 0, X86_DB = 1, X86_NMI = 2, X86_BP = 3, X86_OF_EXC = 4, X86_BR = 5, X86_UD = 6,
	X86_NM = 7, X86_DF_EXC = 8, X86_TS = 10, X86_NP = 11, X86_SS_EXC = 12, X86_GP = 13,
	X86_PF_EXC = 14, X86_MF = 16, X86_AC_EXC = 17, X86_MC = 18, X86_XM = 19,
};

/* Page-fault error code */
#define X86_PFEC_P 1u
#define X86_PFEC_W 2u
#define X86_PFEC_U 4u
#define X86_PFEC_RSVD 8u
#define X86_PFEC_I 16u

/* The state of a processor after RESET (SDM 3A table 10-1): real mode, CS:IP = f000:fff0. */
void x86_state_reset(struct x86_state *state);
/* After INIT: as reset, but FPU, MSRs, CR0.CD/NW, TSC and APIC base are kept. */
void x86_state_init(struct x86_state *state);
/* What a SIPI does: real mode at vector << 12. */
void x86_state_sipi(struct x86_state *state, uint8_t vector);

#endif
