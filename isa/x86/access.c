/*
 * The slow half of isa/x86/access.h: everything the inline paths leave out. Page crossings, TLB misses,
 * MMIO, read-only memory, canonical and alignment checks, and locked accesses (SDM 3A 9.1, 3A 6.15 "#AC").
 *
 * Invariants: a translation is made for every page of an access before its first byte moves, so that a
 * fault changes nothing. RAM is written only through memory_host(..., write) or a write TLB entry,
 * both of which have marked the page in the dirty log. What wrote without such an entry says so afterwards
 * (x86_code_written()): a page with translated code has none.
 *
 * Left out on purpose: alignment checks of accesses that hit the TLB (x86_cpu_refresh() sees to it that
 * none do while they are on).
 */
#include "isa/x86/access.h"
#include "isa/x86/descriptor.h"
#include "base/util.h"

/* The part of an access that lies in one page. */
struct piece {
	void *host; /* NULL: not RAM (or, for a write, read-only) */
	gpa_t gpa;
	unsigned size;
};

static enum x86_status map_piece(struct x86_cpu *cpu, gva_t linear, unsigned size,
	enum x86_access access, bool user, struct piece *piece)
{
	const struct x86_tlb_entry *e =
		&cpu->context_now->tlb[user].entry[access][x86_tlb_index(linear)];
	piece->size = size;
	if (linear - e->page < GUEST_PAGE_SIZE) {
		piece->gpa = e->gpa + (linear & ~GUEST_PAGE_MASK);
		piece->host = (void *)(e->host + (linear - e->page));
		return X86_OK;
	}
	X86_TRY(x86_translate(cpu, linear, access, user, &piece->gpa));
	piece->host = memory_host(cpu->memory, piece->gpa, size, access == X86_WRITE);
	return X86_OK;
}

/* Translate all pages of an access of up to 4096 bytes: one or two pieces. */
static enum x86_status map_pieces(struct x86_cpu *cpu, gva_t linear, unsigned size,
	enum x86_access access, bool user, struct piece piece[2])
{
	unsigned first = (unsigned)MIN((uint64_t)size, GUEST_PAGE_SIZE - (linear & ~GUEST_PAGE_MASK));

	if (unlikely(cpu->watched))
		x86_watch(cpu, linear, size, access);
	X86_TRY(map_piece(cpu, linear, first, access, user, &piece[0]));
	piece[1].size = size - first;
	if (first == size)
		return X86_OK;
	linear += first;
	if (!cpu->long_mode)
		linear = (uint32_t)linear;
	return map_piece(cpu, linear, size - first, access, user, &piece[1]);
}

/* The largest naturally aligned access at gpa that fits: 1, 2, 4 or 8 bytes. */
static unsigned mmio_step(gpa_t gpa, unsigned left)
{
	unsigned step = 8;
	while (step > left || gpa & (step - 1))
		step /= 2;
	return step;
}

/* Copies of guest memory, in which guests race on purpose: tests/tsan.supp names these two. */
static void ram_read(void *buf, const void *host, unsigned size)
{
	memcpy(buf, host, size);
}

static void ram_write(void *host, const void *buf, unsigned size)
{
	memcpy(host, buf, size);
}

static void piece_read(struct x86_cpu *cpu, const struct piece *piece, uint8_t *buf)
{
	const void *host = piece->host;
	if (!host) /* read-only memory, mapped for a read-modify-write */
		host = memory_host(cpu->memory, piece->gpa, piece->size, false);
	if (host && (piece->size == 2 || piece->size == 4 || piece->size == 8)) {
		uint64_t value = x86_host_load(host, piece->size);
		memcpy(buf, &value, piece->size);
		return;
	}
	if (host) {
		ram_read(buf, host, piece->size);
		return;
	}
	for (unsigned done = 0, step; done < piece->size; done += step) {
		step = mmio_step(piece->gpa + done, piece->size - done);
		uint64_t value = cpu->env->mmio_read(cpu, piece->gpa + done, step);
		memcpy(buf + done, &value, step);
	}
}

static void piece_write(struct x86_cpu *cpu, const struct piece *piece, const uint8_t *buf)
{
	if (piece->host && (piece->size == 2 || piece->size == 4 || piece->size == 8)) {
		uint64_t value = 0;
		memcpy(&value, buf, piece->size);
		x86_host_store(piece->host, piece->size, value);
		return;
	}
	if (piece->host) {
		ram_write(piece->host, buf, piece->size);
		return;
	}
	/* A device, or read-only memory: a flash takes commands there. */
	for (unsigned done = 0, step; done < piece->size; done += step) {
		uint64_t value = 0;
		step = mmio_step(piece->gpa + done, piece->size - done);
		memcpy(&value, buf + done, step);
		cpu->env->mmio_write(cpu, piece->gpa + done, step, value);
	}
}

static void pieces_read(struct x86_cpu *cpu, const struct piece piece[2], void *buf)
{
	piece_read(cpu, &piece[0], buf);
	if (piece[1].size)
		piece_read(cpu, &piece[1], (uint8_t *)buf + piece[0].size);
}

void x86_code_written(struct x86_cpu *cpu, gpa_t gpa, unsigned size)
{
	/* Either we see the translator's mark, or it reads what we wrote. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (unlikely(memory_code_bits(cpu->memory, gpa, size)) && cpu->env->code_written)
		cpu->env->code_written(cpu, gpa, size);
}

/* After pieces_write(), or what else wrote there. */
static void pieces_written(struct x86_cpu *cpu, const struct piece piece[2])
{
	for (unsigned i = 0; i < 2; i++)
		if (piece[i].size && piece[i].host)
			x86_code_written(cpu, piece[i].gpa, piece[i].size);
}

static void pieces_write(struct x86_cpu *cpu, const struct piece piece[2], const void *buf)
{
	piece_write(cpu, &piece[0], buf);
	if (piece[1].size)
		piece_write(cpu, &piece[1], (const uint8_t *)buf + piece[0].size);
}

/* ---- linear addresses ---- */

enum x86_status x86_read_linear(struct x86_cpu *cpu, gva_t linear, void *buf, unsigned size, bool user)
{
	struct piece piece[2];
	X86_TRY(map_pieces(cpu, linear, size, X86_READ, user, piece));
	pieces_read(cpu, piece, buf);
	return X86_OK;
}

enum x86_status x86_write_linear(struct x86_cpu *cpu, gva_t linear, const void *buf, unsigned size,
	bool user)
{
	struct piece piece[2];
	X86_TRY(map_pieces(cpu, linear, size, X86_WRITE, user, piece));
	pieces_write(cpu, piece, buf);
	pieces_written(cpu, piece);
	return X86_OK;
}

enum x86_status x86_probe_write(struct x86_cpu *cpu, gva_t linear, unsigned size, bool user)
{
	struct piece piece[2];
	return map_pieces(cpu, linear, size, X86_WRITE, user, piece);
}

/* ---- segment:offset ---- */

/*
 * What an operand of this size is to be aligned to: AMD's processors check vectors (APM 2 8.2.18 says
 * no more than that "unaligned" accesses are caught) and the images of the x87 state as well.
 */
static unsigned required_alignment(unsigned size)
{
	switch (size) {
	case 2:
	case 4:
	case 8:
	case 16: return size;
	case 32: return 16;
	case 10: return 8;
	case 14:
	case 94: return 2;
	case 28:
	case 108:
	case 512: return 4;
	default: return 1;
	}
}

enum x86_status x86_check_alignment(struct x86_cpu *cpu, gva_t linear, unsigned size)
{
	if (likely(cpu->cpl != 3 || !(cpu->s.rflags & X86_AC) || !(cpu->s.cr0 & X86_CR0_AM)))
		return X86_OK;
	if (linear & (required_alignment(size) - 1))
		return x86_fault_code(cpu, X86_AC_EXC, 0);
	return X86_OK;
}

/* What the TLB could not have said: is this linear address one at all, and aligned if it must be? */
static enum x86_status check_linear(struct x86_cpu *cpu, unsigned seg, gva_t linear, unsigned size,
	enum x86_access access)
{
	if (cpu->mode == 64 && !(x86_canonical(cpu, linear) && x86_canonical(cpu, linear + size - 1)))
		return x86_fault_code(cpu, seg == X86_SS ? X86_SS_EXC : X86_GP, 0);
	X86_TRY(x86_check_alignment(cpu, linear, size));
	if (cpu->watched)
		x86_watch(cpu, linear, size, access);
	return X86_OK;
}

enum x86_status x86_load_slow(struct x86_cpu *cpu, unsigned seg, gva_t linear, unsigned size, void *buf)
{
	X86_TRY(check_linear(cpu, seg, linear, size, X86_READ));
	return x86_read_linear(cpu, linear, buf, size, cpu->cpl == 3);
}

enum x86_status x86_store_slow(struct x86_cpu *cpu, unsigned seg, gva_t linear, unsigned size,
	const void *buf)
{
	X86_TRY(check_linear(cpu, seg, linear, size, X86_WRITE));
	return x86_write_linear(cpu, linear, buf, size, cpu->cpl == 3);
}

enum x86_status x86_load_bytes(struct x86_cpu *cpu, unsigned seg, uint64_t offset, unsigned size, void *buf)
{
	gva_t linear;
	X86_TRY(x86_linear(cpu, seg, offset, size, X86_READ, &linear));
	const void *host = x86_tlb_host(cpu, linear, size, X86_READ);
	if (!host)
		return x86_load_slow(cpu, seg, linear, size, buf);
	ram_read(buf, host, size);
	return X86_OK;
}

enum x86_status x86_store_bytes(struct x86_cpu *cpu, unsigned seg, uint64_t offset, unsigned size,
	const void *buf)
{
	gva_t linear;
	X86_TRY(x86_linear(cpu, seg, offset, size, X86_WRITE, &linear));
	void *host = x86_tlb_host(cpu, linear, size, X86_WRITE);
	if (!host)
		return x86_store_slow(cpu, seg, linear, size, buf);
	ram_write(host, buf, size);
	return X86_OK;
}

enum x86_status x86_check_store(struct x86_cpu *cpu, unsigned seg, uint64_t offset, unsigned size)
{
	gva_t linear;

	X86_TRY(x86_linear(cpu, seg, offset, size, X86_WRITE, &linear));
	if (x86_tlb_host(cpu, linear, size, X86_WRITE))
		return X86_OK;
	X86_TRY(check_linear(cpu, seg, linear, size, X86_WRITE));
	return x86_probe_write(cpu, linear, size, cpu->cpl == 3);
}

/* An element of a masked access: no alignment checks. */
static enum x86_status element_linear(struct x86_cpu *cpu, unsigned seg, uint64_t offset,
	unsigned size, enum x86_access access, gva_t *ret_linear)
{
	X86_TRY(x86_linear(cpu, seg, offset, size, access, ret_linear));
	if (cpu->mode == 64 && !(x86_canonical(cpu, *ret_linear) &&
				       x86_canonical(cpu, *ret_linear + size - 1)))
		return x86_fault_code(cpu, seg == X86_SS ? X86_SS_EXC : X86_GP, 0);
	return X86_OK;
}

enum x86_status x86_load_element(struct x86_cpu *cpu, unsigned seg, uint64_t offset, unsigned size,
	uint64_t *ret_value)
{
	gva_t linear;

	*ret_value = 0;
	X86_TRY(element_linear(cpu, seg, offset, size, X86_READ, &linear));
	return x86_read_linear(cpu, linear, ret_value, size, cpu->cpl == 3);
}

enum x86_status x86_store_element(struct x86_cpu *cpu, unsigned seg, uint64_t offset, unsigned size,
	uint64_t value)
{
	gva_t linear;

	X86_TRY(element_linear(cpu, seg, offset, size, X86_WRITE, &linear));
	return x86_write_linear(cpu, linear, &value, size, cpu->cpl == 3);
}

enum x86_status x86_check_element(struct x86_cpu *cpu, unsigned seg, uint64_t offset, unsigned size)
{
	gva_t linear;

	X86_TRY(element_linear(cpu, seg, offset, size, X86_WRITE, &linear));
	return x86_probe_write(cpu, linear, size, cpu->cpl == 3);
}

enum x86_status x86_load_for_write(struct x86_cpu *cpu, unsigned seg, uint64_t offset, unsigned size,
	uint64_t *ret_value)
{
	gva_t linear;
	struct piece piece[2];

	X86_TRY(x86_linear(cpu, seg, offset, size, X86_WRITE, &linear));
	const void *host = x86_tlb_host(cpu, linear, size, X86_WRITE);
	if (host) {
		*ret_value = x86_host_load(host, size);
		return X86_OK;
	}
	X86_TRY(check_linear(cpu, seg, linear, size, X86_WRITE));
	X86_TRY(x86_probe_write(cpu, linear, size, cpu->cpl == 3));
	X86_TRY(map_pieces(cpu, linear, size, X86_READ, cpu->cpl == 3, piece));
	*ret_value = 0;
	pieces_read(cpu, piece, ret_value);
	return X86_OK;
}

/* ---- atomics ---- */

/*
 * Inline assembly and not the compiler's builtins: a guest may lock an operand that is not aligned,
 * which the processor allows and the C language does not.
 */
#define HOST_CMPXCHG(suffix, type, constraint)                                                     \
	({                                                                                         \
		type cas_old = (type)*expected;                                                    \
		bool cas_done;                                                                     \
		__asm__ volatile("lock cmpxchg" suffix " %[new], %[mem]"                           \
				 : [mem] "+m"(*(char (*)[sizeof(type)])host), "+a"(cas_old), "=@ccz"(cas_done)     \
				 : [new] constraint((type)desired)                                 \
				 : "memory");                                                      \
		*expected = cas_old;                                                               \
		cas_done;                                                                          \
	})

static bool host_cmpxchg(void *host, unsigned size, uint64_t *expected, uint64_t desired)
{
	switch (size) {
	case 1: return HOST_CMPXCHG("b", uint8_t, "q");
	case 2: return HOST_CMPXCHG("w", uint16_t, "r");
	case 4: return HOST_CMPXCHG("l", uint32_t, "r");
	default: return HOST_CMPXCHG("q", uint64_t, "r");
	}
}

static bool host_cmpxchg16(void *host, uint64_t expected[2], const uint64_t desired[2])
{
	bool done;
	__asm__ volatile("lock cmpxchg16b %[mem]"
			 : [mem] "+m"(*(char (*)[16])host), "+a"(expected[0]), "+d"(expected[1]),
			 "=@ccz"(done)
			 : "b"(desired[0]), "c"(desired[1])
			 : "memory");
	return done;
}

void x86_exclusive_begin(struct x86_cpu *cpu)
{
	if (cpu->env->exclusive_begin)
		cpu->env->exclusive_begin(cpu);
}

void x86_exclusive_end(struct x86_cpu *cpu)
{
	if (cpu->env->exclusive_end)
		cpu->env->exclusive_end(cpu);
}

/* Where no host instruction is atomic: pages that are not neighbours, or a device. */
static void cmpxchg_exclusive(struct x86_cpu *cpu, const struct piece piece[2], unsigned size,
	void *expected, const void *desired, bool *ret_done)
{
	uint64_t old[2] = { 0, 0 };

	x86_exclusive_begin(cpu);
	pieces_read(cpu, piece, old);
	*ret_done = memcmp(old, expected, size) == 0;
	pieces_write(cpu, piece, *ret_done ? desired : (const void *)old);
	x86_exclusive_end(cpu);
	pieces_written(cpu, piece);
	memcpy(expected, old, size);
}

enum x86_status x86_cmpxchg(struct x86_cpu *cpu, unsigned seg, uint64_t offset, unsigned size,
	uint64_t *expected, uint64_t desired, bool *ret_done)
{
	gva_t linear;
	struct piece piece[2];

	X86_TRY(x86_linear(cpu, seg, offset, size, X86_WRITE, &linear));
	*expected &= x86_size_mask(size);
	void *host = x86_tlb_host(cpu, linear, size, X86_WRITE);
	if (host) {
		*ret_done = host_cmpxchg(host, size, expected, desired);
		return X86_OK;
	}
	X86_TRY(check_linear(cpu, seg, linear, size, X86_WRITE));
	X86_TRY(map_pieces(cpu, linear, size, X86_WRITE, cpu->cpl == 3, piece));
	if (piece[0].host && !piece[1].size) {
		*ret_done = host_cmpxchg(piece[0].host, size, expected, desired);
		pieces_written(cpu, piece);
	} else {
		cmpxchg_exclusive(cpu, piece, size, expected, &desired, ret_done);
	}
	return X86_OK;
}

enum x86_status x86_cmpxchg16(struct x86_cpu *cpu, unsigned seg, uint64_t offset, uint64_t expected[2],
	const uint64_t desired[2], bool *ret_done)
{
	gva_t linear;
	struct piece piece[2];

	X86_TRY(x86_linear(cpu, seg, offset, 16, X86_WRITE, &linear));
	void *host = x86_tlb_host(cpu, linear, 16, X86_WRITE);
	if (host && !(linear & 15)) {
		*ret_done = host_cmpxchg16(host, expected, desired);
		return X86_OK;
	}
	X86_TRY(check_linear(cpu, seg, linear, 16, X86_WRITE));
	X86_TRY(map_pieces(cpu, linear, 16, X86_WRITE, cpu->cpl == 3, piece));
	if (piece[0].host && !(linear & 15)) {
		*ret_done = host_cmpxchg16(piece[0].host, expected, desired);
		pieces_written(cpu, piece);
		return X86_OK;
	}
	/* Not reached by CMPXCHG16B on RAM: it faults when not aligned. */
	cmpxchg_exclusive(cpu, piece, 16, expected, desired, ret_done);
	return X86_OK;
}
