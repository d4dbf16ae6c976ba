/*
 * The CPUID model a guest sees (design: shared by all engines). A model is a list of leaves; features
 * for the decoder are derived from it. SDM 2A "CPUID", AMD APM 3 appendix E, and KVM's paravirtual
 * leaves at 0x40000000.
 */
#ifndef LODGE_ISA_X86_CPUID_H
#define LODGE_ISA_X86_CPUID_H

#include "isa/x86/insn.h"

#define X86_CPUID_LEAVES_MAX 96

/* Clock of the local APIC's timer and "crystal" of leaf 0x15: Linux takes them to be the same. */
#define X86_CPUID_APIC_HZ 1000000000ull

struct x86_cpuid_leaf {
	uint32_t leaf, subleaf;
	bool indexed; /* subleaf matters */
	uint32_t eax, ebx, ecx, edx;
};

struct x86_cpuid_model {
	unsigned count;
	struct x86_cpuid_leaf leaf[X86_CPUID_LEAVES_MAX];
	unsigned phys_bits;
	uint64_t tsc_hz;
	struct x86_feature_set features;
};

/*
 * The default model for engines that run guest code through our own instruction semantics: the host's
 * vendor and name, every feature of isa/x86's table that this host also has (vector instructions run
 * on it), no side-channel mitigations needed (ARCH_CAPABILITIES), KVM paravirtual leaves.
 * cpus: processors in the guest (topology). tsc_hz: rate of the guest's TSC.
 */
void x86_cpuid_default(struct x86_cpuid_model *model, unsigned cpus, uint64_t tsc_hz);

/* The same for a host that answers CPUID like this; leaves past its maximum are not asked for. */
typedef void x86_cpuid_host(uint32_t leaf, uint32_t subleaf, uint32_t ret_regs[4]);
void x86_cpuid_from_host(struct x86_cpuid_model *model, unsigned cpus, uint64_t tsc_hz,
	x86_cpuid_host *host);

/* What CPUID returns on a processor with this APIC id and these CR4/XCR0 (OSXSAVE, XSAVE size bits). */
void x86_cpuid_query(const struct x86_cpuid_model *model, uint32_t apic_id, uint64_t cr4, uint64_t xcr0,
	uint64_t xss, uint32_t leaf, uint32_t subleaf, uint32_t ret_regs[4]);

/* Recompute `features` from the leaves. */
void x86_cpuid_derive(struct x86_cpuid_model *model);

/* IA32_ARCH_CAPABILITIES of the model. */
uint64_t x86_cpuid_arch_capabilities(const struct x86_cpuid_model *model);

#endif
