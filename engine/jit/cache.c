/*
 * The cache of translated blocks of one vCPU: memory, look-up, links between blocks, eviction.
 *
 * Code and metadata are in segments that are filled in turn; when the cache is full, the oldest segment
 * is evicted as a whole, so that what is left is what was translated last. Blocks that are forgotten one by
 * one (their code changed) stay in memory until then, unlinked, because they may be running.
 */
#include "engine/jit/jit.h"

#include "base/error.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#define STUBS_BYTES 8192
/* The most that one block may take. */
#define HOT_MAX	 KIB(24)
#define COLD_MAX KIB(16)
#define META_MAX KIB(24)

static unsigned hash_of(uint64_t key)
{
	uint64_t gpa = key >> 8;

	return (unsigned)((gpa ^ gpa >> 17 ^ gpa >> 34) & (JIT_HASH - 1));
}

static unsigned page_hash(gpa_t gpa)
{
	return (unsigned)(gpa >> GUEST_PAGE_SHIFT & (JIT_PAGE_HASH - 1));
}

static unsigned second_hash(gpa_t gpa)
{
	return (unsigned)(gpa >> GUEST_PAGE_SHIFT & (JIT_SECOND_HASH - 1));
}

static gpa_t block_gpa(const struct jit_block *block)
{
	return block->key >> 8;
}

/* ---- life ---- */

static void insns_free(struct jit_insns *insns)
{
	struct jit_insns *next;

	for (; insns; insns = next) {
		next = insns->next;
		free(insns);
	}
}

/* A cache that is too small is evicted all the time: the allocator is left out of that. */
static void insns_put_by(struct jit_cache *cache, struct jit_segment *segment)
{
	struct jit_insns *insns, *next;

	for (insns = segment->insns; insns; insns = next) {
		next = insns->next;
		insns->next = cache->insns_free;
		cache->insns_free = insns;
	}
}

static void segment_reset(struct jit_cache *cache, unsigned i)
{
	uint8_t *start = cache->segments_start + i * cache->segment_code;

	insns_put_by(cache, &cache->segment[i]);
	cache->segment[i] = (struct jit_segment){ .hot = start, .cold = start + cache->segment_code,
		.meta = cache->meta + i * cache->segment_meta,
		.meta_end = cache->meta + (i + 1) * cache->segment_meta };
}

int jit_cache_init(struct engine_vcpu *v, struct error *err)
{
	struct jit_cache *cache = &v->cache;
	const struct jit_options *options = &v->options;

	cache->segment_code = ALIGN_UP(MAX(options->code_bytes / JIT_SEGMENTS, (size_t)KIB(128)),
		(size_t)GUEST_PAGE_SIZE);
	cache->segment_meta = ALIGN_UP(MAX(options->meta_bytes / JIT_SEGMENTS, (size_t)KIB(64)),
		(size_t)GUEST_PAGE_SIZE);
	int status = codebuf_init(&cache->code, STUBS_BYTES + JIT_SEGMENTS * cache->segment_code, err);
	if (status < 0)
		return status;
	if (!cache->code.dual)
		return error_set(err, EPERM,
			"this host does not map code twice, which the translator needs; use --engine interp");
	cache->meta = mmap(NULL, JIT_SEGMENTS * cache->segment_meta, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (cache->meta == MAP_FAILED) {
		cache->meta = NULL;
		return error_set(err, ENOMEM, "no memory for the cache of translated code");
	}
	cache->segments_start = codebuf_write(&cache->code, STUBS_BYTES);
	for (unsigned i = 0; i < JIT_SEGMENTS; i++)
		segment_reset(cache, i);
	struct emit e = { .p = cache->code.rw, .end = cache->segments_start };
	jit_stubs_make(v, &e);
	return e.full ? error_set(err, ENOMEM, "the translator's stubs have no room") : 0;
}

void jit_cache_done(struct engine_vcpu *v)
{
	for (unsigned i = 0; i < JIT_SEGMENTS; i++)
		insns_free(v->cache.segment[i].insns);
	insns_free(v->cache.insns_free);
	if (v->cache.meta)
		munmap(v->cache.meta, JIT_SEGMENTS * v->cache.segment_meta);
	codebuf_done(&v->cache.code);
}

void *jit_cache_alloc(struct engine_vcpu *v, size_t bytes)
{
	struct jit_segment *segment = &v->cache.segment[v->cache.now];
	uint8_t *at = segment->meta;

	bytes = ALIGN_UP(bytes, (size_t)8);
	if ((size_t)(segment->meta_end - at) < bytes)
		return NULL;
	segment->meta += bytes;
	memset(at, 0, bytes);
	return at;
}

static struct x86_insn *insn_alloc(struct jit_cache *cache, struct jit_segment *segment)
{
	struct jit_insns *insns = segment->insns;

	if (!insns || insns->count == JIT_INSNS) {
		if (segment->insns_bytes + sizeof(*insns) > cache->segment_meta / 4)
			return NULL;
		insns = cache->insns_free;
		if (insns)
			cache->insns_free = insns->next;
		else
			insns = malloc(sizeof(*insns));
		if (!insns)
			return NULL;
		insns->count = 0;
		insns->next = segment->insns;
		segment->insns = insns;
		segment->insns_bytes += sizeof(*insns);
	}
	return &insns->insn[insns->count++];
}

const struct x86_insn *jit_site_insn(struct engine_vcpu *v, struct jit_site *site, struct x86_insn *space)
{
	if (likely(site->insn))
		return site->insn;
	site->insn = insn_alloc(&v->cache, &v->cache.segment[site->segment]);
	if (site->insn)
		space = site->insn;
	/* The same bytes, mode and features as when the block was made: it cannot fail now. */
	x86_decode(space, site->bytes, site->len, v->mode & JIT_MODE_64 ? 64 : 32, false,
		&v->soft.cpu.features);
	return space;
}

/* ---- look-up ---- */

struct jit_block *jit_cache_find(struct engine_vcpu *v, uint64_t key)
{
	const unsigned hash = hash_of(key), place = hash & (JIT_FRONT - 1);
	struct jit_block *block;

	if (likely(v->cache.front[place].key == key))
		return v->cache.front[place].block;
	block = v->cache.hash[hash];
	while (block && block->key != key)
		block = block->by_hash.next;
	if (block) {
		v->cache.front[place].key = key;
		v->cache.front[place].block = block;
	}
	return block;
}

/* `place` is the offset of one of the places in struct jit_block. */
static struct jit_place *place_of(struct jit_block *block, size_t place)
{
	return (struct jit_place *)((uint8_t *)block + place);
}

static void list_add(struct jit_block **list, struct jit_block *block, size_t place)
{
	struct jit_place *own = place_of(block, place);

	own->next = *list;
	own->pprev = list;
	if (own->next)
		place_of(own->next, place)->pprev = &own->next;
	*list = block;
}

static void list_remove(struct jit_block *block, size_t place)
{
	const struct jit_place *own = place_of(block, place);

	*own->pprev = own->next;
	if (own->next)
		place_of(own->next, place)->pprev = own->pprev;
}

void jit_cache_add(struct engine_vcpu *v, struct jit_block *block)
{
	struct jit_cache *cache = &v->cache;
	struct jit_segment *segment = &cache->segment[cache->now];

	list_add(&cache->hash[hash_of(block->key)], block, offsetof(struct jit_block, by_hash));
	list_add(&cache->page[page_hash(block_gpa(block))], block,
		offsetof(struct jit_block, by_page));
	if (block->second != JIT_NO_PAGE)
		list_add(&cache->second[second_hash(block->second)], block,
			offsetof(struct jit_block, by_second));
	block->segment_next = segment->blocks;
	segment->blocks = block;
}

/* ---- links ---- */

void jit_exit_link(struct engine_vcpu *v, struct jit_exit *exit, struct jit_block *to)
{
	emit_patch(exit->rel, exit->vec ? to->vec_entry : to->entry);
	exit->to = to;
	exit->next = to->incoming;
	exit->pprev = &to->incoming;
	if (exit->next)
		exit->next->pprev = &exit->next;
	to->incoming = exit;
	v->soft.counters.links++;
}

static void exit_unlink(struct jit_exit *exit)
{
	if (!exit->to)
		return;
	emit_patch(exit->rel, exit->stub);
	*exit->pprev = exit->next;
	if (exit->next)
		exit->next->pprev = exit->pprev;
	exit->to = NULL;
}

/* ---- forgetting ---- */

/* Nothing leads to the block any more, but for the branch cache. */
static void block_detach(struct engine_vcpu *v, struct jit_block *block)
{
	struct jit_cache *cache = &v->cache;

	const unsigned place = hash_of(block->key) & (JIT_FRONT - 1);

	if (cache->front[place].block == block)
		cache->front[place].key = 0;
	list_remove(block, offsetof(struct jit_block, by_hash));
	list_remove(block, offsetof(struct jit_block, by_page));
	if (block->second != JIT_NO_PAGE)
		list_remove(block, offsetof(struct jit_block, by_second));
	while (block->incoming)
		exit_unlink(block->incoming);
	for (unsigned i = 0; i < block->exit_count; i++)
		exit_unlink(block->exit[i]);
	block->gone = true;
	/* A pending exit may be the block's. */
	jit_untie(v);
}

void jit_cache_forget(struct engine_vcpu *v, struct jit_block *block)
{
	block_detach(v, block);
	x86_branch_clear(&v->soft.cpu);
}

unsigned jit_cache_invalidate(struct engine_vcpu *v, gpa_t page, uint64_t lines)
{
	struct jit_block *block = v->cache.page[page_hash(page)], *next;
	unsigned count = 0;

	page &= GUEST_PAGE_MASK;
	for (; block; block = next) {
		next = block->by_page.next;
		if ((block_gpa(block) & GUEST_PAGE_MASK) != page || !(block->lines & lines))
			continue;
		block_detach(v, block);
		count++;
	}
	for (block = v->cache.second[second_hash(page)]; block; block = next) {
		next = block->by_second.next;
		if (block->second != page || !(block->second_lines & lines))
			continue;
		block_detach(v, block);
		count++;
	}
	if (!count)
		return 0;
	x86_branch_clear(&v->soft.cpu);
	v->code_changed = true;
	v->soft.counters.invalidations += count;
	return count;
}

static void segment_evict(struct engine_vcpu *v, unsigned i)
{
	struct jit_block *block = v->cache.segment[i].blocks;

	for (; block; block = block->segment_next)
		if (!block->gone)
			block_detach(v, block);
	x86_branch_clear(&v->soft.cpu);
	segment_reset(&v->cache, i);
	v->soft.counters.evictions++;
}

void jit_cache_make_room(struct engine_vcpu *v)
{
	struct jit_cache *cache = &v->cache;
	const struct jit_segment *segment = &cache->segment[cache->now];

	if ((size_t)(segment->cold - segment->hot) >= HOT_MAX + COLD_MAX &&
		(size_t)(segment->meta_end - segment->meta) >= META_MAX)
		return;
	cache->now = (cache->now + 1) % JIT_SEGMENTS;
	/* Not `blocks`: translations that failed take room as well. */
	if (cache->segment[cache->now].meta != cache->meta + cache->now * cache->segment_meta)
		segment_evict(v, cache->now);
}
