/*
 * The files and directories that a guest has open.
 *
 * Invariants: an id is a slot's index and generation, and none is ever used twice. A handle keeps its node's
 * descriptor pinned, so that the node is reachable when its name is gone.
 */
#include "backend/share/internal.h"

int handles_init(struct handles *handles, unsigned max)
{
	*handles = (struct handles){.max = max, .slot_room = 64, .slot_count = 1};
	handles->slot = calloc(handles->slot_room, sizeof(*handles->slot));
	if (!handles->slot)
		return -ENOMEM;
	pthread_mutex_init(&handles->lock, NULL);
	return 0;
}

static void handle_free(struct handle *handle)
{
	close(handle->fd);
	node_let_go(&handle->use);
	pthread_mutex_destroy(&handle->dir_lock);
	free(handle);
}

/* With the lock held; returns the handle if it is now the caller's to free. */
static struct handle *put(struct handle *handle)
{
	return --handle->refs ? NULL : handle;
}

static void slot_give(struct handles *handles, uint32_t index)
{
	struct handle_slot *slot = &handles->slot[index];

	slot->handle = NULL;
	handles->count--;
	if (++slot->generation) {
		slot->next_free = handles->free_slot;
		handles->free_slot = index;
	}
}

void handles_close_all(struct handles *handles)
{
	for (uint32_t i = 1;; i++) {
		struct handle *ended = NULL;

		pthread_mutex_lock(&handles->lock);
		const bool more = i < handles->slot_count;
		struct handle *handle = more ? handles->slot[i].handle : NULL;
		if (handle) {
			slot_give(handles, i);
			ended = put(handle);
		}
		pthread_mutex_unlock(&handles->lock);
		if (ended)
			handle_free(ended);
		if (!more)
			return;
	}
}

void handles_done(struct handles *handles)
{
	handles_close_all(handles);
	free(handles->slot);
	pthread_mutex_destroy(&handles->lock);
}

/* With the lock held. */
static int slot_take(struct handles *handles, struct handle *handle)
{
	uint32_t index = handles->free_slot;

	if (handles->count >= handles->max)
		return -ENFILE;
	if (index) {
		handles->free_slot = handles->slot[index].next_free;
	} else {
		if (handles->slot_count == handles->slot_room) {
			struct handle_slot *slot =
				realloc(handles->slot, handles->slot_room * 2ul * sizeof(*slot));

			if (!slot)
				return -ENOMEM;
			handles->slot = slot;
			handles->slot_room *= 2;
		}
		index = handles->slot_count++;
		handles->slot[index] = (struct handle_slot){0};
	}
	handles->count++;
	handles->slot[index].handle = handle;
	handle->id = (uint64_t)handles->slot[index].generation << 32 | index;
	return 0;
}

int handle_open(
	struct handles *handles, struct node_use *use, int fd, bool directory, uint64_t *ret_id)
{
	AUTO_FREE struct handle *handle = calloc(1, sizeof(*handle));

	if (!handle)
		return -ENOMEM;
	*handle = (struct handle){.use = *use, .fd = fd, .directory = directory, .refs = 1};
	pthread_mutex_init(&handle->dir_lock, NULL);
	AUTO_LOCK(&handles->lock);
	int status = slot_take(handles, handle);
	if (status < 0)
		return status;
	*ret_id = handle->id;
	use->node = NULL;
	(void)take_ptr(&handle);
	return 0;
}

/* With the lock held. */
static struct handle *by_id(struct handles *handles, uint64_t id, bool directory)
{
	const uint32_t index = (uint32_t)id;
	struct handle *handle = index < handles->slot_count ? handles->slot[index].handle : NULL;

	return handle && handle->id == id && handle->directory == directory ? handle : NULL;
}

int handle_close(struct handles *handles, uint64_t id, bool directory)
{
	struct handle *ended = NULL;

	pthread_mutex_lock(&handles->lock);
	struct handle *handle = by_id(handles, id, directory);
	if (handle) {
		slot_give(handles, (uint32_t)id);
		ended = put(handle);
	}
	pthread_mutex_unlock(&handles->lock);
	if (ended)
		handle_free(ended);
	return handle ? 0 : -EBADF;
}

int handle_use(struct handles *handles, uint64_t id, uint64_t node_id, bool directory,
	struct handle_use *ret_use)
{
	AUTO_LOCK(&handles->lock);
	struct handle *handle = by_id(handles, id, directory);

	if (!handle || handle->use.node->id != node_id)
		return -EBADF;
	handle->refs++;
	*ret_use = (struct handle_use){.handles = handles, .handle = handle};
	return 0;
}

void handle_let_go(struct handle_use *use)
{
	if (!use->handle)
		return;
	pthread_mutex_lock(&use->handles->lock);
	struct handle *ended = put(use->handle);
	pthread_mutex_unlock(&use->handles->lock);
	if (ended)
		handle_free(ended);
	use->handle = NULL;
}
