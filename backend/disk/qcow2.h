/*
 * qcow2 images, versions 2 and 3, as described in QEMU's docs/interop/qcow2.txt. What the files qcow2_*.c share; not
 * for others (image.h has what one can do with an image besides reading and writing).
 *
 * Left out on purpose: encryption, external data files, persistent bitmaps (their consistency bit is cleared before the
 * first write, as the format asks). Images with extended L2 entries are read, not written.
 *
 * How a crash at any moment, with any of the writes since the last flush of the host file lost, leaves a good image:
 *
 * - Metadata are changed in memory only, and written by qcow2_flush(), in this order, a flush of the file (barrier)
 *   between the steps: data; entries of the reference count table; L2 tables; L1 entries. So nothing that is lasting
 *   points to what is not.
 * - While an image is written to the dirty bit is set (version 3; `guarded`), so that the next opening counts anew.
 *   Raised counts are written right before the L2 tables, lowered ones right after, with no barrier between: a process
 *   that is killed leaves an image in which nothing has leaked, unless it was between the two. Where there is no
 *   such bit there is a barrier on either side, and what a crash has leaked stays so until a check repairs it.
 * - An L2 entry that points to a new cluster is made once the cluster's data are written, or where the cluster is
 *   known to be zeros and the old content was zeros too.
 * - A cluster that is no longer pointed to is used again only after the barrier that made this lasting, and after
 *   all I/O that may still be under way in it has ended (`freed`, `held` below).
 * - Counts are written raised before and lowered after what they count; so a killed process leaves them right or too
 *   high (a leak), never too low. After a power cut they can be, but in a guarded image only.
 * - Moves of whole tables (L1, reference count table, snapshot table) are one write of the header's first sector.
 * - Operations that can't be done in such an order (snapshots) need the dirty bit.
 *
 * Locks: `meta` is held through every change of metadata and its I/O; `lock`, taken inside it, never through I/O. What
 * the fast way (qcow2_begin) reads or changes needs `lock`: L1, cached L2 tables and whether they are there, pool,
 * epochs. The fast way can only fill L2 entries that read as zeros, from the pool; everything else is changed by the
 * holder of `meta`. Reference counts, header and files of the slow way belong to `meta` alone.
 */
#ifndef LODGE_BACKEND_DISK_QCOW2_H
#define LODGE_BACKEND_DISK_QCOW2_H

#include "backend/disk/disk.h"
#include "base/bytes.h"
#include "base/cleanup.h"

#include <pthread.h>

#define QCOW2_MAGIC	       0x514649fbu
#define QCOW2_L1_BYTES_MAX     MIB(32)
#define QCOW2_REFTABLE_MAX     MIB(8)
#define QCOW2_SNAPSHOTS_MAX    65536u
#define QCOW2_SNAPSHOT_BYTES   MIB(64)
#define QCOW2_SNAPSHOT_L1_MAX  GIB(16) /* their L1 tables together */
#define QCOW2_NAME_MAX	       1023u
#define QCOW2_CHECK_MAX	       BIT(27) /* clusters that a check can count */
#define QCOW2_CLUSTER_BITS_MIN 9
#define QCOW2_CLUSTER_BITS_MAX 21

/* L1 and L2 entries */
#define QCOW2_COPIED	 BIT(63)
#define QCOW2_COMPRESSED BIT(62)
#define QCOW2_ZERO	 BIT(0)
#define QCOW2_OFFSET	 BIT_MASK(55, 9)
#define QCOW2_REF_OFFSET BIT_MASK(63, 9)

enum qcow2_incompatible {
	QCOW2_DIRTY = 1 << 0,
	QCOW2_CORRUPT = 1 << 1,
	QCOW2_EXTERNAL = 1 << 2,
	QCOW2_COMPRESSION = 1 << 3,
	QCOW2_EXTENDED = 1 << 4,
};
#define QCOW2_KNOWN   (QCOW2_DIRTY | QCOW2_CORRUPT | QCOW2_COMPRESSION | QCOW2_EXTENDED)
#define QCOW2_LAZY    1u /* compatible */
#define QCOW2_DEFLATE 0
#define QCOW2_ZSTD    1

struct qcow2_header {
	uint32_t version;
	uint64_t backing_offset;
	uint32_t backing_bytes;
	uint32_t cluster_bits;
	uint64_t size_bytes;
	uint32_t crypt;
	uint32_t l1_entries;
	uint64_t l1_offset;
	uint64_t reftable_offset;
	uint32_t reftable_clusters;
	uint32_t snapshots;
	uint64_t snapshots_offset;
	uint64_t incompatible, compatible, autoclear;
	uint32_t refcount_order;
	uint32_t header_bytes;
	uint8_t compression;
};

struct qcow2_table {
	uint8_t *data;		       /* one cluster, big-endian as in the file */
	uint64_t offset;	       /* where in the file */
	uint32_t index;		       /* of the entry that points to it */
	uint32_t slot;		       /* in `loaded` */
	bool used;		       /* since the hand last came by */
	uint32_t dirty_from, dirty_to; /* bytes; equal: clean */
};

struct qcow2_cache {
	struct qcow2_table **by_index; /* NULL: not in memory */
	uint32_t entries;
	struct qcow2_table **loaded;
	uint32_t count, max, hand;
	uint32_t dirty; /* tables */
};

struct qcow2_run {
	uint64_t start, count; /* clusters */
};

struct qcow2_runs {
	struct qcow2_run *run;
	size_t count, room;
};

/* Clusters whose counts are 0, but that are not yet to be used again. */
enum qcow2_stage {
	QCOW2_LOWERED, /* that nothing points to them is not lasting yet */
	QCOW2_SETTLED, /* it is; reads and writes that began before may be under way */
	QCOW2_GRACE,   /* the same, and all that began since belong to the next epoch */
};

struct qcow2_held {
	uint64_t start, count; /* clusters */
	enum qcow2_stage stage;
};

/* A cluster that was decompressed, by its L2 entry. */
struct qcow2_unpacked {
	uint64_t entry; /* 0: empty */
	uint8_t *data;
	uint64_t used;
};
#define QCOW2_UNPACKED 8

struct qcow2 {
	struct disk *disk;
	struct disk_file *file;
	struct qcow2_header header; /* as it is in the file, `meta` */
	uint64_t cluster_bytes;
	uint32_t entry_bytes; /* of an L2 entry: 8, or 16 if extended */
	uint32_t unit_bits;   /* of what is allocated at once: cluster, or subcluster if extended */
	uint32_t l2_bits;     /* log2 of L2 entries a table */
	uint32_t refblock_bits; /* log2 of reference counts a block */

	pthread_mutex_t meta, lock;

	uint64_t *l1; /* header.l1_entries, host order */
	uint32_t l1_dirty_from, l1_dirty_to;
	struct qcow2_cache l2;

	uint64_t *reftable;
	uint32_t reftable_entries;
	uint32_t reftable_dirty_from, reftable_dirty_to;
	struct qcow2_cache refs;
	uint64_t scan;	       /* no free cluster below this one */
	uint64_t grown_bytes;  /* the file's size, as far as it was made longer by us */
	uint64_t opened_bytes; /* its size at the beginning */

	/* Free clusters that are kept for the fast way: taking one needs no I/O. There is a block for their counts, which
	 * are 0 until the cluster is taken and a flush is about to write what points to it. */
	struct qcow2_run pool;
	bool pool_zero; /* they read as zeros */
	uint64_t
		pool_counted; /* those from here to pool.start are taken, and not counted; `meta` */
	uint64_t pool_next;
	struct qcow2_run
		unlinked; /* taken by the slow way, which is writing to them; counts are 0. `meta` */

	/* Guest clusters that the slow way is allocating: the fast one must not. */
	uint64_t busy_from, busy_to;

	struct qcow2_runs
		freed; /* no longer pointed to in memory, but in the file; counts are as they were */
	struct qcow2_held *held; /* by cluster */
	size_t held_count, held_room;
	unsigned epoch;
	uint64_t in_flight[2];

	bool touched; /* the image may be written to: dirty and auto-clear bits are as they should be */
	bool guarded; /* as long as it is touched the dirty bit is set, and lasting: counts may be wrong */
	bool leaky; /* what failed may have left counts too high: the dirty bit stays at the end */
	bool flushing; /* dirty data are on their way to the file */
	bool corrupt;
	bool keep_discarded;
	int flush_error; /* a flush of the host file failed: what is lasting is unknown */

	pthread_mutex_t unpack_lock;
	struct qcow2_unpacked unpacked[QCOW2_UNPACKED];
	uint64_t unpack_tick;
	uint64_t pack_offset, pack_end; /* room left behind the last compressed cluster */
};

static inline struct qcow2 *qcow2_of(const struct disk *disk)
{
	return disk->private;
}

static inline uint64_t qcow2_clusters(const struct qcow2 *q, uint64_t bytes)
{
	return (bytes >> q->header.cluster_bits) + !!(bytes & (q->cluster_bytes - 1));
}

/* Bytes that one L2 table maps, as a shift. */
static inline uint32_t qcow2_l1_shift(const struct qcow2 *q)
{
	return q->header.cluster_bits + q->l2_bits;
}

/* qcow2_header.c */
int qcow2_header_read(struct qcow2 *q, struct error *err);
/* The fixed fields, which lie in one sector (with header.version 2: the first 72 bytes). */
int qcow2_header_write(struct qcow2 *q);
/* The whole first cluster anew: fields, extensions (unknown ones of the old header kept), disk->backing_name. */
int qcow2_header_rewrite(struct qcow2 *q, struct error *err);
void qcow2_header_encode(const struct qcow2_header *header, uint8_t *bytes);
uint64_t qcow2_l1_entries_for(const struct qcow2 *q, uint64_t size_bytes);
/* Does the header have the extension for persistent bitmaps? */
bool qcow2_header_bitmaps(struct qcow2 *q);

/* qcow2_cache.c. Finding needs `lock`, the rest `meta`. */
int qcow2_cache_init(struct qcow2_cache *cache, uint32_t entries, uint32_t max);
void qcow2_cache_done(struct qcow2_cache *cache);
int qcow2_cache_resize(struct qcow2_cache *cache, uint32_t entries); /* larger; `lock` too */
struct qcow2_table *qcow2_cache_find(struct qcow2_cache *cache, uint32_t index);
/* load: read it from the file; else it is zeros. It stays there until the next get on the same cache. */
int qcow2_cache_get(struct qcow2 *q, struct qcow2_cache *cache, uint32_t index, uint64_t offset,
	bool load, struct qcow2_table **ret_table);
void qcow2_cache_forget(struct qcow2 *q, struct qcow2_cache *cache); /* all; they are clean */
void qcow2_cache_drop(struct qcow2 *q, struct qcow2_cache *cache, uint32_t index);
void qcow2_table_dirty(
	struct qcow2_cache *cache, struct qcow2_table *table, uint32_t from, uint32_t bytes);

/* qcow2_refcount.c; `meta` */
uint64_t qcow2_refcount_max(const struct qcow2 *q);
uint64_t qcow2_refcount_load(const uint8_t *block, uint32_t order, uint64_t index);
void qcow2_refcount_store(uint8_t *block, uint32_t order, uint64_t index, uint64_t count);
int qcow2_refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *ret_count);
/* Adds delta to the count of each. -ERANGE: it would be too large; -EIO: below 0. Changes none or all. */
int qcow2_refcount_add(struct qcow2 *q, uint64_t cluster, uint64_t count, int delta);
/* From `fewest` to `most` contiguous free clusters inside the file, with blocks for their counts, which stay 0. */
int qcow2_find_run(struct qcow2 *q, uint64_t fewest, uint64_t most, struct qcow2_run *ret_run);
/* Set the counts of such clusters to 1. */
int qcow2_count_new(struct qcow2 *q, uint64_t start, uint64_t count);
/* Contiguous clusters, whose counts are 1 then. */
int qcow2_alloc(struct qcow2 *q, uint64_t count, uint64_t *ret_cluster);
/* A cluster for metadata, with its space reserved. */
int qcow2_alloc_table(struct qcow2 *q, uint64_t clusters, uint64_t *ret_offset);
/* Nothing was made of it: nothing in the file ever pointed to it. */
void qcow2_untake_table(struct qcow2 *q, uint64_t clusters, uint64_t offset);
int qcow2_refs_write(struct qcow2 *q); /* all dirty blocks, no barrier */

/* qcow2_pool.c; `meta` */
/* Up to `want` clusters from the pool, filled if need be, become `unlinked`. Count them and forget that once they are
 * pointed to, or give them back. */
int qcow2_pool_take(struct qcow2 *q, uint64_t want, struct qcow2_run *ret_run, bool *ret_zero);
void qcow2_pool_untake(struct qcow2 *q);
/* Count what the fast way has taken, up to this cluster. */
int qcow2_pool_count(struct qcow2 *q, uint64_t end);
int qcow2_pool_return(struct qcow2 *q);
/* If a cluster whose count is 0 is not to be allocated: the next one that may be; else the cluster itself. */
uint64_t qcow2_kept_end(struct qcow2 *q, uint64_t cluster);
/* These are no longer pointed to: lower their counts as soon as the file says so. Never fails (a leak, then). */
void qcow2_free_later(struct qcow2 *q, uint64_t cluster, uint64_t count);
/* What pointed to these has been written over: lower their counts, and hold them. Empties the list. */
void qcow2_lower(struct qcow2 *q, struct qcow2_runs *freed);
void qcow2_settle(struct qcow2 *q); /* and that is lasting now */
void qcow2_reap(struct qcow2 *q);
/* Add a run to the list, joined with the last one if it can be. */
int qcow2_runs_add(struct qcow2_runs *runs, uint64_t start, uint64_t count);

/* qcow2_flush.c */
int qcow2_flush_meta(struct qcow2 *q); /* `meta` */
int qcow2_barrier(struct qcow2 *q);
int qcow2_touch(struct qcow2 *q);
int qcow2_set_incompatible(struct qcow2 *q, uint64_t bits, bool on);
int qcow2_corrupted(struct qcow2 *q, const char *what, uint64_t at); /* returns -EIO */

/* qcow2_map.c */
enum qcow2_kind {
	QCOW2_MISS, /* the L2 table is not in memory */
	QCOW2_NOTHING,
	QCOW2_ZEROS,
	QCOW2_DATA,
	QCOW2_PACKED,
	QCOW2_INVALID,
};
struct qcow2_place {
	enum qcow2_kind kind;
	bool copied;	/* DATA: it is ours alone */
	uint64_t bytes; /* alike from here on; PACKED: to the end of the cluster */
	uint64_t host;	/* DATA: offset in the file; NOTHING, ZEROS: cluster kept for it, or 0 */
	uint64_t entry;
};
/* `lock` */
void qcow2_lookup(struct qcow2 *q, uint64_t offset, uint64_t bytes, struct qcow2_place *ret_place);
/* `meta`: the L2 table is loaded if need be */
int qcow2_lookup_load(
	struct qcow2 *q, uint64_t offset, uint64_t bytes, struct qcow2_place *ret_place);
/* The table in memory, ours to write to. `meta` */
int qcow2_l2_for_write(struct qcow2 *q, uint64_t offset, struct qcow2_table **ret_table);
void qcow2_l2_set(struct qcow2 *q, struct qcow2_table *table, uint64_t offset, uint64_t entry);
uint64_t qcow2_l2_entry(const struct qcow2 *q, const struct qcow2_table *table, uint64_t offset);
/* The clusters that an L2 entry counts on: 0 if none. */
uint64_t qcow2_entry_clusters(const struct qcow2 *q, uint64_t entry, uint64_t *ret_first);
/* Where a compressed cluster is, in bytes. */
void qcow2_packed_place(
	const struct qcow2 *q, uint64_t entry, uint64_t *ret_offset, uint64_t *ret_bytes);
unsigned qcow2_hold(struct qcow2 *q); /* an epoch; `lock` is taken */
void qcow2_release(struct qcow2 *q, unsigned epoch);

/* Keep the fast way from allocating in this range of the disk; 0, 0: no more. */
void qcow2_busy(struct qcow2 *q, uint64_t from, uint64_t to);
void qcow2_l1_set(struct qcow2 *q, uint32_t index, uint64_t entry); /* `meta` and `lock` */

/* Is there something behind an unallocated range, or is it zeros? */
static inline bool qcow2_backed(const struct qcow2 *q, uint64_t offset)
{
	return q->disk->backing_ignored ||
	       (q->disk->backing && offset < q->disk->backing->size_bytes);
}

/* qcow2_pack.c: compressed clusters */
int qcow2_unpack(
	struct qcow2 *q, uint64_t entry, uint64_t from, struct iov_place *place, uint64_t bytes);
void qcow2_unpack_forget(struct qcow2 *q, uint64_t cluster, uint64_t count);
void qcow2_unpack_done(struct qcow2 *q);

/* qcow2_io.c */
int qcow2_readv(struct disk *disk, const struct iovec *iov, unsigned count, uint64_t offset,
	uint64_t bytes);
int qcow2_writev(struct disk *disk, const struct iovec *iov, unsigned count, uint64_t offset,
	uint64_t bytes);
void qcow2_begin(struct disk *disk, enum disk_access access, uint64_t offset, uint64_t bytes,
	struct disk_extent *ret_extent);
int qcow2_map(struct disk *disk, uint64_t offset, uint64_t bytes, struct disk_map_run *ret_run);

/* qcow2_zero.c */
int qcow2_discard(struct disk *disk, uint64_t offset, uint64_t bytes);
int qcow2_zero(struct disk *disk, uint64_t offset, uint64_t bytes, bool unmap);

/* qcow2_resize.c */
int qcow2_resize(struct disk *disk, uint64_t size_bytes, struct error *err);
/* The disk gets this L1 table (host order), in a new place, and this size, at one moment. Lasting when it returns.
 * Nothing is dirty before. `meta` */
int qcow2_l1_move(struct qcow2 *q, const uint64_t *l1, uint32_t entries, uint64_t size_bytes);

/* qcow2.c: read L1 and reference count table anew; nothing is dirty. `meta`, and no other user. */
int qcow2_tables_load(struct qcow2 *q, struct error *err);

/* qcow2_zero.c: clusters from..to (guest offsets, multiples of the cluster) are unallocated, and forgotten about
 * by L1 where a whole L2 table is empty then. */
int qcow2_drop(struct qcow2 *q, uint64_t from, uint64_t to);

#endif
