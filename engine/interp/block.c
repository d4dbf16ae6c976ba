/*
 * The cache of decoded blocks: see block.h.
 */
#include "engine/interp/block.h"
#include "base/cleanup.h"
#include "base/util.h"
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define TABLE_SIZE 65536 /* a power of two */

struct interp_cache {
	struct interp_block *table[TABLE_SIZE];
	uint8_t *arena;
	size_t arena_bytes, used;
	unsigned insns_max; /* in a block */
	uint64_t decoded, flushes;
};

int interp_cache_create(struct interp_cache **ret_cache, size_t arena_bytes, unsigned insns_max)
{
	AUTO_FREE struct interp_cache *cache = calloc(1, sizeof(*cache));

	if (!cache)
		return -ENOMEM;
	cache->arena_bytes = arena_bytes;
	cache->insns_max = insns_max ? MIN(insns_max, (unsigned)INTERP_BLOCK_INSNS) : INTERP_BLOCK_INSNS;
	cache->arena = mmap(NULL, arena_bytes, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (cache->arena == MAP_FAILED)
		return -ENOMEM;
	*ret_cache = take_ptr(&cache);
	return 0;
}

void interp_cache_free(struct interp_cache *cache)
{
	if (!cache)
		return;
	munmap(cache->arena, cache->arena_bytes);
	free(cache);
}

static inline unsigned slot_of(uint64_t key)
{
	uint64_t gpa = key >> 8;

	return (unsigned)((gpa ^ gpa >> 16 ^ gpa >> 29) & (TABLE_SIZE - 1));
}

struct interp_block *interp_cache_find(struct interp_cache *cache, uint64_t key, const uint8_t *host,
	unsigned room)
{
	struct interp_block *block = cache->table[slot_of(key)];

	return interp_block_good(block, key, host, room) ? block : NULL;
}

static void arena_take(struct interp_cache *cache, size_t bytes)
{
	cache->used += ALIGN_UP(bytes, (size_t)64);
}

static void arena_make_room(struct interp_cache *cache)
{
	size_t largest = ALIGN_UP(sizeof(struct interp_block) + (size_t)INTERP_BLOCK_BYTES, 64) +
			 INTERP_BLOCK_INSNS * sizeof(struct x86_insn);

	if (cache->arena_bytes - cache->used >= largest)
		return;
	memset(cache->table, 0, sizeof(cache->table));
	cache->used = 0;
	cache->flushes++;
}

/* May it write memory? Explicit destinations, strings, pushes; some that do not write are in too. */
static bool may_store(const struct x86_insn *insn)
{
	return insn->op[0].kind == X86_O_MEM || insn->op[1].kind == X86_O_MEM ||
	       (insn->row->attr & (X86_A_REP | X86_A_D64 | X86_A_STORES));
}

static void mark_insn(struct x86_insn *insn)
{
	insn->engine = (uint8_t)((may_store(insn) ? INTERP_STORES : 0) |
				 (insn->row->attr & X86_A_CHECKED ? INTERP_CHECKED : 0));
}

/* Decode from the private copy `bytes`; returns the number of instructions, sets *ret_size. */
static unsigned decode_run(struct x86_insn *insn, unsigned insns_max, const uint8_t *bytes,
	unsigned avail, unsigned mode, bool real, const struct x86_feature_set *features, unsigned *ret_size)
{
	unsigned count = 0, at = 0;

	while (count < insns_max && at < avail) {
		if (x86_decode(&insn[count], bytes + at, avail - at, mode, real, features) !=
			X86_DECODE_OK)
			break;
		at += insn[count].len;
		mark_insn(&insn[count]);
		if (insn[count++].row->attr & X86_A_END)
			break;
	}
	*ret_size = at;
	return count;
}

struct interp_block *interp_cache_decode(struct interp_cache *cache, uint64_t key, const uint8_t *host,
	unsigned room, unsigned mode, bool real, const struct x86_feature_set *features)
{
	uint8_t copy[INTERP_BLOCK_BYTES];
	unsigned avail = MIN(room, (unsigned)sizeof(copy)), size;

	/* Another vCPU may be writing here: decode what was copied, compare with memory on entry. */
	memcpy(copy, host, avail);
	arena_make_room(cache);
	struct interp_block *block = (void *)(cache->arena + cache->used);
	struct x86_insn *insn = (void *)((uint8_t *)block +
					 ALIGN_UP(sizeof(*block) + (size_t)INTERP_BLOCK_BYTES, 64));

	/* Decoded where they have room for sure, then moved up behind the bytes. */
	unsigned count =
		decode_run(insn, cache->insns_max, copy, avail, mode, real, features, &size);
	if (!count)
		return NULL;
	size_t head = ALIGN_UP(sizeof(*block) + size, (size_t)64);
	*block = (struct interp_block){ .key = key, .insn_count = (uint16_t)count,
		.size_bytes = (uint16_t)size, .insn = (void *)((uint8_t *)block + head) };
	memmove(block->insn, insn, count * sizeof(*insn));
	memcpy(block->bytes, copy, size);
	arena_take(cache, head + count * sizeof(*insn));
	cache->table[slot_of(key)] = block;
	cache->decoded++;
	return block;
}

void interp_cache_counters(const struct interp_cache *cache, uint64_t *ret_decoded,
	uint64_t *ret_flushes)
{
	*ret_decoded = cache->decoded;
	*ret_flushes = cache->flushes;
}
