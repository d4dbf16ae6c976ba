/*
 * Paging: walks of the guest's page tables. SDM 3A chapter 5: 32-bit paging with PSE-36, PAE and 4-level
 * paging, access rights (5.6), page faults (5.7), accessed and dirty bits (5.8). What a walk found is
 * kept in the TLB (isa/x86/tlb.h).
 *
 * Invariants:
 * - No TLB entry is made for an address that is not canonical, so a TLB hit needs no such check.
 * - Page-table entries are read once each, and accessed and dirty bits are set by a compare-and-exchange
 *   with what was read; a walk that lost the race starts again.
 *
 * Left out on purpose: protection keys, 5-level paging, and memory types. A system access made at CPL < 3
 * counts as explicit for SMAP (RFLAGS.AC lets it pass). Page tables outside RAM read as zero: nothing is
 * present.
 */
#include "isa/x86/access.h"

#include "base/util.h"

#define PTE_P	 BIT(0)
#define PTE_W	 BIT(1)
#define PTE_U	 BIT(2)
#define PTE_A	 BIT(5)
#define PTE_D	 BIT(6)
#define PTE_PS	 BIT(7)
#define PTE_G	 BIT(8)
#define PTE_NX	 BIT(63)
#define PTE_ADDR BIT_MASK(51, 12)

#define WALK_LEVELS_MAX 4

/* One walk: where it went, and the rights that all its levels grant together. */
struct walk {
	gpa_t gpa; /* of the page's byte that was asked for */
	unsigned shift;
	bool write, user, exec, global;
	unsigned depth, entry_bytes;
	struct {
		gpa_t gpa;
		uint64_t entry;
	} level[WALK_LEVELS_MAX];
};

enum walk_result { WALK_OK, WALK_NOT_PRESENT, WALK_RESERVED };

/* ---- walking ---- */

static uint64_t entry_read(const struct x86_cpu *cpu, gpa_t gpa, unsigned bytes)
{
	const void *host = memory_host(cpu->memory, gpa, bytes, false);
	if (!host)
		return 0;
	if (bytes == 8)
		return __atomic_load_n((const uint64_t *)host, __ATOMIC_RELAXED);
	return __atomic_load_n((const uint32_t *)host, __ATOMIC_RELAXED);
}

/* Bits that must be zero in a present entry whose next lower level covers 1 << shift bytes. */
static uint64_t entry_reserved(const struct x86_cpu *cpu, unsigned shift, bool large)
{
	uint64_t mask =
		cpu->long_mode ? BIT_MASK(51, cpu->phys_bits) : BIT_MASK(62, cpu->phys_bits);

	if (!(cpu->s.msr.efer & X86_EFER_NXE))
		mask |= PTE_NX;
	if (large)
		mask |= BIT_MASK(shift - 1, 13);
	if (shift == 39 || (shift == 30 && !x86_has(&cpu->features, X86_F_PDPE1GB)))
		mask |= PTE_PS;
	return mask;
}

/* The same for a 4 MiB page of 32-bit paging: bits 20:13 are address bits 39:32, as far as they exist. */
static uint64_t entry_reserved_pse(const struct x86_cpu *cpu)
{
	unsigned bits = MIN(cpu->phys_bits, 40u);
	if (!x86_has(&cpu->features, X86_F_PSE36) || bits < 32)
		bits = 32;
	return BIT_MASK(21, 13 + bits - 32);
}

static gpa_t leaf_address(const struct walk *walk, uint64_t entry, gva_t linear)
{
	const uint64_t offset = BIT(walk->shift) - 1;
	if (walk->shift == 22)
		return (entry & 0xffc00000) | (entry >> 13 & 0xff) << 32 | (linear & offset);
	return (entry & PTE_ADDR & ~offset) | (linear & offset);
}

/* Where the first table is, and what its entries cover. */
static enum walk_result walk_root(const struct x86_cpu *cpu, struct walk *walk, gva_t linear,
	gpa_t *ret_base, unsigned *ret_shift)
{
	*walk = (struct walk){.write = true, .user = true, .exec = true, .entry_bytes = 8};
	*ret_base = (uint32_t)cpu->s.cr3 & PTE_ADDR;
	if (cpu->long_mode) {
		*ret_base = cpu->s.cr3 & PTE_ADDR;
		*ret_shift = 39;
	} else if (cpu->s.cr4 & X86_CR4_PAE) {
		uint64_t pdpte = cpu->s.pdpte[linear >> 30 & 3];
		if (!(pdpte & PTE_P))
			return WALK_NOT_PRESENT;
		*ret_base = pdpte & PTE_ADDR;
		*ret_shift = 21;
	} else {
		walk->entry_bytes = 4;
		*ret_shift = 22;
	}
	return WALK_OK;
}

static enum walk_result walk_tables(const struct x86_cpu *cpu, struct walk *walk, gva_t linear)
{
	gpa_t base;
	unsigned shift;
	if (walk_root(cpu, walk, linear, &base, &shift) != WALK_OK)
		return WALK_NOT_PRESENT;

	const bool wide = walk->entry_bytes == 8;
	const unsigned index_bits = wide ? 9 : 10;
	for (;; shift -= index_bits) {
		const gpa_t at =
			base + (linear >> shift & (BIT(index_bits) - 1)) * walk->entry_bytes;
		const uint64_t entry = entry_read(cpu, at, walk->entry_bytes);
		if (!(entry & PTE_P))
			return WALK_NOT_PRESENT;
		const bool large = shift > 12 && shift < 39 && (entry & PTE_PS) &&
				   (wide || (cpu->s.cr4 & X86_CR4_PSE));
		uint64_t reserved = 0;
		if (wide)
			reserved = entry_reserved(cpu, shift, large);
		else if (large)
			reserved = entry_reserved_pse(cpu);
		if (entry & reserved)
			return WALK_RESERVED;
		walk->level[walk->depth].gpa = at;
		walk->level[walk->depth++].entry = entry;
		walk->write &= !!(entry & PTE_W);
		walk->user &= !!(entry & PTE_U);
		walk->exec &= !(entry & PTE_NX);
		if (large || shift == 12) {
			walk->shift = shift;
			walk->global = (entry & PTE_G) && (cpu->s.cr4 & X86_CR4_PGE);
			walk->gpa = leaf_address(walk, entry, linear);
			return WALK_OK;
		}
		base = entry & PTE_ADDR;
	}
}

/* ---- rights ---- */

static bool walk_permits(
	const struct x86_cpu *cpu, const struct walk *walk, enum x86_access access, bool user)
{
	if (user && !walk->user)
		return false;
	const bool supervisor_on_user = !user && walk->user;
	if (access == X86_EXEC)
		return walk->exec && !(supervisor_on_user && (cpu->s.cr4 & X86_CR4_SMEP));
	if (access == X86_WRITE && !walk->write && (user || (cpu->s.cr0 & X86_CR0_WP)))
		return false;
	if (supervisor_on_user && (cpu->s.cr4 & X86_CR4_SMAP))
		return cpu->cpl < 3 && (cpu->s.rflags & X86_AC);
	return true;
}

static enum x86_status page_fault(
	struct x86_cpu *cpu, gva_t linear, enum x86_access access, bool user, uint32_t error)
{
	const bool nx = (cpu->s.cr4 & X86_CR4_PAE) && (cpu->s.msr.efer & X86_EFER_NXE);

	if (access == X86_WRITE)
		error |= X86_PFEC_W;
	if (user)
		error |= X86_PFEC_U;
	if (access == X86_EXEC && (nx || (cpu->s.cr4 & X86_CR4_SMEP)))
		error |= X86_PFEC_I;
	x86_fault_code(cpu, X86_PF_EXC, error);
	cpu->fault.address = linear;
	return X86_FAULT;
}

/* Set bits of an entry that still is what the walk read. false: it is not, walk again. */
static bool entry_set(struct x86_cpu *cpu, gpa_t gpa, unsigned bytes, uint64_t entry, uint64_t bits)
{
	bool done;

	if ((entry & bits) == bits)
		return true;
	void *host = memory_host(cpu->memory, gpa, bytes, true);
	if (!host)
		return true; /* tables in ROM: the write is dropped */
	uint32_t narrow = (uint32_t)entry;
	if (bytes == 8)
		done = __atomic_compare_exchange_n((uint64_t *)host, &entry, entry | bits, false,
			__ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
	else
		done = __atomic_compare_exchange_n((uint32_t *)host, &narrow,
			narrow | (uint32_t)bits, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
	if (done)
		x86_code_written(cpu, gpa, bytes);
	return done;
}

static bool walk_set_accessed(struct x86_cpu *cpu, const struct walk *walk, bool dirty)
{
	for (unsigned i = 0; i < walk->depth; i++) {
		const bool leaf = i + 1 == walk->depth;
		const uint64_t bits = PTE_A | (leaf && dirty ? PTE_D : 0);
		if (!entry_set(
			    cpu, walk->level[i].gpa, walk->entry_bytes, walk->level[i].entry, bits))
			return false;
	}
	return true;
}

/* ---- translation ---- */

static void fill(struct x86_cpu *cpu, const struct walk *walk, gva_t linear, enum x86_access access,
	bool user)
{
	/* What RFLAGS.AC permits now it may not permit later. */
	if (!user && walk->user && access != X86_EXEC && (cpu->s.cr4 & X86_CR4_SMAP))
		return;
	cpu->tlb_fills++;
	x86_tlb_fill(cpu, linear, walk->gpa, walk->shift, walk->global, access, user);
}

enum x86_status x86_translate(
	struct x86_cpu *cpu, gva_t linear, enum x86_access access, bool user, gpa_t *ret_gpa)
{
	struct walk walk;

	if (!(cpu->s.cr0 & X86_CR0_PG)) {
		walk = (struct walk){.gpa = (uint32_t)linear, .shift = GUEST_PAGE_SHIFT};
		fill(cpu, &walk, linear, access, user);
		*ret_gpa = walk.gpa;
		return X86_OK;
	}
	if (cpu->long_mode && !x86_canonical(cpu, linear))
		return x86_gp(cpu, 0);
	do {
		enum walk_result result = walk_tables(cpu, &walk, linear);
		if (result == WALK_NOT_PRESENT)
			return page_fault(cpu, linear, access, user, 0);
		if (result == WALK_RESERVED)
			return page_fault(cpu, linear, access, user, X86_PFEC_P | X86_PFEC_RSVD);
		if (!walk_permits(cpu, &walk, access, user))
			return page_fault(cpu, linear, access, user, X86_PFEC_P);
	} while (!walk_set_accessed(cpu, &walk, access == X86_WRITE));
	fill(cpu, &walk, linear, access, user);
	*ret_gpa = walk.gpa;
	return X86_OK;
}

bool x86_translate_debug(const struct x86_cpu *cpu, gva_t linear, gpa_t *ret_gpa)
{
	struct walk walk;

	if (!(cpu->s.cr0 & X86_CR0_PG)) {
		*ret_gpa = (uint32_t)linear;
		return true;
	}
	if (cpu->long_mode && !x86_canonical(cpu, linear))
		return false;
	if (walk_tables(cpu, &walk, linear) != WALK_OK)
		return false;
	*ret_gpa = walk.gpa;
	return true;
}

bool x86_load_pdptes(struct x86_cpu *cpu, uint64_t cr3)
{
	const uint64_t reserved =
		BIT_MASK(2, 1) | BIT_MASK(8, 5) | BIT_MASK(63, MIN(cpu->phys_bits, 63u));
	const gpa_t base = cr3 & 0xffffffe0;
	uint64_t pdpte[4];

	for (unsigned i = 0; i < 4; i++) {
		pdpte[i] = entry_read(cpu, base + i * 8, 8);
		if ((pdpte[i] & PTE_P) && (pdpte[i] & reserved))
			return false;
	}
	for (unsigned i = 0; i < 4; i++)
		cpu->s.pdpte[i] = pdpte[i];
	return true;
}
