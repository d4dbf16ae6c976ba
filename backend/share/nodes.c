/*
 * The files that a guest knows: see struct node in internal.h.
 *
 * The guest may know more files than the process may have descriptors, so a node need not have one (node_fds.c). What
 * is found where it was last seen counts only if it is the same file (device, inode, mount, type, time of birth); else
 * the node is stale, on which a Linux guest looks the path up anew.
 *
 * Invariants: the root always has its descriptor. Parents form no cycle. Ids are a slot's index and generation, and none
 * is ever used twice.
 */
#include "backend/share/nodes_private.h"

#include <string.h>

/* ---- the tables; with the lock held ---- */

static unsigned hash_of(const struct nodes *nodes, const struct node_key *key)
{
	uint64_t mixed = (key->ino ^ key->mount << 40 ^ (uint64_t)key->dev_minor << 20 ^
				 (uint64_t)key->dev_major << 52) *
			 0x9e3779b97f4a7c15ull;

	return (unsigned)(mixed >> 32) & (nodes->bucket_count - 1);
}

static bool same_file(const struct node_key *a, const struct node_key *b)
{
	return a->ino == b->ino && a->mount == b->mount && a->dev_major == b->dev_major &&
	       a->dev_minor == b->dev_minor;
}

bool nodes_same_life(const struct node_key *a, const struct node_key *b)
{
	return same_file(a, b) && a->type == b->type &&
	       (!a->born_ns || !b->born_ns || a->born_ns == b->born_ns);
}

static void hash_add(struct nodes *nodes, struct node *node)
{
	struct node **bucket = &nodes->bucket[hash_of(nodes, &node->key)];

	node->hash_next = *bucket;
	node->hashed = true;
	*bucket = node;
}

static void hash_remove(struct nodes *nodes, struct node *node)
{
	struct node **link = &nodes->bucket[hash_of(nodes, &node->key)];

	if (!node->hashed)
		return;
	while (*link != node)
		link = &(*link)->hash_next;
	*link = node->hash_next;
	node->hashed = false;
}

static struct node *hash_find(struct nodes *nodes, const struct node_key *key)
{
	struct node *node = nodes->bucket[hash_of(nodes, key)];

	while (node && !same_file(&node->key, key))
		node = node->hash_next;
	return node;
}

/* Twice the buckets. If there is no memory for them the chains are longer, that's all. */
static void hash_grow(struct nodes *nodes)
{
	struct node **old = nodes->bucket;
	const unsigned old_count = nodes->bucket_count;
	struct node **more = calloc(old_count * 2ul, sizeof(struct node *));

	if (!more)
		return;
	nodes->bucket = more;
	nodes->bucket_count = old_count * 2;
	for (unsigned i = 0; i < old_count; i++) {
		for (struct node *node = old[i], *next; node; node = next) {
			next = node->hash_next;
			hash_add(nodes, node);
		}
	}
	free(old);
}

static int slot_take(struct nodes *nodes, struct node *node)
{
	uint32_t index = nodes->free_slot;

	if (index) {
		nodes->free_slot = nodes->slot[index].next_free;
	} else {
		if (nodes->slot_count == nodes->slot_room) {
			const uint32_t room = nodes->slot_room ? nodes->slot_room * 2 : 64;
			struct node_slot *slot = realloc(nodes->slot, room * sizeof(*slot));

			if (!slot)
				return -ENOMEM;
			nodes->slot = slot;
			nodes->slot_room = room;
		}
		index = nodes->slot_count++;
		nodes->slot[index] = (struct node_slot){0};
	}
	nodes->slot[index].node = node;
	node->id = (uint64_t)nodes->slot[index].generation << 32 | index;
	return 0;
}

static void slot_give(struct nodes *nodes, struct node *node)
{
	struct node_slot *slot = &nodes->slot[(uint32_t)node->id];

	slot->node = NULL;
	/* A slot whose generations are used up is never used again. */
	if (++slot->generation) {
		slot->next_free = nodes->free_slot;
		nodes->free_slot = (uint32_t)node->id;
	}
}

static struct node *by_id(struct nodes *nodes, uint64_t id)
{
	const uint32_t index = (uint32_t)id;
	struct node *node = index < nodes->slot_count ? nodes->slot[index].node : NULL;

	return node && node->id == id ? node : NULL;
}

/* ---- references; with the lock held ---- */

static void node_die(struct nodes *nodes, struct node *node)
{
	hash_remove(nodes, node);
	slot_give(nodes, node);
	if (node->fd >= 0) {
		nodes_unlist(nodes, node);
		nodes->fd_count--;
	}
	nodes->count--;
	node->hash_next = nodes->dead;
	nodes->dead = node;
}

void nodes_put(struct nodes *nodes, struct node *node)
{
	while (node && !--node->refs) {
		struct node *parent = node->parent;

		node_die(nodes, node);
		node = parent;
	}
}

static void unlink_from_parent(struct nodes *nodes, struct node *node)
{
	struct node *parent = node->parent;

	free(node->name);
	node->name = NULL;
	node->parent = NULL;
	nodes_put(nodes, parent);
}

/* Host renames can make what we know of a path stale in a way that bites its own tail: cut it there. */
static void break_cycle(struct nodes *nodes, struct node *node, struct node *new_parent)
{
	for (struct node *up = new_parent; up; up = up->parent) {
		if (up->parent == node) {
			unlink_from_parent(nodes, up);
			return;
		}
	}
}

static int link_to_parent(
	struct nodes *nodes, struct node *node, struct node *parent, const char *name)
{
	if (node->parent == parent && strcmp(node->name, name) == 0)
		return 0;
	if (node == parent)
		return -ELOOP;
	char *copy = strdup(name);
	if (!copy)
		return -ENOMEM;
	/* One reference is the caller's; without another it has no children. */
	if (S_ISDIR(node->key.type) && node->refs > 1)
		break_cycle(nodes, node, parent);
	parent->refs++;
	unlink_from_parent(nodes, node);
	node->parent = parent;
	node->name = copy;
	return 0;
}

/* ---- creation and end ---- */

struct node_key nodes_key_of(const struct statx *stat)
{
	const bool born = stat->stx_mask & STATX_BTIME;

	return (struct node_key){
		.ino = stat->stx_ino,
		.mount = stat->stx_mask & STATX_MNT_ID ? stat->stx_mnt_id : 0,
		.born_ns = born ? (uint64_t)stat->stx_btime.tv_sec * 1000000000u +
					   stat->stx_btime.tv_nsec
				: 0,
		.dev_major = stat->stx_dev_major,
		.dev_minor = stat->stx_dev_minor,
		.type = stat->stx_mode & S_IFMT,
	};
}

static int node_new(struct nodes *nodes, const struct statx *stat, struct node **ret_node)
{
	if (nodes->count >= nodes->max)
		return -ENFILE;
	AUTO_FREE struct node *node = calloc(1, sizeof(*node));
	if (!node)
		return -ENOMEM;
	node->key = nodes_key_of(stat);
	node->fd = -1;
	int status = slot_take(nodes, node);
	if (status < 0)
		return status;
	if (nodes->count >= nodes->bucket_count)
		hash_grow(nodes);
	hash_add(nodes, node);
	nodes->count++;
	*ret_node = take_ptr(&node);
	return 0;
}

int nodes_init(struct nodes *nodes, int root_fd, unsigned max, unsigned fd_max)
{
	struct statx stat;
	int status = share_statx(root_fd, "", &stat);

	if (status < 0)
		return status;
	*nodes = (struct nodes){.bucket_count = 64, .max = max, .fd_max = fd_max};
	pthread_mutex_init(&nodes->lock, NULL);
	nodes->bucket = calloc(nodes->bucket_count, sizeof(struct node *));
	nodes->slot = calloc(64, sizeof(*nodes->slot));
	if (!nodes->bucket || !nodes->slot) {
		nodes_done(nodes);
		return -ENOMEM;
	}
	/* Slot 0 ends the list of free ones; the next, and so the root's id, is FUSE_ROOT_ID. */
	nodes->slot_room = 64;
	nodes->slot_count = FUSE_ROOT_ID;
	status = node_new(nodes, &stat, &nodes->root);
	if (status < 0) {
		nodes_done(nodes);
		return status;
	}
	nodes->root->fd = root_fd;
	nodes->root->refs = nodes->root->pins = 1;
	nodes->fd_count = 1;
	return 0;
}

void nodes_done(struct nodes *nodes)
{
	if (nodes->root) {
		nodes_forget_all(nodes);
		nodes_bury(nodes);
		close(nodes->root->fd);
		free(nodes->root);
	}
	free(nodes->slot);
	free(nodes->bucket);
	pthread_mutex_destroy(&nodes->lock);
}

void nodes_forget_all(struct nodes *nodes)
{
	AUTO_LOCK(&nodes->lock);
	for (uint32_t i = FUSE_ROOT_ID + 1; i < nodes->slot_count; i++) {
		struct node *node = nodes->slot[i].node;

		if (node && node->lookups) {
			node->lookups = 0;
			nodes_put(nodes, node);
		}
	}
}

void nodes_forget(struct nodes *nodes, uint64_t id, uint64_t lookups)
{
	AUTO_LOCK(&nodes->lock);
	struct node *node = by_id(nodes, id);

	if (!node || node == nodes->root || !node->lookups || !lookups)
		return;
	node->lookups -= MIN(lookups, node->lookups);
	if (!node->lookups)
		nodes_put(nodes, node);
}

bool nodes_have_dead(struct nodes *nodes)
{
	AUTO_LOCK(&nodes->lock);
	return nodes->dead;
}

void nodes_bury(struct nodes *nodes)
{
	pthread_mutex_lock(&nodes->lock);
	struct node *dead = nodes->dead;
	nodes->dead = NULL;
	pthread_mutex_unlock(&nodes->lock);
	for (struct node *next; dead; dead = next) {
		next = dead->hash_next;
		if (dead->fd >= 0)
			close(dead->fd);
		free(dead->name);
		free(dead);
	}
}

int node_find(struct nodes *nodes, uint64_t id, struct node_use *ret_use)
{
	AUTO_LOCK(&nodes->lock);
	struct node *node = by_id(nodes, id);

	if (!node)
		return -ESTALE;
	node->refs++;
	*ret_use = (struct node_use){.nodes = nodes, .node = node, .fd = -1};
	return 0;
}

/* ---- what is known of files ---- */

/* The node's parent with a reference, and its name. */
static int parent_of(
	struct nodes *nodes, struct node *node, struct node **ret_parent, char *ret_name)
{
	AUTO_LOCK(&nodes->lock);
	if (!node->parent)
		return -ESTALE;
	strcpy(ret_name, node->name);
	*ret_parent = node->parent;
	node->parent->refs++;
	return 0;
}

/* By way of the parent: cheaper than opening it. */
static int stat_by_name(struct nodes *nodes, struct node *node, struct statx *ret_stat)
{
	AUTO_NODE struct node_use parent = {.nodes = nodes, .fd = -1};
	char name[SHARE_NAME_MAX + 1];
	int status = parent_of(nodes, node, &parent.node, name);

	if (status == 0)
		status = nodes_pin_fd(nodes, parent.node);
	if (status < 0)
		return status;
	parent.fd = parent.node->fd;
	status = share_statx(parent.fd, name, ret_stat);
	if (status < 0)
		return status == -ENOENT || status == -ENOTDIR ? -ESTALE : status;
	const struct node_key key = nodes_key_of(ret_stat);
	return nodes_same_life(&key, &node->key) ? 0 : -ESTALE;
}

int node_stat(struct nodes *nodes, uint64_t id, struct statx *ret_stat)
{
	AUTO_NODE struct node_use use = {0};
	int status = node_find(nodes, id, &use);

	if (status < 0)
		return status;
	pthread_mutex_lock(&nodes->lock);
	if (use.node->fd >= 0) {
		nodes_pin(nodes, use.node);
		use.fd = use.node->fd;
	}
	pthread_mutex_unlock(&nodes->lock);
	return use.fd >= 0 ? share_statx(use.fd, "", ret_stat)
			   : stat_by_name(nodes, use.node, ret_stat);
}

/* With the lock held: the node of this file, which may be new. */
static int find_or_new(struct nodes *nodes, const struct statx *stat, struct node **ret_node)
{
	const struct node_key key = nodes_key_of(stat);
	struct node *node = hash_find(nodes, &key);

	/* While it is held open nobody else has its number. Else it may be a new file: the old node is gone. */
	if (node && node->fd < 0 && !nodes_same_life(&node->key, &key)) {
		hash_remove(nodes, node);
		node = NULL;
	}
	*ret_node = node;
	return node ? 0 : node_new(nodes, stat, ret_node);
}

int node_enter(struct nodes *nodes, struct node *parent, const char *name, const struct statx *stat,
	bool closed, struct node_use *ret_use)
{
	struct node *node;

	AUTO_LOCK(&nodes->lock);
	int status = find_or_new(nodes, stat, &node);
	if (status < 0)
		return status;
	node->refs++;
	status = node == nodes->root ? -ELOOP : link_to_parent(nodes, node, parent, name);
	if (status < 0) {
		nodes_put(nodes, node);
		return status;
	}
	if (!node->lookups++)
		node->refs++;
	node->closed |= closed;
	*ret_use = (struct node_use){.nodes = nodes, .node = node, .fd = -1};
	return 0;
}

void node_moved(
	struct nodes *nodes, struct node *parent, const char *name, const struct statx *stat)
{
	const struct node_key key = nodes_key_of(stat);

	AUTO_LOCK(&nodes->lock);
	struct node *node = hash_find(nodes, &key);
	/* Without memory it keeps the old name, and will be stale. */
	if (node && node != nodes->root)
		(void)!link_to_parent(nodes, node, parent, name);
}

static bool same_time(const struct statx_timestamp *a, const struct statx_timestamp *b)
{
	return a->tv_sec == b->tv_sec && a->tv_nsec == b->tv_nsec;
}

/* Did the file last change so long ago that its next change will have another time? */
static bool is_settled(const struct statx *now)
{
	struct timespec clock;

	clock_gettime(CLOCK_REALTIME, &clock);
	const int64_t age_ms = (clock.tv_sec - now->stx_ctime.tv_sec) * 1000 +
			       (clock.tv_nsec - (int64_t)now->stx_ctime.tv_nsec) / 1000000;
	/* File systems stamp in ticks of up to 10 ms (some network ones in seconds). */
	return age_ms > 2000;
}

bool node_unchanged(struct nodes *nodes, struct node *node, const struct statx *now)
{
	const bool settled = is_settled(now);

	AUTO_LOCK(&nodes->lock);
	const struct node_seen *seen = &node->seen;
	const bool same = seen->settled && seen->size == now->stx_size &&
			  same_time(&seen->mtime, &now->stx_mtime) &&
			  same_time(&seen->ctime, &now->stx_ctime);
	node->seen = (struct node_seen){.size = now->stx_size,
		.mtime = now->stx_mtime,
		.ctime = now->stx_ctime,
		.settled = settled};
	return same;
}
