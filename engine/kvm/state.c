/*
 * The whole state of a KVM vCPU to and from the canonical struct x86_state. Linux's
 * Documentation/virt/kvm/api.rst names each structure's fields.
 */
#include "base/cleanup.h"
#include "base/util.h"
#include "engine/kvm/private.h"
#include "isa/x86/xsave.h"
#include "memory/memory.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MXCSR_WORD	    6
#define XSTATE_BV_WORD	    (X86_XSAVE_LEGACY_BYTES / 4)
#define LAPIC_SLOT_BYTES    16
#define LAPIC_ID	    0x02
#define LAPIC_LVT_TIMER	    0x32
#define LAPIC_TIMER_INITIAL 0x38
#define LAPIC_TIMER_CURRENT 0x39
#define LAPIC_TIMER_DIVIDE  0x3e
#define LVT_TIMER_MODE	    0x60000u
#define APIC_BASE_MODE	    0xc00u /* enabled, x2APIC */

/* ---- segments ---- */

static struct x86_segment segment_from_kvm(const struct kvm_segment *k)
{
	struct x86_segment s = {.base = k->base, .limit = k->limit, .selector = k->selector};

	s.attr = (uint16_t)(k->type | k->s << 4 | k->dpl << X86_SEG_DPL_SHIFT | k->avl << 12 |
			    k->l << 13 | k->db << 14 | k->g << 15);
	if (k->present && !k->unusable)
		s.attr |= X86_SEG_P;
	return s;
}

static struct kvm_segment segment_to_kvm(const struct x86_segment *s)
{
	return (struct kvm_segment){
		.base = s->base,
		.limit = s->limit,
		.selector = s->selector,
		.type = s->attr & X86_SEG_TYPE,
		.s = s->attr >> 4 & 1,
		.dpl = s->attr >> X86_SEG_DPL_SHIFT & 3,
		.present = s->attr >> 7 & 1,
		.avl = s->attr >> 12 & 1,
		.l = s->attr >> 13 & 1,
		.db = s->attr >> 14 & 1,
		.g = s->attr >> 15 & 1,
		.unusable = !(s->attr & X86_SEG_P),
	};
}

static void sregs_from_kvm(struct x86_state *s, const struct kvm_sregs *k)
{
	const struct kvm_segment *segs[6] = {&k->es, &k->cs, &k->ss, &k->ds, &k->fs, &k->gs};

	for (unsigned i = 0; i < 6; i++)
		s->seg[i] = segment_from_kvm(segs[i]);
	s->ldtr = segment_from_kvm(&k->ldt);
	s->tr = segment_from_kvm(&k->tr);
	s->gdtr = (struct x86_table_register){k->gdt.base, k->gdt.limit};
	s->idtr = (struct x86_table_register){k->idt.base, k->idt.limit};
	s->cr0 = k->cr0;
	s->cr2 = k->cr2;
	s->cr3 = k->cr3;
	s->cr4 = k->cr4;
	s->cr8 = k->cr8;
	s->msr.efer = k->efer;
	s->lapic.apic_base = k->apic_base;
}

static void sregs_to_kvm(const struct x86_state *s, struct kvm_sregs *k)
{
	struct kvm_segment *segs[6] = {&k->es, &k->cs, &k->ss, &k->ds, &k->fs, &k->gs};

	for (unsigned i = 0; i < 6; i++)
		*segs[i] = segment_to_kvm(&s->seg[i]);
	k->ldt = segment_to_kvm(&s->ldtr);
	k->tr = segment_to_kvm(&s->tr);
	k->gdt = (struct kvm_dtable){.base = s->gdtr.base, .limit = s->gdtr.limit};
	k->idt = (struct kvm_dtable){.base = s->idtr.base, .limit = s->idtr.limit};
	k->cr0 = s->cr0;
	k->cr2 = s->cr2;
	k->cr3 = s->cr3;
	k->cr4 = s->cr4;
	k->cr8 = s->cr8;
	k->efer = s->msr.efer;
	if (s->lapic.apic_base)
		k->apic_base = s->lapic.apic_base;
	memset(k->interrupt_bitmap, 0, sizeof(k->interrupt_bitmap));
}

/* ---- the four PDPTEs of PAE paging, which the processor holds ---- */

static bool has_pdptes(const struct x86_state *s)
{
	return (s->cr0 & X86_CR0_PG) && (s->cr4 & X86_CR4_PAE) && !(s->msr.efer & X86_EFER_LMA);
}

static int pdptes_get(struct engine_vcpu *vcpu, struct x86_state *s)
{
	struct kvm_sregs2 k = {0};

	if (!has_pdptes(s))
		return 0;
	int status = vcpu->vm->has_sregs2 ? kvm_ioctl(vcpu->fd, KVM_GET_SREGS2, &k) : -ENOTSUP;
	if (status == 0 && (k.flags & KVM_SREGS2_FLAGS_PDPTRS_VALID)) {
		memcpy(s->pdpte, k.pdptrs, sizeof(s->pdpte));
		return 0;
	}
	/* An older KVM keeps them to itself; what CR3 points to is what they were loaded from. */
	if (memory_read(vcpu->vm->config.memory, s->cr3 & 0xffffffe0, s->pdpte, sizeof(s->pdpte)) <
		0)
		memset(s->pdpte, 0, sizeof(s->pdpte));
	return 0;
}

/* KVM_SET_SREGS has loaded them from memory, where the guest may have changed them since. */
static int pdptes_set(struct engine_vcpu *vcpu, const struct x86_state *s)
{
	struct kvm_sregs2 k = {0};

	if (!has_pdptes(s) || !vcpu->vm->has_sregs2)
		return 0;
	int status = kvm_ioctl(vcpu->fd, KVM_GET_SREGS2, &k);
	if (status < 0 || !(k.flags & KVM_SREGS2_FLAGS_PDPTRS_VALID))
		return status;
	memcpy(k.pdptrs, s->pdpte, sizeof(s->pdpte));
	k.tr = segment_to_kvm(&s->tr); /* KVM calls every TSS busy */
	return kvm_ioctl(vcpu->fd, KVM_SET_SREGS2, &k);
}

/* ---- general registers ---- */

static void regs_from_kvm(struct x86_state *s, const struct kvm_regs *k)
{
	const uint64_t values[16] = {k->rax, k->rcx, k->rdx, k->rbx, k->rsp, k->rbp, k->rsi, k->rdi,
		k->r8, k->r9, k->r10, k->r11, k->r12, k->r13, k->r14, k->r15};

	memcpy(s->reg, values, sizeof(values));
	s->reg[X86_RIP] = k->rip;
	s->reg[X86_ZERO] = 0;
	s->rflags = k->rflags;
}

static void regs_to_kvm(const struct x86_state *s, struct kvm_regs *k)
{
	const uint64_t *r = s->reg;

	*k = (struct kvm_regs){.rax = r[X86_RAX],
		.rcx = r[X86_RCX],
		.rdx = r[X86_RDX],
		.rbx = r[X86_RBX],
		.rsp = r[X86_RSP],
		.rbp = r[X86_RBP],
		.rsi = r[X86_RSI],
		.rdi = r[X86_RDI],
		.r8 = r[X86_R8],
		.r9 = r[X86_R9],
		.r10 = r[X86_R10],
		.r11 = r[X86_R11],
		.r12 = r[X86_R12],
		.r13 = r[X86_R13],
		.r14 = r[X86_R14],
		.r15 = r[X86_R15],
		.rip = r[X86_RIP],
		.rflags = s->rflags};
}

/* ---- FPU ---- */

static int fpu_get(struct engine_vcpu *vcpu, struct x86_state *s)
{
	struct kvm_xsave area = {0};
	struct kvm_xcrs xcrs = {0};
	int status = kvm_ioctl(vcpu->fd, KVM_GET_XSAVE, &area);

	/* XSTATE_BV may show the host's own components; the guest's XCR0 does not let it have them. */
	area.region[XSTATE_BV_WORD] &= X86_XSAVE_COMPONENTS;
	area.region[XSTATE_BV_WORD + 1] = 0;
	/* Guests have the host's MXCSR: AMD's has a bit (misaligned exceptions, 17) that ours has not. */
	area.region[MXCSR_WORD] &= X86_MXCSR_VALID;
	if (status == 0)
		status = x86_fpu_from_xsave(s, &area, sizeof(area));
	if (status == 0 && vcpu->vm->has_xcrs)
		status = kvm_ioctl(vcpu->fd, KVM_GET_XCRS, &xcrs);
	s->xcr0 = xcrs.nr_xcrs ? xcrs.xcrs[0].value : X86_XCR0_X87;
	return status;
}

static int fpu_set(struct engine_vcpu *vcpu, const struct x86_state *s)
{
	struct kvm_xsave area;
	struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs[0].value = s->xcr0};
	int status = 0;

	x86_fpu_to_xsave(s, &area, sizeof(area));
	if (vcpu->vm->has_xcrs)
		status = kvm_ioctl(vcpu->fd, KVM_SET_XCRS, &xcrs);
	if (status == 0)
		status = kvm_ioctl(vcpu->fd, KVM_SET_XSAVE, &area);
	return status;
}

/* ---- local APIC ---- */

static uint32_t divisor(uint32_t divide)
{
	uint32_t code = (divide & 3) | (divide >> 1 & 4);

	return code == 7 ? 1 : 2u << code;
}

static bool is_x2apic(const struct x86_state *s)
{
	return (s->lapic.apic_base & APIC_BASE_MODE) == APIC_BASE_MODE;
}

static int lapic_get(struct engine_vcpu *vcpu, struct x86_state *s)
{
	struct kvm_lapic_state k;
	int status = kvm_ioctl(vcpu->fd, KVM_GET_LAPIC, &k);

	for (unsigned i = 0; status == 0 && i < ARRAY_SIZE(s->lapic.reg); i++)
		memcpy(&s->lapic.reg[i], k.regs + i * LAPIC_SLOT_BYTES, 4);
	/* In this format (no KVM_X2APIC_API_USE_32BIT_IDS) the ID is always where xAPIC has it. */
	if (is_x2apic(s))
		s->lapic.reg[LAPIC_ID] >>= 24;
	s->lapic.timer_left_ns = (uint64_t)s->lapic.reg[LAPIC_TIMER_CURRENT] *
				 divisor(s->lapic.reg[LAPIC_TIMER_DIVIDE]);
	return status;
}

static int lapic_set(struct engine_vcpu *vcpu, const struct x86_state *s)
{
	uint32_t reg[ARRAY_SIZE(s->lapic.reg)], by = divisor(s->lapic.reg[LAPIC_TIMER_DIVIDE]);
	struct kvm_lapic_state k = {{0}};

	memcpy(reg, s->lapic.reg, sizeof(reg));
	if (is_x2apic(s))
		reg[LAPIC_ID] <<= 24;
	reg[LAPIC_TIMER_CURRENT] =
		(uint32_t)MIN((s->lapic.timer_left_ns + by - 1) / by, (uint64_t)UINT32_MAX);
	/* KVM would fire a one-shot timer that has already fired once more. */
	if (!s->lapic.timer_left_ns && !(reg[LAPIC_LVT_TIMER] & LVT_TIMER_MODE))
		reg[LAPIC_TIMER_INITIAL] = 0;
	for (unsigned i = 0; i < ARRAY_SIZE(reg); i++)
		memcpy(k.regs + i * LAPIC_SLOT_BYTES, &reg[i], 4);
	return kvm_ioctl(vcpu->fd, KVM_SET_LAPIC, &k);
}

/* ---- events and activity ---- */

static uint8_t activity_from_kvm(uint32_t mp_state)
{
	switch (mp_state) {
	case KVM_MP_STATE_HALTED: return X86_HALTED;
	case KVM_MP_STATE_UNINITIALIZED:
	case KVM_MP_STATE_INIT_RECEIVED: return X86_WAIT_FOR_SIPI;
	default: return X86_RUNNING;
	}
}

static uint32_t activity_to_kvm(uint8_t activity)
{
	switch (activity) {
	case X86_HALTED: return KVM_MP_STATE_HALTED;
	case X86_WAIT_FOR_SIPI: return KVM_MP_STATE_UNINITIALIZED;
	default: return KVM_MP_STATE_RUNNABLE;
	}
}

/* What KVM was about to deliver when it left the guest. Software interrupts are not among it: their
 * instruction is executed again. */
static struct x86_event event_from_kvm(const struct kvm_vcpu_events *k)
{
	if (k->exception.injected)
		return (struct x86_event){X86_EVENT_EXCEPTION, k->exception.nr,
			k->exception.has_error_code, k->exception.error_code};
	if (k->nmi.injected)
		return (struct x86_event){.type = X86_EVENT_NMI, .vector = X86_NMI};
	if (k->interrupt.injected && !k->interrupt.soft)
		return (struct x86_event){.type = X86_EVENT_INTR, .vector = k->interrupt.nr};
	return (struct x86_event){.type = X86_EVENT_NONE};
}

static int events_get(struct engine_vcpu *vcpu, struct x86_state *s)
{
	struct kvm_vcpu_events k;
	int status = kvm_ioctl(vcpu->fd, KVM_GET_VCPU_EVENTS, &k);

	if (status < 0)
		return status;
	s->event = event_from_kvm(&k);
	s->interrupt_shadow = k.interrupt.shadow & KVM_X86_SHADOW_INT_STI;
	s->mov_ss_shadow = k.interrupt.shadow & KVM_X86_SHADOW_INT_MOV_SS;
	s->nmi_blocked = k.nmi.masked;
	s->nmi_pending = k.nmi.pending;
	s->sipi_vector = (uint8_t)k.sipi_vector;
	return 0;
}

/* from_others: what other processors and devices send, too. */
static int events_set(struct engine_vcpu *vcpu, const struct x86_state *s, bool from_others)
{
	struct kvm_vcpu_events k = {.flags = KVM_VCPUEVENT_VALID_SHADOW};

	if (from_others)
		k.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR;

	if (s->event.type == X86_EVENT_EXCEPTION) {
		k.exception.injected = true;
		k.exception.nr = s->event.vector;
		k.exception.has_error_code = s->event.has_error;
		k.exception.error_code = s->event.error;
	} else if (s->event.type == X86_EVENT_INTR) {
		k.interrupt.injected = true;
		k.interrupt.nr = s->event.vector;
	}
	k.interrupt.shadow = (s->interrupt_shadow ? KVM_X86_SHADOW_INT_STI : 0) |
			     (s->mov_ss_shadow ? KVM_X86_SHADOW_INT_MOV_SS : 0);
	k.nmi.injected = s->event.type == X86_EVENT_NMI;
	k.nmi.masked = s->nmi_blocked;
	k.nmi.pending = s->nmi_pending;
	k.sipi_vector = s->sipi_vector;
	return kvm_ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &k);
}

static int debug_get(struct engine_vcpu *vcpu, struct x86_state *s)
{
	struct kvm_debugregs k;

	if (!vcpu->vm->has_debugregs)
		return 0;
	int status = kvm_ioctl(vcpu->fd, KVM_GET_DEBUGREGS, &k);
	if (status < 0)
		return status;
	memcpy(s->dr, k.db, 4 * sizeof(uint64_t));
	s->dr[6] = k.dr6;
	s->dr[7] = k.dr7;
	return 0;
}

static int debug_set(struct engine_vcpu *vcpu, const struct x86_state *s)
{
	struct kvm_debugregs k = {.dr6 = s->dr[6], .dr7 = s->dr[7]};

	memcpy(k.db, s->dr, 4 * sizeof(uint64_t));
	return vcpu->vm->has_debugregs ? kvm_ioctl(vcpu->fd, KVM_SET_DEBUGREGS, &k) : 0;
}

/* ---- the whole ---- */

int kvm_state_get(struct engine_vcpu *vcpu, struct x86_state *ret_state)
{
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_mp_state mp;
	int status;

	memset(ret_state, 0, sizeof(*ret_state));
	kvm_take_nmi(vcpu);
	/* First: it settles what KVM has half-done, which the others then show. */
	status = kvm_ioctl(vcpu->fd, KVM_GET_MP_STATE, &mp);
	if (status == 0)
		status = kvm_ioctl(vcpu->fd, KVM_GET_REGS, &regs);
	if (status == 0)
		status = kvm_ioctl(vcpu->fd, KVM_GET_SREGS, &sregs);
	if (status < 0)
		return status;
	ret_state->activity = vcpu->shutdown ? X86_SHUTDOWN : activity_from_kvm(mp.mp_state);
	regs_from_kvm(ret_state, &regs);
	sregs_from_kvm(ret_state, &sregs);
	status = pdptes_get(vcpu, ret_state);
	if (status == 0)
		status = fpu_get(vcpu, ret_state);
	if (status == 0)
		status = events_get(vcpu, ret_state);
	if (status == 0)
		status = debug_get(vcpu, ret_state);
	if (status == 0)
		status = kvm_msrs_get(vcpu, ret_state);
	if (status == 0)
		status = lapic_get(vcpu, ret_state);
	if (vcpu->vm->held)
		ret_state->tsc = vcpu->held_tsc;
	return status;
}

/* What an instruction can change by itself: everything but time and the local APIC. */
static int set_core(struct engine_vcpu *vcpu, const struct x86_state *state)
{
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	int status = kvm_ioctl(vcpu->fd, KVM_GET_SREGS, &sregs);

	if (status < 0)
		return status;
	regs_to_kvm(state, &regs);
	sregs_to_kvm(state, &sregs);
	status = kvm_ioctl(vcpu->fd, KVM_SET_SREGS, &sregs);
	if (status == 0)
		status = pdptes_set(vcpu, state);
	if (status == 0)
		status = kvm_ioctl(vcpu->fd, KVM_SET_REGS, &regs);
	if (status == 0)
		status = fpu_set(vcpu, state);
	if (status == 0)
		status = debug_set(vcpu, state);
	return status;
}

int kvm_state_set_core(struct engine_vcpu *vcpu, const struct x86_state *state)
{
	int status = set_core(vcpu, state);

	if (status == 0)
		status = kvm_msrs_set(vcpu, state, false);
	if (status == 0)
		status = events_set(vcpu, state, false);
	return status;
}

int kvm_state_set(struct engine_vcpu *vcpu, const struct x86_state *state)
{
	struct kvm_mp_state mp = {.mp_state = activity_to_kvm(state->activity)};
	int status = set_core(vcpu, state);

	if (status == 0 && state->lapic.apic_base)
		status = lapic_set(vcpu, state);
	if (status == 0)
		status = kvm_msrs_set(vcpu, state, true);
	if (status == 0)
		status = events_set(vcpu, state, true);
	if (status == 0)
		status = kvm_ioctl(vcpu->fd, KVM_SET_MP_STATE, &mp);
	vcpu->shutdown = state->activity == X86_SHUTDOWN;
	vcpu->nmi = false; /* nmi_pending has it */
	return status;
}
