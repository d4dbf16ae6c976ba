/*
 * The CPUID model a guest sees (design: shared by all engines). A model is a list of leaves; features
 * for the decoder are derived from it. SDM 2A "CPUID", AMD APM 3 appendix E, and KVM's paravirtual
 * leaves at 0x40000000.
 */
#ifndef LODGE_ISA_X86_CPUID_H
#define LODGE_ISA_X86_CPUID_H

#include "isa/x86/insn.h"

#define X86_CPUID_LEAVES_MAX 96
#define X86_CPUID_FLAGS_MAX  128
#define X86_CPU_CHANGES_MAX  64

struct error;

/* Clock of the local APIC's timer and "crystal" of leaf 0x15: Linux takes them to be the same. */
#define X86_CPUID_APIC_HZ 1000000000ull

struct x86_cpuid_leaf {
	uint32_t leaf, subleaf;
	bool indexed; /* subleaf matters */
	uint32_t eax, ebx, ecx, edx;
};

/* Flags by their number: an index into the table of cpuid_flags.c, of this build only. */
struct x86_cpuid_flag_set {
	uint64_t bits[X86_CPUID_FLAGS_MAX / 64];
};

struct x86_cpuid_model {
	unsigned count;
	struct x86_cpuid_leaf leaf[X86_CPUID_LEAVES_MAX];
	unsigned phys_bits;
	uint64_t tsc_hz;
	struct x86_feature_set features;
	struct x86_cpuid_flag_set wanted; /* asked for by name or level */
};

/* ---- choosing a model (docs/cpu.md) ---- */

enum x86_cpu_base {
	X86_CPU_MAX, /* the default: all that the engine can do */
	X86_CPU_HOST,
	X86_CPU_LEVEL1, /* x86-64-v1 .. v3: levels of the x86-64 psABI */
	X86_CPU_LEVEL2,
	X86_CPU_LEVEL3,
	X86_CPU_BASES
};

enum x86_cpu_vendor { X86_CPU_VENDOR_HOST, X86_CPU_VENDOR_AMD, X86_CPU_VENDOR_INTEL };

/* Zeros are the default. */
struct x86_cpu_choice {
	enum x86_cpu_base base;
	enum x86_cpu_vendor vendor;
	bool has_family, has_model, has_stepping; /* else the host's */
	unsigned family, model, stepping;	  /* with the extensions added in */
	unsigned change_count;
	struct x86_cpu_change {
		uint8_t flag; /* its number */
		bool on;
	} change[X86_CPU_CHANGES_MAX]; /* in the order given: the last one counts */
};

/*
 * Parse "MODEL[,+FLAG][,-FLAG][,vendor=amd|intel][,family=N][,model=N][,stepping=N]". Looks at no host.
 * -EINVAL with a line that names what is unknown and says what there is.
 */
int x86_cpu_choice_parse(struct x86_cpu_choice *ret_choice, const char *text, struct error *err);
/* Is it the host's vendor, family, model and stepping? */
bool x86_cpu_choice_is_native(const struct x86_cpu_choice *choice);
const char *x86_cpu_base_name(enum x86_cpu_base base);

/*
 * The model of that choice on this host, as engines that run guest code through our own instruction
 * semantics can give it: vector instructions run on the host's own; no side-channel mitigations needed
 * (ARCH_CAPABILITIES), KVM paravirtual leaves. cpus: processors in the guest (topology). tsc_hz: rate of
 * the guest's TSC. -ENOTSUP: a flag that was asked for can't be given here; the line names it.
 */
int x86_cpuid_choose(struct x86_cpuid_model *model, const struct x86_cpu_choice *choice,
	unsigned cpus, uint64_t tsc_hz, struct error *err);

/* The processor has that many bits of physical address at most, 32 to 52. */
void x86_cpuid_limit_phys_bits(struct x86_cpuid_model *model, unsigned bits);

/* The default choice, which always can be given. */
void x86_cpuid_default(struct x86_cpuid_model *model, unsigned cpus, uint64_t tsc_hz);

/* The same for a host that answers CPUID like this; leaves past its maximum are not asked for. */
typedef void x86_cpuid_host(uint32_t leaf, uint32_t subleaf, uint32_t ret_regs[4]);
int x86_cpuid_choose_on(struct x86_cpuid_model *model, const struct x86_cpu_choice *choice,
	unsigned cpus, uint64_t tsc_hz, x86_cpuid_host *host, struct error *err);
void x86_cpuid_from_host(
	struct x86_cpuid_model *model, unsigned cpus, uint64_t tsc_hz, x86_cpuid_host *host);

/*
 * The flags by number, from 0: its name in Linux's /proc/cpuinfo. *ret_name is NULL for one that has no
 * name and can't be chosen. false: there are no more.
 */
bool x86_cpuid_flag_name(unsigned flag, const char **ret_name);
/* Does the model show it? */
bool x86_cpuid_shows(const struct x86_cpuid_model *model, unsigned flag);
/* Why no model shows it on this host (a clause, such as "this host's processor lacks it"), or NULL. */
const char *x86_cpuid_refusal(unsigned flag);
/*
 * For an engine that has removed flags from a model, or components from leaf 0xd's mask of XCR0: take away what stands
 * on them too, have leaf 0xd describe what is left, and derive the features.
 */
void x86_cpuid_settle(struct x86_cpuid_model *model);
/*
 * For an engine that has removed flags from a model: -ENOTSUP if the model's user asked for one of them.
 * The line names them and `who`, who can't give them.
 */
int x86_cpuid_check(const struct x86_cpuid_model *model, const char *who, struct error *err);

/* What CPUID returns on a processor with this APIC id and these CR4/XCR0 (OSXSAVE, XSAVE size bits). */
void x86_cpuid_query(const struct x86_cpuid_model *model, uint32_t apic_id, uint64_t cr4,
	uint64_t xcr0, uint64_t xss, uint32_t leaf, uint32_t subleaf, uint32_t ret_regs[4]);

/* Recompute `features` from the leaves. */
void x86_cpuid_derive(struct x86_cpuid_model *model);

/* IA32_ARCH_CAPABILITIES of the model. */
uint64_t x86_cpuid_arch_capabilities(const struct x86_cpuid_model *model);

#endif
