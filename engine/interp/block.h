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

#define INTERP_BLOCK_INSNS 32 /* at most, in one block */
#define INTERP_BLOCK_BYTES 128

struct interp_block {
	uint64_t key; /* interp_block_key() */
	uint16_t insn_count, size_bytes;
	uint32_t stores;  /* bit i: instruction i may write memory */
	uint32_t checked; /* bit i: x86_check_row() comes first */
	uint8_t *bytes;
	struct x86_insn insn[];
};

struct interp_cache;

/* arena_bytes bounds what the decoded blocks take. Errors: -ENOMEM. */
int interp_cache_create(struct interp_cache **ret_cache, size_t arena_bytes);
void interp_cache_free(struct interp_cache *cache);

static inline uint64_t interp_block_key(gpa_t gpa, unsigned mode, bool real)
{
	/* A gpa has at most 52 bits. */
	return gpa << 8 | mode | (real ? 1 : 0);
}

/* The block at key if it is cached and its bytes are still those at `host` (room bytes left on the
 * page), else NULL. */
struct interp_block *interp_cache_find(struct interp_cache *cache, uint64_t key, const uint8_t *host,
	unsigned room);

/*
 * Decode a block at `host` with `room` bytes to the page's end. NULL: the first instruction does not fit
 * on the page or does not decode; the caller executes it with x86_step.
 */
struct interp_block *interp_cache_decode(struct interp_cache *cache, uint64_t key, const uint8_t *host,
	unsigned room, unsigned mode, bool real, const struct x86_feature_set *features);

/* Blocks decoded and arena flushes so far. */
void interp_cache_counters(const struct interp_cache *cache, uint64_t *ret_decoded,
	uint64_t *ret_flushes);

#endif
