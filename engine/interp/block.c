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
	uint64_t decoded, flushes;
};

int interp_cache_create(struct interp_cache **ret_cache, size_t arena_bytes)
{
	AUTO_FREE struct interp_cache *cache = calloc(1, sizeof(*cache));

	if (!cache)
		return -ENOMEM;
	cache->arena_bytes = arena_bytes;
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

	if (!block || block->key != key || block->size_bytes > room)
		return NULL;
	return memcmp(block->bytes, host, block->size_bytes) == 0 ? block : NULL;
}

static void *arena_take(struct interp_cache *cache, size_t bytes)
{
	void *taken = cache->arena + cache->used;

	cache->used += ALIGN_UP(bytes, 64);
	return taken;
}

static void arena_make_room(struct interp_cache *cache)
{
	size_t largest = sizeof(struct interp_block) +
			 INTERP_BLOCK_INSNS * sizeof(struct x86_insn) + INTERP_BLOCK_BYTES + 128;

	if (cache->arena_bytes - cache->used >= largest)
		return;
	memset(cache->table, 0, sizeof(cache->table));
	cache->used = 0;
	cache->flushes++;
}

/* Decode from the private copy `bytes`; returns the number of instructions, sets *ret_size. */
static unsigned decode_run(struct x86_insn *insn, const uint8_t *bytes, unsigned avail, unsigned mode,
	bool real, const struct x86_feature_set *features, unsigned *ret_size)
{
	unsigned count = 0, at = 0;

	while (count < INTERP_BLOCK_INSNS && at < avail) {
		if (x86_decode(&insn[count], bytes + at, avail - at, mode, real, features) !=
			X86_DECODE_OK)
			break;
		at += insn[count].len;
		if (insn[count++].row->attr & X86_A_END)
			break;
	}
	*ret_size = at;
	return count;
}

/* Rows whose availability depends on control registers or privilege. */
#define CHECKED_ATTRS                                                                              \
	(X86_A_CPL0 | X86_A_X87 | X86_A_MMX | X86_A_SSE | X86_A_AVX | X86_A_NOREAL | X86_A_IO)

/* May it write memory? Explicit destinations, strings, pushes; some that do not write are in too. */
static bool may_store(const struct x86_insn *insn)
{
	return insn->op[0].kind == X86_O_MEM || insn->op[1].kind == X86_O_MEM ||
	       (insn->row->attr & (X86_A_REP | X86_A_D64 | X86_A_STORES));
}

static void mark_insns(struct interp_block *block)
{
	block->stores = block->checked = 0;
	for (unsigned i = 0; i < block->insn_count; i++) {
		if (may_store(&block->insn[i]))
			block->stores |= 1u << i;
		if (block->insn[i].row->attr & CHECKED_ATTRS)
			block->checked |= 1u << i;
	}
}

struct interp_block *interp_cache_decode(struct interp_cache *cache, uint64_t key, const uint8_t *host,
	unsigned room, unsigned mode, bool real, const struct x86_feature_set *features)
{
	uint8_t copy[INTERP_BLOCK_BYTES];
	unsigned avail = MIN(room, (unsigned)sizeof(copy)), size;

	/* Another vCPU may be writing here: decode what was copied, compare with memory on entry. */
	memcpy(copy, host, avail);
	arena_make_room(cache);
	size_t mark = cache->used;
	struct interp_block *block = (void *)(cache->arena + mark);

	block->insn_count = (uint16_t)decode_run(block->insn, copy, avail, mode, real, features, &size);
	if (!block->insn_count)
		return NULL;
	mark_insns(block);
	block->key = key;
	block->size_bytes = (uint16_t)size;
	size_t head = sizeof(*block) + block->insn_count * sizeof(struct x86_insn);
	arena_take(cache, head + size);
	block->bytes = (uint8_t *)block + head;
	memcpy(block->bytes, copy, size);
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
