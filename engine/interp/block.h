/*
 * Decoded blocks: runs of instructions decoded once and executed many times, kept for one vCPU.
 *
 * A block is found by the guest-physical address of its first byte and the mode it was decoded for,
 * and carries a copy of the bytes it was decoded from. The bytes are compared with memory each time
 * the block is entered (and after each store inside it), so self-modifying code, code written by
 * another vCPU, by a device or through another virtual address needs no tracking at all.
 *
 * A block never crosses a page. Instructions that do are not cached. Memory is bounded: when the arena
 * is full, everything is dropped and decoded again.
 */
#ifndef LODGE_ENGINE_INTERP_BLOCK_H
#define LODGE_ENGINE_INTERP_BLOCK_H

#include "isa/x86/insn.h"
#include <string.h>

#define INTERP_BLOCK_INSNS 32 /* at most, in one block */
#define INTERP_BLOCK_BYTES 128

/* x86_insn.engine of an instruction in a block */
enum interp_insn_flags {
	INTERP_STORES = 1,  /* may write memory: is the rest of the block still what memory holds? */
	INTERP_CHECKED = 2, /* x86_check_row() comes first */
};

struct interp_block {
	uint64_t key; /* interp_block_key() */
	/* Blocks that followed this one: hints, to be checked like any other. They stay readable until the
	 * arena is flushed. */
	struct interp_block *successor[2];
	struct x86_insn *insn; /* insn_count of them */
	uint16_t insn_count, size_bytes;
	uint8_t turn; /* which successor to replace next */
	uint8_t bytes[];
};

struct interp_cache;

/* arena_bytes bounds what the decoded blocks take, insns_max (0: INTERP_BLOCK_INSNS) the instructions of a block.
 * Errors: -ENOMEM. */
int interp_cache_create(struct interp_cache **ret_cache, size_t arena_bytes, unsigned insns_max);
void interp_cache_free(struct interp_cache *cache);

static inline uint64_t interp_block_key(gpa_t gpa, unsigned mode, bool real)
{
	/* A gpa has at most 52 bits. */
	return gpa << 8 | mode | (real ? 1 : 0);
}

/* Are the bytes from `done` on still those at host + done? */
static inline bool interp_block_intact(const struct interp_block *block, const uint8_t *host,
	unsigned done)
{
	const uint8_t *kept = block->bytes + done, *now = host + done;
	unsigned left = block->size_bytes - done;

	for (; left >= 8; left -= 8, kept += 8, now += 8) {
		uint64_t a, b;
		memcpy(&a, kept, 8);
		memcpy(&b, now, 8);
		if (a != b)
			return false;
	}
	for (; left; left--)
		if (*kept++ != *now++)
			return false;
	return true;
}

/* Is it the block at key, and still good with `room` bytes left on the page at host? */
static inline bool interp_block_good(const struct interp_block *block, uint64_t key, const uint8_t *host,
	unsigned room)
{
	return block && block->key == key && block->size_bytes <= room &&
	       interp_block_intact(block, host, 0);
}

/* The block at key if it is cached and good, else NULL. */
struct interp_block *interp_cache_find(struct interp_cache *cache, uint64_t key, const uint8_t *host,
	unsigned room);

/*
 * Decode a block at `host` with `room` bytes to the page's end. NULL: the first instruction does not fit
 * on the page or does not decode; the caller executes it with x86_step. May flush the arena (see
 * interp_cache_counters): every other block is gone then.
 */
struct interp_block *interp_cache_decode(struct interp_cache *cache, uint64_t key, const uint8_t *host,
	unsigned room, unsigned mode, bool real, const struct x86_feature_set *features);

/* Blocks decoded and arena flushes so far. */
void interp_cache_counters(const struct interp_cache *cache, uint64_t *ret_decoded,
	uint64_t *ret_flushes);

#endif
