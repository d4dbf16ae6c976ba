/*
 * The descriptors of nodes: see nodes.c. Those that nobody uses are closed when there are too many, the longest unused
 * first; what is wanted again is opened from its parent by its name, and must be the same file.
 *
 * Invariant: a node is in the list of newest to oldest if it has a descriptor and no pin.
 */
#include "backend/share/nodes_private.h"

#include <fcntl.h>
#include <string.h>

#define CHAIN_MAX 4096 /* directories that are opened again for one request */

/* ---- the list of descriptors that may be closed ---- */

void nodes_unlist(struct nodes *nodes, struct node *node)
{
	*(node->newer ? &node->newer->older : &nodes->newest) = node->older;
	*(node->older ? &node->older->newer : &nodes->oldest) = node->newer;
	node->newer = node->older = NULL;
}

static void list_add(struct nodes *nodes, struct node *node)
{
	node->newer = NULL;
	node->older = nodes->newest;
	*(nodes->newest ? &nodes->newest->newer : &nodes->oldest) = node;
	nodes->newest = node;
}

void nodes_pin(struct nodes *nodes, struct node *node)
{
	if (!node->pins++)
		nodes_unlist(nodes, node);
}

void nodes_unpin(struct nodes *nodes, struct node *node)
{
	if (!--node->pins)
		list_add(nodes, node);
}

/* The oldest descriptor that is not in use, to be closed; -1: there are no more than `most`. */
static int evict_one(struct nodes *nodes, unsigned most)
{
	struct node *node = nodes->oldest;

	if (!node || nodes->fd_count <= most)
		return -1;
	nodes_unlist(nodes, node);
	nodes->fd_count--;
	return take_fd(&node->fd);
}

static void evict(struct nodes *nodes, unsigned most)
{
	int fd;

	do {
		pthread_mutex_lock(&nodes->lock);
		fd = evict_one(nodes, most);
		pthread_mutex_unlock(&nodes->lock);
		if (fd >= 0)
			close(fd);
	} while (fd >= 0);
}

/* The process or the system has no descriptors left: give some back. */
static void evict_some(struct nodes *nodes)
{
	pthread_mutex_lock(&nodes->lock);
	const unsigned most = nodes->fd_count - MIN(nodes->fd_count, 64u);
	pthread_mutex_unlock(&nodes->lock);
	evict(nodes, most);
}

/* ---- descriptors ---- */

/* One with O_PATH, closing others if the process has too many. */
static int open_path(struct nodes *nodes, int dir_fd, const char *name)
{
	const int flags = O_PATH | O_NOFOLLOW | O_CLOEXEC;
	int fd = openat(dir_fd, name, flags);

	if (fd < 0 && (errno == EMFILE || errno == ENFILE)) {
		evict_some(nodes);
		fd = openat(dir_fd, name, flags);
	}
	return fd < 0 ? -errno : fd;
}

/* With the lock held: the fd becomes the node's, pinned, or is one too many (true). */
static bool install(struct nodes *nodes, struct node *node, int fd)
{
	if (node->fd >= 0) {
		nodes_pin(nodes, node);
		return true;
	}
	node->fd = fd;
	node->pins++;
	nodes->fd_count++;
	return false;
}

/* Open node from its parent, which is pinned and stays so. Errors: -ESTALE, open's. */
static int open_child(struct nodes *nodes, struct node *parent, struct node *node)
{
	char name[SHARE_NAME_MAX + 1];
	struct statx stat;

	pthread_mutex_lock(&nodes->lock);
	const bool there = node->parent == parent;
	if (there)
		strcpy(name, node->name);
	pthread_mutex_unlock(&nodes->lock);
	if (!there)
		return -ESTALE;
	AUTO_CLOSE int fd = open_path(nodes, parent->fd, name);
	if (fd < 0)
		return fd == -ENOENT || fd == -ENOTDIR ? -ESTALE : fd;
	int status = share_statx(fd, "", &stat);
	if (status < 0)
		return status;
	const struct node_key key = nodes_key_of(&stat);
	if (!nodes_same_life(&key, &node->key))
		return -ESTALE;
	pthread_mutex_lock(&nodes->lock);
	const bool extra = install(nodes, node, fd);
	pthread_mutex_unlock(&nodes->lock);
	if (!extra)
		(void)take_fd(&fd);
	evict(nodes, nodes->fd_max);
	return 0;
}

/* With the lock held: node and what is above it up to the first with a descriptor, which is pinned; a reference for
 * each. Returns how many, or -ESTALE, -ENAMETOOLONG. */
static int chain_take(struct nodes *nodes, struct node *node, struct node **chain)
{
	int count = 0;

	for (struct node *up = node; up; up = up->parent) {
		if (count == CHAIN_MAX)
			return -ENAMETOOLONG;
		chain[count++] = up;
		if (up->fd >= 0) {
			for (int i = 0; i < count; i++)
				chain[i]->refs++;
			nodes_pin(nodes, up);
			return count;
		}
	}
	return -ESTALE;
}

/* Open the chain from its far end; leaves only its first pinned. */
static int chain_open(struct nodes *nodes, struct node **chain, int count)
{
	int status = 0;
	int at = count - 1;

	while (status == 0 && at > 0) {
		status = open_child(nodes, chain[at], chain[at - 1]);
		AUTO_LOCK(&nodes->lock);
		nodes_unpin(nodes, chain[at]);
		if (status == 0)
			at--;
	}
	AUTO_LOCK(&nodes->lock);
	for (int i = 0; i < count; i++)
		nodes_put(nodes, chain[i]);
	return status;
}

int nodes_pin_fd(struct nodes *nodes, struct node *node)
{
	AUTO_FREE struct node **chain = NULL;

	pthread_mutex_lock(&nodes->lock);
	if (node->fd >= 0) {
		nodes_pin(nodes, node);
		pthread_mutex_unlock(&nodes->lock);
		return 0;
	}
	pthread_mutex_unlock(&nodes->lock);
	chain = malloc(CHAIN_MAX * sizeof(struct node *));
	if (!chain)
		return -ENOMEM;
	pthread_mutex_lock(&nodes->lock);
	int count = chain_take(nodes, node, chain);
	pthread_mutex_unlock(&nodes->lock);
	return count < 0 ? count : chain_open(nodes, chain, count);
}

int node_use(struct nodes *nodes, uint64_t id, struct node_use *ret_use)
{
	AUTO_NODE struct node_use use = {0};
	int status = node_find(nodes, id, &use);

	if (status == 0 && use.node->closed)
		status = -EACCES;
	if (status == 0)
		status = nodes_pin_fd(nodes, use.node);
	if (status < 0)
		return status;
	use.fd = use.node->fd;
	*ret_use = use;
	use.node = NULL;
	return 0;
}

void node_let_go(struct node_use *use)
{
	if (!use->node)
		return;
	AUTO_LOCK(&use->nodes->lock);
	if (use->fd >= 0)
		nodes_unpin(use->nodes, use->node);
	nodes_put(use->nodes, use->node);
	use->node = NULL;
}

void node_adopt_fd(struct node_use *use, int fd)
{
	pthread_mutex_lock(&use->nodes->lock);
	const bool extra = install(use->nodes, use->node, fd);
	use->fd = use->node->fd;
	pthread_mutex_unlock(&use->nodes->lock);
	if (extra)
		close(fd);
	evict(use->nodes, use->nodes->fd_max);
}
