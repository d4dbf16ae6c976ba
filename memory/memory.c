/*
 * Guest-physical memory on anonymous host mappings, or on a file's (file.c).
 *
 * One mapping serves a region of RAM: its bytes, an inaccessible guard page, the dirty bitmap and the code
 * marks, which cost nothing until they are touched; a file's region has a mapping of its own for the marks. The
 * bitmap lives as long as the region, so that a thread which marks a page while logging is being stopped never
 * touches freed memory. The host address is congruent to the guest address modulo 2 MiB: a huge page of the host
 * can back a huge page of the guest.
 *
 * Left out: shared mappings of RAM; they come with sharing between machines.
 *
 * Invariant: the array of regions is sorted by base and regions never overlap or wrap.
 */
#include "memory/memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/error.h"
#include "base/util.h"
#include "memory/private.h"

#define GUARD_SIZE GUEST_PAGE_SIZE
/* 52-bit physical addresses: what the widest processor can name. */
#define GPA_LIMIT BIT(52)

int memory_create(struct guest_memory **ret_memory)
{
	struct guest_memory *memory = calloc(1, sizeof(*memory));

	if (!memory)
		return -ENOMEM;
	*ret_memory = memory;
	return 0;
}

static uint64_t dirty_words(const struct memory_region *region)
{
	return ((region->size_bytes >> GUEST_PAGE_SHIFT) + 63) / 64;
}

static uint64_t dirty_bytes(const struct memory_region *region)
{
	return ALIGN_UP(dirty_words(region) * sizeof(uint64_t), GUEST_PAGE_SIZE);
}

static uint64_t *dirty_bitmap(const struct memory_region *region)
{
	return region->marks;
}

static uint64_t code_bytes(const struct memory_region *region)
{
	return ALIGN_UP((region->size_bytes >> GUEST_PAGE_SHIFT) * sizeof(uint64_t), GUEST_PAGE_SIZE);
}

static uint64_t marks_bytes(const struct memory_region *region)
{
	return dirty_bytes(region) + code_bytes(region);
}

static uint64_t mapping_bytes(const struct memory_region *region)
{
	return region->size_bytes + GUARD_SIZE + marks_bytes(region);
}

static void region_unmap(const struct memory_region *region)
{
	if (region->file)
		munmap(region->marks, marks_bytes(region));
	else
		munmap(region->host, mapping_bytes(region));
}

static void set_marks(struct memory_region *region, uint8_t *marks)
{
	region->marks = marks;
	region->code = (uint64_t *)(marks + dirty_bytes(region));
}

void memory_free(struct guest_memory *memory)
{
	if (!memory)
		return;
	for (unsigned i = 0; i < memory->region_count; i++)
		region_unmap(&memory->region[i]);
	free(memory);
}

/* Maps with room to spare and gives back what alignment does not need. */
static int region_map(struct memory_region *region)
{
	uint64_t used = mapping_bytes(region);
	uint64_t total = used + HUGE_PAGE_SIZE;
	uint64_t head;
	uint8_t *map;

	map = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		-1, 0);
	if (map == MAP_FAILED)
		return -ENOMEM;
	head = (region->base - (uintptr_t)map) & (HUGE_PAGE_SIZE - 1);
	if (head)
		munmap(map, head);
	munmap(map + head + used, total - head - used);
	region->host = map + head;
	set_marks(region, region->host + region->size_bytes + GUARD_SIZE);
	if (mprotect(region->host + region->size_bytes, GUARD_SIZE, PROT_NONE) < 0) {
		munmap(region->host, used);
		return -ENOMEM;
	}
	/* Hints only: a host without huge pages runs as well, and a dump without guest RAM is small. */
	madvise(region->host, region->size_bytes, MADV_HUGEPAGE);
	madvise(region->host, region->size_bytes, MADV_DONTDUMP);
	/* A child made by fork() has no business here, and would make each page that is written be copied. */
	madvise(region->host, region->size_bytes, MADV_DONTFORK);
	return 0;
}

static int region_check(const struct guest_memory *memory, gpa_t base, uint64_t size_bytes,
	const char *name, struct error *err)
{
	if (!size_bytes || !IS_ALIGNED(base, GUEST_PAGE_SIZE) ||
		!IS_ALIGNED(size_bytes, GUEST_PAGE_SIZE))
		return error_set(err, EINVAL, "memory region %s is not made of whole pages", name);
	if (base >= GPA_LIMIT || size_bytes > GPA_LIMIT - base)
		return error_set(err, EINVAL, "memory region %s ends past the address space", name);
	for (unsigned i = 0; i < memory->region_count; i++) {
		const struct memory_region *other = &memory->region[i];

		if (base < other->base + other->size_bytes && other->base < base + size_bytes)
			return error_set(
				err, EINVAL, "memory regions %s and %s overlap", name, other->name);
	}
	if (memory->region_count == MEMORY_REGIONS_MAX)
		return error_set(err, ENOSPC, "more than %d memory regions", MEMORY_REGIONS_MAX);
	return 0;
}

static void region_insert(struct guest_memory *memory, const struct memory_region *new)
{
	unsigned at;

	for (at = memory->region_count; at > 0 && memory->region[at - 1].base > new->base; at--)
		memory->region[at] = memory->region[at - 1];
	memory->region[at] = *new;
	if (memory->dirty_logging)
		memory->region[at].dirty = dirty_bitmap(new);
	memory->region_count++;
}

int memory_add_ram(struct guest_memory *memory, gpa_t base, uint64_t size_bytes, uint32_t flags,
	const char *name, struct error *err)
{
	struct memory_region new = {
		.base = base,
		.size_bytes = size_bytes,
		.flags = flags,
		.name = name,
	};
	int rc;

	rc = region_check(memory, base, size_bytes, name, err);
	if (rc < 0)
		return rc;
	rc = region_map(&new);
	if (rc < 0)
		return error_set(err, -rc, "no host memory for %llu MiB of guest memory (%s)",
			(unsigned long long)(size_bytes >> 20), name);
	region_insert(memory, &new);
	return 0;
}

int memory_add_file(struct guest_memory *memory, gpa_t base, struct memory_file *file, const char *name,
	struct error *err)
{
	struct memory_region new = {
		.base = base,
		.size_bytes = memory_file_bytes(file),
		.host = memory_file_host(file),
		.flags = MEMORY_DEVICE | (memory_file_is_readonly(file) ? MEMORY_READONLY : 0),
		.file = file,
		.name = name,
	};
	int rc = region_check(memory, base, new.size_bytes, name, err);

	if (rc < 0)
		return rc;
	void *marks = mmap(NULL, marks_bytes(&new), PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (marks == MAP_FAILED)
		return error_set(err, ENOMEM, "no host memory for the marks of %s", name);
	madvise(marks, marks_bytes(&new), MADV_DONTFORK);
	set_marks(&new, marks);
	region_insert(memory, &new);
	return 0;
}

uint64_t memory_ram_bytes(const struct guest_memory *memory)
{
	uint64_t total = 0;

	for (unsigned i = 0; i < memory->region_count; i++)
		if (!(memory->region[i].flags & MEMORY_DEVICE))
			total += memory->region[i].size_bytes;
	return total;
}

/* A machine has a handful of regions: walking them in order beats a search. */
const struct memory_region *memory_find(const struct guest_memory *memory, gpa_t gpa)
{
	for (unsigned i = 0; i < memory->region_count; i++) {
		const struct memory_region *region = &memory->region[i];

		if (gpa < region->base)
			return NULL;
		if (gpa - region->base < region->size_bytes)
			return region;
	}
	return NULL;
}

void *memory_host(const struct guest_memory *memory, gpa_t gpa, uint64_t size_bytes, bool write)
{
	const struct memory_region *region = memory_find(memory, gpa);

	if (!region || size_bytes > region->size_bytes - (gpa - region->base))
		return NULL;
	if (write) {
		if (region->flags & MEMORY_READONLY)
			return NULL;
		memory_mark_dirty(region, gpa, size_bytes);
	}
	return region->host + (gpa - region->base);
}

int memory_read(const struct guest_memory *memory, gpa_t gpa, void *buf, uint64_t size_bytes)
{
	uint8_t *out = buf;

	while (size_bytes) {
		const struct memory_region *region = memory_find(memory, gpa);
		uint64_t offset, chunk;

		if (!region)
			return -EFAULT;
		offset = gpa - region->base;
		chunk = MIN(size_bytes, region->size_bytes - offset);
		memcpy(out, region->host + offset, chunk);
		out += chunk;
		gpa += chunk;
		size_bytes -= chunk;
	}
	return 0;
}

int memory_write(struct guest_memory *memory, gpa_t gpa, const void *buf, uint64_t size_bytes)
{
	const uint8_t *in = buf;

	while (size_bytes) {
		const struct memory_region *region = memory_find(memory, gpa);
		uint64_t offset, chunk;

		if (!region)
			return -EFAULT;
		offset = gpa - region->base;
		chunk = MIN(size_bytes, region->size_bytes - offset);
		if (!(region->flags & MEMORY_READONLY)) {
			memcpy(region->host + offset, in, chunk);
			/* After the bytes: a harvest in between would send the old page. */
			memory_mark_dirty(region, gpa, chunk);
			memory_written(memory, gpa, chunk);
		}
		in += chunk;
		gpa += chunk;
		size_bytes -= chunk;
	}
	return 0;
}

int memory_discard(struct guest_memory *memory, gpa_t gpa, uint64_t size_bytes)
{
	if (!IS_ALIGNED(gpa, GUEST_PAGE_SIZE) || !IS_ALIGNED(size_bytes, GUEST_PAGE_SIZE))
		return -EINVAL;
	while (size_bytes) {
		const struct memory_region *region = memory_find(memory, gpa);

		if (!region || region->flags & (MEMORY_READONLY | MEMORY_DEVICE))
			return -EFAULT;
		const uint64_t offset = gpa - region->base;
		const uint64_t chunk = MIN(size_bytes, region->size_bytes - offset);
		/* It fails only for what is not mapped or is locked; then the bytes just stay. */
		madvise(region->host + offset, chunk, MADV_DONTNEED);
		/* They are other bytes now, as after a write. */
		memory_mark_dirty(region, gpa, chunk);
		memory_written(memory, gpa, chunk);
		gpa += chunk;
		size_bytes -= chunk;
	}
	return 0;
}

/* ---- code marks ---- */

/* NULL: not RAM. */
static uint64_t *code_word(const struct guest_memory *memory, gpa_t gpa)
{
	const struct memory_region *region = memory_find(memory, gpa);
	return region ? &region->code[(gpa - region->base) >> GUEST_PAGE_SHIFT] : NULL;
}

uint64_t memory_code_mark(struct guest_memory *memory, gpa_t gpa, uint64_t size_bytes)
{
	uint64_t *word = code_word(memory, gpa);

	if (!word)
		return 0;
	__atomic_store_n(&memory->code_marked, true, __ATOMIC_RELAXED);
	const uint64_t before =
		__atomic_fetch_or(word, memory_code_mask(gpa, size_bytes), __ATOMIC_SEQ_CST);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return before;
}

void memory_code_clear(struct guest_memory *memory, gpa_t page, uint64_t marks)
{
	uint64_t *word = code_word(memory, page);
	if (word)
		__atomic_fetch_and(word, ~marks, __ATOMIC_SEQ_CST);
}

uint64_t memory_code_word(const struct guest_memory *memory, gpa_t gpa)
{
	const uint64_t *word = code_word(memory, gpa);
	return word ? __atomic_load_n(word, __ATOMIC_ACQUIRE) : 0;
}

void memory_set_code_listener(
	struct guest_memory *memory, memory_code_listener *listener, void *opaque)
{
	memory->code_listener = listener;
	memory->code_opaque = opaque;
}

void memory_written(struct guest_memory *memory, gpa_t gpa, uint64_t size_bytes)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!memory->code_listener || !__atomic_load_n(&memory->code_marked, __ATOMIC_RELAXED))
		return;
	while (size_bytes) {
		const uint64_t room = GUEST_PAGE_SIZE - (gpa & ~GUEST_PAGE_MASK);
		const uint64_t part = MIN(size_bytes, room);
		if (memory_code_bits(memory, gpa, part))
			memory->code_listener(memory->code_opaque, gpa, part);
		gpa += part;
		size_bytes -= part;
	}
}

/* ---- the dirty log ---- */

int memory_dirty_start(struct guest_memory *memory)
{
	for (unsigned i = 0; i < memory->region_count; i++) {
		struct memory_region *region = &memory->region[i];
		uint64_t *bitmap = dirty_bitmap(region);

		for (uint64_t w = 0; w < dirty_words(region); w++)
			__atomic_store_n(&bitmap[w], 0, __ATOMIC_RELAXED);
		__atomic_store_n(&region->dirty, bitmap, __ATOMIC_RELEASE);
	}
	memory->dirty_logging = true;
	return 0;
}

void memory_dirty_stop(struct guest_memory *memory)
{
	for (unsigned i = 0; i < memory->region_count; i++)
		__atomic_store_n(&memory->region[i].dirty, NULL, __ATOMIC_RELEASE);
	memory->dirty_logging = false;
}

void memory_mark_dirty(const struct memory_region *region, gpa_t gpa, uint64_t size_bytes)
{
	uint64_t *dirty = __atomic_load_n(&region->dirty, __ATOMIC_ACQUIRE);
	uint64_t offset = gpa - region->base;
	uint64_t page, last;

	if (likely(!dirty) || !size_bytes || offset >= region->size_bytes)
		return;
	size_bytes = MIN(size_bytes, region->size_bytes - offset);
	last = (offset + size_bytes - 1) >> GUEST_PAGE_SHIFT;
	for (page = offset >> GUEST_PAGE_SHIFT; page <= last; page++)
		__atomic_fetch_or(&dirty[page / 64], BIT(page % 64), __ATOMIC_RELEASE);
}

void memory_dirty_fetch(struct guest_memory *memory, unsigned region, uint64_t *out)
{
	struct memory_region *r = &memory->region[region];
	uint64_t *dirty = __atomic_load_n(&r->dirty, __ATOMIC_ACQUIRE);

	for (uint64_t w = 0; w < dirty_words(r); w++) {
		out[w] = 0;
		/* Looking first keeps clean words, the most, free of locked writes. */
		if (dirty && __atomic_load_n(&dirty[w], __ATOMIC_RELAXED))
			out[w] = __atomic_exchange_n(&dirty[w], 0, __ATOMIC_ACQUIRE);
	}
}
