/*
 * The whole state of a KVM vCPU to and from the canonical struct x86_state. Linux's
 * Documentation/virt/kvm/api.rst names each structure's fields.
 */
#include "base/cleanup.h"
#include "base/util.h"
#include "engine/kvm/private.h"
#include "isa/x86/msr.h"
#include "isa/x86/xsave.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MSR_KVM_WALL_CLOCK  0x4b564d00u
#define MSR_KVM_SYSTEM_TIME 0x4b564d01u
#define LAPIC_SLOT_BYTES    16
#define LAPIC_TIMER_INITIAL 0x38
#define LAPIC_TIMER_CURRENT 0x39
#define LAPIC_TIMER_DIVIDE  0x3e

/* ---- segments ---- */

static struct x86_segment segment_from_kvm(const struct kvm_segment *k)
{
	struct x86_segment s = { .base = k->base, .limit = k->limit, .selector = k->selector };

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
	const struct kvm_segment *segs[6] = { &k->es, &k->cs, &k->ss, &k->ds, &k->fs, &k->gs };

	for (unsigned i = 0; i < 6; i++)
		s->seg[i] = segment_from_kvm(segs[i]);
	s->ldtr = segment_from_kvm(&k->ldt);
	s->tr = segment_from_kvm(&k->tr);
	s->gdtr = (struct x86_table_register){ k->gdt.base, k->gdt.limit };
	s->idtr = (struct x86_table_register){ k->idt.base, k->idt.limit };
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
	struct kvm_segment *segs[6] = { &k->es, &k->cs, &k->ss, &k->ds, &k->fs, &k->gs };

	for (unsigned i = 0; i < 6; i++)
		*segs[i] = segment_to_kvm(&s->seg[i]);
	k->ldt = segment_to_kvm(&s->ldtr);
	k->tr = segment_to_kvm(&s->tr);
	k->gdt = (struct kvm_dtable){ .base = s->gdtr.base, .limit = s->gdtr.limit };
	k->idt = (struct kvm_dtable){ .base = s->idtr.base, .limit = s->idtr.limit };
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

/* ---- general registers ---- */

static void regs_from_kvm(struct x86_state *s, const struct kvm_regs *k)
{
	const uint64_t values[16] = { k->rax, k->rcx, k->rdx, k->rbx, k->rsp, k->rbp, k->rsi, k->rdi,
		k->r8, k->r9, k->r10, k->r11, k->r12, k->r13, k->r14, k->r15 };

	memcpy(s->reg, values, sizeof(values));
	s->reg[X86_RIP] = k->rip;
	s->reg[X86_ZERO] = 0;
	s->rflags = k->rflags;
}

static void regs_to_kvm(const struct x86_state *s, struct kvm_regs *k)
{
	const uint64_t *r = s->reg;

	*k = (struct kvm_regs){ .rax = r[X86_RAX], .rcx = r[X86_RCX], .rdx = r[X86_RDX],
		.rbx = r[X86_RBX], .rsp = r[X86_RSP], .rbp = r[X86_RBP], .rsi = r[X86_RSI],
		.rdi = r[X86_RDI], .r8 = r[X86_R8], .r9 = r[X86_R9], .r10 = r[X86_R10],
		.r11 = r[X86_R11], .r12 = r[X86_R12], .r13 = r[X86_R13], .r14 = r[X86_R14],
		.r15 = r[X86_R15], .rip = r[X86_RIP], .rflags = s->rflags };
}

/* ---- MSRs: one list for both directions ---- */

struct msr_field {
	uint32_t index;
	size_t offset; /* of the uint64_t in struct x86_state */
};

#define FIELD(index_, field_)                                                                      \
	{                                                                                          \
		index_, offsetof(struct x86_state, field_)                                         \
	}

static const struct msr_field msr_fields[] = {
	FIELD(X86_MSR_TSC, tsc),
	FIELD(X86_MSR_STAR, msr.star),
	FIELD(X86_MSR_LSTAR, msr.lstar),
	FIELD(X86_MSR_CSTAR, msr.cstar),
	FIELD(X86_MSR_SFMASK, msr.sfmask),
	FIELD(X86_MSR_KERNEL_GS_BASE, msr.kernel_gs_base),
	FIELD(X86_MSR_SYSENTER_CS, msr.sysenter_cs),
	FIELD(X86_MSR_SYSENTER_ESP, msr.sysenter_esp),
	FIELD(X86_MSR_SYSENTER_EIP, msr.sysenter_eip),
	FIELD(X86_MSR_PAT, msr.pat),
	FIELD(X86_MSR_MISC_ENABLE, msr.misc_enable),
	FIELD(X86_MSR_TSC_AUX, msr.tsc_aux),
	FIELD(X86_MSR_TSC_ADJUST, msr.tsc_adjust),
	FIELD(X86_MSR_SPEC_CTRL, msr.spec_ctrl),
	FIELD(X86_MSR_DEBUGCTL, msr.debugctl),
	FIELD(X86_MSR_XSS, msr.xss),
	FIELD(X86_MSR_MCG_STATUS, msr.mcg_status),
	FIELD(X86_MSR_MCG_CTL, msr.mcg_ctl),
	FIELD(X86_MSR_MTRR_DEF_TYPE, msr.mtrr_def_type),
	FIELD(X86_MSR_MTRR_FIX64K, msr.mtrr_fixed[0]),
	FIELD(X86_MSR_MTRR_FIX16K, msr.mtrr_fixed[1]),
	FIELD(X86_MSR_MTRR_FIX16K + 1, msr.mtrr_fixed[2]),
	FIELD(X86_MSR_MTRR_FIX4K, msr.mtrr_fixed[3]),
	FIELD(X86_MSR_MTRR_FIX4K + 1, msr.mtrr_fixed[4]),
	FIELD(X86_MSR_MTRR_FIX4K + 2, msr.mtrr_fixed[5]),
	FIELD(X86_MSR_MTRR_FIX4K + 3, msr.mtrr_fixed[6]),
	FIELD(X86_MSR_MTRR_FIX4K + 4, msr.mtrr_fixed[7]),
	FIELD(X86_MSR_MTRR_FIX4K + 5, msr.mtrr_fixed[8]),
	FIELD(X86_MSR_MTRR_FIX4K + 6, msr.mtrr_fixed[9]),
	FIELD(X86_MSR_MTRR_FIX4K + 7, msr.mtrr_fixed[10]),
	FIELD(X86_MSR_MTRR_BASE0, msr.mtrr_base[0]),
	FIELD(X86_MSR_MTRR_BASE0 + 1, msr.mtrr_mask[0]),
	FIELD(X86_MSR_MTRR_BASE0 + 2, msr.mtrr_base[1]),
	FIELD(X86_MSR_MTRR_BASE0 + 3, msr.mtrr_mask[1]),
	FIELD(X86_MSR_MTRR_BASE0 + 4, msr.mtrr_base[2]),
	FIELD(X86_MSR_MTRR_BASE0 + 5, msr.mtrr_mask[2]),
	FIELD(X86_MSR_MTRR_BASE0 + 6, msr.mtrr_base[3]),
	FIELD(X86_MSR_MTRR_BASE0 + 7, msr.mtrr_mask[3]),
	FIELD(X86_MSR_MTRR_BASE0 + 8, msr.mtrr_base[4]),
	FIELD(X86_MSR_MTRR_BASE0 + 9, msr.mtrr_mask[4]),
	FIELD(X86_MSR_MTRR_BASE0 + 10, msr.mtrr_base[5]),
	FIELD(X86_MSR_MTRR_BASE0 + 11, msr.mtrr_mask[5]),
	FIELD(X86_MSR_MTRR_BASE0 + 12, msr.mtrr_base[6]),
	FIELD(X86_MSR_MTRR_BASE0 + 13, msr.mtrr_mask[6]),
	FIELD(X86_MSR_MTRR_BASE0 + 14, msr.mtrr_base[7]),
	FIELD(X86_MSR_MTRR_BASE0 + 15, msr.mtrr_mask[7]),
	FIELD(MSR_KVM_SYSTEM_TIME, msr.kvm_system_time),
	FIELD(MSR_KVM_WALL_CLOCK, msr.kvm_wall_clock),
	/* After the TSC and the APIC's mode. */
	FIELD(X86_MSR_TSC_DEADLINE, lapic.tsc_deadline),
};

static bool msr_known(const struct engine_vm *vm, uint32_t index)
{
	/* Not in KVM's list, as they have calls or capabilities of their own. */
	if (index == X86_MSR_TSC_DEADLINE)
		return vm->has_tsc_deadline;
	if (index >= X86_MSR_MTRR_BASE0 && index < X86_MSR_MTRR_BASE0 + 2 * X86_MTRR_VARIABLE)
		return true;
	if (index == X86_MSR_MTRR_DEF_TYPE || (index >= X86_MSR_MTRR_FIX64K && index <= 0x26f))
		return true;
	for (unsigned i = 0; i < vm->msrs->nmsrs; i++)
		if (vm->msrs->indices[i] == index)
			return true;
	return false;
}


/* One at a time where KVM stops at one it does not take after all. */
static int msrs_get(struct engine_vcpu *vcpu, struct x86_state *s)
{
	for (unsigned i = 0; i < ARRAY_SIZE(msr_fields); i++) {
		struct {
			struct kvm_msrs head;
			struct kvm_msr_entry entry;
		} one = { .head.nmsrs = 1, .entry.index = msr_fields[i].index };

		if (!msr_known(vcpu->vm, one.entry.index))
			continue;
		if (kvm_ioctl(vcpu->fd, KVM_GET_MSRS, &one) == 1)
			*(uint64_t *)((char *)s + msr_fields[i].offset) = one.entry.data;
	}
	return 0;
}

/* MSRs whose value moves by itself, or whose write does more than store. */
static bool is_time(uint32_t index)
{
	return index == X86_MSR_TSC || index == X86_MSR_TSC_ADJUST || index == X86_MSR_TSC_DEADLINE ||
	       index == MSR_KVM_SYSTEM_TIME || index == MSR_KVM_WALL_CLOCK;
}

/* An MSR that KVM refuses must hold zero, or something the guest relied on is lost. */
static int msrs_set(struct engine_vcpu *vcpu, const struct x86_state *s, bool time_too)
{
	for (unsigned i = 0; i < ARRAY_SIZE(msr_fields); i++) {
		struct {
			struct kvm_msrs head;
			struct kvm_msr_entry entry;
		} one = { .head.nmsrs = 1, .entry.index = msr_fields[i].index };

		one.entry.data = *(const uint64_t *)((const char *)s + msr_fields[i].offset);
		if (!msr_known(vcpu->vm, one.entry.index) ||
			(!time_too && is_time(one.entry.index)))
			continue;
		if (kvm_ioctl(vcpu->fd, KVM_SET_MSRS, &one) != 1 && one.entry.data)
			log_debug("kvm", "vCPU %u: MSR %#x does not take %#llx", vcpu->config.index,
				one.entry.index, (unsigned long long)one.entry.data);
	}
	return 0;
}

/* ---- FPU ---- */

static int fpu_get(struct engine_vcpu *vcpu, struct x86_state *s)
{
	struct kvm_xsave area;
	struct kvm_xcrs xcrs = { 0 };
	int status = kvm_ioctl(vcpu->fd, KVM_GET_XSAVE, &area);

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
	struct kvm_xcrs xcrs = { .nr_xcrs = 1, .xcrs[0].value = s->xcr0 };
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

static int lapic_get(struct engine_vcpu *vcpu, struct x86_state *s)
{
	struct kvm_lapic_state k;
	int status = kvm_ioctl(vcpu->fd, KVM_GET_LAPIC, &k);

	for (unsigned i = 0; status == 0 && i < ARRAY_SIZE(s->lapic.reg); i++)
		memcpy(&s->lapic.reg[i], k.regs + i * LAPIC_SLOT_BYTES, 4);
	s->lapic.timer_left_ns = (uint64_t)s->lapic.reg[LAPIC_TIMER_CURRENT] *
				 divisor(s->lapic.reg[LAPIC_TIMER_DIVIDE]);
	return status;
}

static int lapic_set(struct engine_vcpu *vcpu, const struct x86_state *s)
{
	struct kvm_lapic_state k = { { 0 } };

	for (unsigned i = 0; i < ARRAY_SIZE(s->lapic.reg); i++)
		memcpy(k.regs + i * LAPIC_SLOT_BYTES, &s->lapic.reg[i], 4);
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

static int events_get(struct engine_vcpu *vcpu, struct x86_state *s)
{
	struct kvm_vcpu_events k;
	int status = kvm_ioctl(vcpu->fd, KVM_GET_VCPU_EVENTS, &k);

	if (status < 0)
		return status;
	s->event = (struct x86_event){ .type = X86_EVENT_NONE };
	if (k.exception.injected)
		s->event = (struct x86_event){ X86_EVENT_EXCEPTION, k.exception.nr,
			k.exception.has_error_code, k.exception.error_code };
	else if (k.interrupt.injected)
		s->event = (struct x86_event){ k.interrupt.soft ? X86_EVENT_SOFT_INT : X86_EVENT_INTR,
			k.interrupt.nr, false, 0 };
	s->interrupt_shadow = k.interrupt.shadow & KVM_X86_SHADOW_INT_STI;
	s->mov_ss_shadow = k.interrupt.shadow & KVM_X86_SHADOW_INT_MOV_SS;
	s->nmi_blocked = k.nmi.masked;
	s->nmi_pending = k.nmi.pending || k.nmi.injected;
	s->sipi_vector = (uint8_t)k.sipi_vector;
	return 0;
}

static int events_set(struct engine_vcpu *vcpu, const struct x86_state *s)
{
	struct kvm_vcpu_events k = { .flags = KVM_VCPUEVENT_VALID_NMI_PENDING |
					      KVM_VCPUEVENT_VALID_SIPI_VECTOR |
					      KVM_VCPUEVENT_VALID_SHADOW };
	uint8_t type = s->event.type;

	k.exception.injected = type == X86_EVENT_EXCEPTION;
	k.interrupt.injected = type == X86_EVENT_INTR || type == X86_EVENT_SOFT_INT;
	k.interrupt.soft = type == X86_EVENT_SOFT_INT;
	if (k.exception.injected) {
		k.exception.nr = s->event.vector;
		k.exception.has_error_code = s->event.has_error;
		k.exception.error_code = s->event.error;
	} else if (k.interrupt.injected) {
		k.interrupt.nr = s->event.vector;
	}
	k.interrupt.shadow = (s->interrupt_shadow ? KVM_X86_SHADOW_INT_STI : 0) |
			     (s->mov_ss_shadow ? KVM_X86_SHADOW_INT_MOV_SS : 0);
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
	struct kvm_debugregs k = { .dr6 = s->dr[6], .dr7 = s->dr[7] };

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
	/* First: it settles what KVM has half-done, which the others then show. */
	status = kvm_ioctl(vcpu->fd, KVM_GET_MP_STATE, &mp);
	if (status == 0)
		status = kvm_ioctl(vcpu->fd, KVM_GET_REGS, &regs);
	if (status == 0)
		status = kvm_ioctl(vcpu->fd, KVM_GET_SREGS, &sregs);
	if (status < 0)
		return status;
	ret_state->activity = activity_from_kvm(mp.mp_state);
	regs_from_kvm(ret_state, &regs);
	sregs_from_kvm(ret_state, &sregs);
	status = fpu_get(vcpu, ret_state);
	if (status == 0)
		status = events_get(vcpu, ret_state);
	if (status == 0)
		status = debug_get(vcpu, ret_state);
	if (status == 0)
		status = msrs_get(vcpu, ret_state);
	if (status == 0)
		status = lapic_get(vcpu, ret_state);
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
		status = msrs_set(vcpu, state, false);
	if (status == 0)
		status = events_set(vcpu, state);
	return status;
}

int kvm_state_set(struct engine_vcpu *vcpu, const struct x86_state *state)
{
	struct kvm_mp_state mp = { .mp_state = activity_to_kvm(state->activity) };
	int status = set_core(vcpu, state);

	if (status == 0 && state->lapic.apic_base)
		status = lapic_set(vcpu, state);
	if (status == 0)
		status = msrs_set(vcpu, state, true);
	if (status == 0)
		status = events_set(vcpu, state);
	if (status == 0)
		status = kvm_ioctl(vcpu->fd, KVM_SET_MP_STATE, &mp);
	return status;
}
