/*
 * The guest's physical address space: RAM regions backed by host memory. The only door to guest
 * bytes. Device (MMIO) ranges are not known here; they are on the machine's bus (device/bus.h), and
 * an access that is not RAM goes there.
 *
 * Threads: regions are added before the first vCPU runs (and later only while all vCPUs are stopped).
 * Look-ups and copies may then run on any thread without a lock. Guest RAM is shared with running
 * vCPUs: a byte read twice may differ, so copy once into a local and validate the copy.
 *
 * The dirty log has one bit a page, set by memory_write(), by memory_mark_dirty() and by the engines
 * when they make a page writable to the guest; it is harvested by memory_dirty_fetch().
 *
 * Code marks tell who writes RAM that an engine has translated the bytes: a bit for each 64 bytes. The
 * engine marks, then reads the bytes; a writer writes, then looks at the marks, each with a full fence in
 * between. So one of the two sees the other.
 */
#ifndef LODGE_MEMORY_MEMORY_H
#define LODGE_MEMORY_MEMORY_H

#include "base/types.h"

struct error;

#define MEMORY_REGIONS_MAX 32
#define MEMORY_CODE_SHIFT  6 /* log2 of the bytes that one code mark stands for */

enum memory_region_flags {
	/* What the guest writes goes to the bus, where a device may take it (flash), or nobody does (ROM). Devices' and
	 * loaders' writes are dropped. */
	MEMORY_READONLY = 1u << 0,
	/* A device's memory, such as a file that is mapped: its device tells the guest of it. Not in the memory map,
	 * not for loaders, not counted as RAM. */
	MEMORY_DEVICE = 1u << 1,
};

struct memory_region {
	gpa_t base;	     /* page aligned */
	uint64_t size_bytes; /* multiple of the page size */
	uint8_t *host;	  /* size_bytes of host memory, page aligned, owned by the guest_memory or by `file` */
	uint32_t flags;	  /* enum memory_region_flags */
	struct memory_file *file; /* NULL: anonymous */
	void *marks;	  /* dirty bitmap and code marks, behind one another */
	uint64_t *dirty;  /* one bit a page, NULL while logging is off; atomic access only */
	uint64_t *code;	  /* one word a page, one bit for each 64 bytes; atomic access only */
	const char *name; /* for people; static string */
};

/* Somebody wrote [gpa, +size_bytes), within a page, where translated code is: on the writer's thread. */
typedef void memory_code_listener(void *opaque, gpa_t gpa, uint64_t size_bytes);

struct guest_memory {
	unsigned region_count;
	struct memory_region region[MEMORY_REGIONS_MAX]; /* sorted by base, never overlapping */
	bool dirty_logging;
	bool code_marked; /* code was marked at some time; atomic access only */
	memory_code_listener *code_listener;
	void *code_opaque;
};

/* The marks of the bytes [gpa, +size_bytes), which do not cross a page; size_bytes > 0. */
static inline uint64_t memory_code_mask(gpa_t gpa, uint64_t size_bytes)
{
	const unsigned first = gpa >> MEMORY_CODE_SHIFT & 63;
	const unsigned last = (gpa + size_bytes - 1) >> MEMORY_CODE_SHIFT & 63;
	return ~0ull >> (63 - last) & ~0ull << first;
}

/* Make an empty address space. Errors: -ENOMEM. */
int memory_create(struct guest_memory **ret_memory);
void memory_free(struct guest_memory *memory);

/*
 * Add size_bytes of zeroed RAM at base; host memory is reserved lazily (MAP_NORESERVE), so an idle
 * guest costs only what it touches. Errors: -EINVAL (alignment, overlap, wrap), -ENOSPC, -ENOMEM.
 */
int memory_add_ram(struct guest_memory *memory, gpa_t base, uint64_t size_bytes, uint32_t flags,
	const char *name, struct error *err);

/*
 * A file in the guest's address space, mapped once; several machines may have it, at one time or one after the
 * other. What makes the host's page cache the one copy of an image that many guests use.
 */
enum memory_file_mode {
	MEMORY_FILE_SHARED,   /* what the guest writes is in the file, after memory_file_flush() for good */
	MEMORY_FILE_READONLY, /* what the guest writes is dropped */
	MEMORY_FILE_PRIVATE,  /* copy on write: what the guest writes is gone after memory_file_close() */
};
struct memory_file;

/*
 * Maps all of it. Its memory is a multiple of align_bytes (a power of 2, at least a page), zeros behind the
 * file's end; a shared file must be such a multiple itself, or nothing would keep what is written there. Who
 * truncates the file while it is mapped kills the process (SIGBUS).
 * Errors: with a line for people; -EINVAL (empty, no regular file, size), what open and mmap say.
 */
int memory_file_open(const char *path, enum memory_file_mode mode, uint64_t align_bytes,
	struct memory_file **ret_file, struct error *err);
/* NULL is allowed. No guest_memory has it any more. */
void memory_file_close(struct memory_file *file);
uint64_t memory_file_bytes(const struct memory_file *file); /* of the guest's address space */
/* Make lasting what was written to a shared file. Blocks; any thread. Errors: fdatasync()'s. */
int memory_file_flush(struct memory_file *file);
/* Add it at base, as a device's memory. It outlives `memory`. Errors: as memory_add_ram(). */
int memory_add_file(struct guest_memory *memory, gpa_t base, struct memory_file *file, const char *name,
	struct error *err);

/*
 * Give the host back the memory of these pages, which the guest does not need any more: they read as zeros, until
 * they are written. Any thread, while vCPUs run; host addresses of the pages stay good. Nobody may have them pinned
 * (registered with io_uring, say): he would go on with the old pages.
 * Errors: -EINVAL (no whole pages), -EFAULT (not all RAM, read-only or a file: nothing or a prefix was discarded).
 */
int memory_discard(struct guest_memory *memory, gpa_t gpa, uint64_t size_bytes);

/* Total bytes of RAM. */
uint64_t memory_ram_bytes(const struct guest_memory *memory);

/* The region that holds gpa, or NULL when it is not RAM. */
const struct memory_region *memory_find(const struct guest_memory *memory, gpa_t gpa);

/*
 * Host address of [gpa, gpa+size_bytes) if all of it is RAM of one region, else NULL. With `write`,
 * also NULL for read-only regions, and the pages are marked dirty. The caller must treat the bytes
 * as shared with running vCPUs, and call memory_written() after it wrote some.
 */
void *memory_host(const struct guest_memory *memory, gpa_t gpa, uint64_t size_bytes, bool write);

/* Copy between host buffers and guest RAM; may span regions. -EFAULT if any byte is not RAM (then
 * nothing, or a prefix, was copied). Writes mark pages dirty, and see to the code marks. */
int memory_read(const struct guest_memory *memory, gpa_t gpa, void *buf, uint64_t size_bytes);
int memory_write(struct guest_memory *memory, gpa_t gpa, const void *buf, uint64_t size_bytes);

/* Dirty logging, from off (default) to on for all RAM and back. The engines must drop their write
 * mappings after a start or a fetch. */
int memory_dirty_start(struct guest_memory *memory);
void memory_dirty_stop(struct guest_memory *memory);
void memory_mark_dirty(const struct memory_region *region, gpa_t gpa, uint64_t size_bytes);
/* Copy and clear region's bits: out has (pages + 63) / 64 words. */
void memory_dirty_fetch(struct guest_memory *memory, unsigned region, uint64_t *out);

/* ---- code marks; any thread ---- */

/*
 * Mark [gpa, +size_bytes), within a page, as translated, with a full fence before the caller's next read.
 * Returns the page's word before; 0 for what is not RAM, which has no marks.
 */
uint64_t memory_code_mark(struct guest_memory *memory, gpa_t gpa, uint64_t size_bytes);
/* Take these marks off the page. */
void memory_code_clear(struct guest_memory *memory, gpa_t page, uint64_t marks);
/* Who hears of writes to marked bytes, but for the vCPUs' own; before the first vCPU runs. */
void memory_set_code_listener(
	struct guest_memory *memory, memory_code_listener *listener, void *opaque);
/* To be called after a write through memory_host(..., true), by all but isa/: tells the listener. */
void memory_written(struct guest_memory *memory, gpa_t gpa, uint64_t size_bytes);

/* The word of gpa's page, whether any was marked or not. */
uint64_t memory_code_word(const struct guest_memory *memory, gpa_t gpa);

/* The marks of [gpa, +size_bytes), within a page. After a write: fence first. */
static inline uint64_t memory_code_bits(
	const struct guest_memory *memory, gpa_t gpa, uint64_t size_bytes)
{
	if (!__atomic_load_n(&memory->code_marked, __ATOMIC_RELAXED))
		return 0;
	return memory_code_word(memory, gpa) & memory_code_mask(gpa, size_bytes);
}

/* Is any of the page marked? */
static inline bool memory_code_page(const struct guest_memory *memory, gpa_t gpa)
{
	return __atomic_load_n(&memory->code_marked, __ATOMIC_RELAXED) &&
	       memory_code_word(memory, gpa);
}

#endif
