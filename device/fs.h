/*
 * A file server as a device (virtio-fs) sees it: something that takes FUSE requests and answers them later. A shared
 * directory (backend/share) implements it; a test has one of its own. The device only carries bytes: what is in a
 * request is the server's to check.
 *
 * Threads: submit and abandon by anyone, one at a time (with the device's lock). `done` comes on a thread of the
 * server's, perhaps before submit has returned and never within it. The buffers and the request belong to the server
 * until the request has ended.
 */
#ifndef LODGE_DEVICE_FS_H
#define LODGE_DEVICE_FS_H

#include "base/util.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct fs_request {
	const struct iovec *out; /* what the guest asks: guest RAM, which may change at any time */
	unsigned out_count;
	const struct iovec *in; /* room for the reply: guest RAM */
	unsigned in_count;
	uint64_t out_bytes, in_bytes; /* in all */
	/* written: bytes of the reply, from the start of `in`. */
	void (*done)(struct fs_request *request, uint32_t written);
	void *opaque;		 /* the submitter's */
	struct fs_request *next; /* the server's while it is under way */
	uint64_t session;	 /* the server's */
};

struct fs {
	const struct fs_ops *ops;
};

struct fs_ops {
	/* True: it has ended at once, with *ret_written bytes of reply, and `done` doesn't come. So it is with
	 * requests that never wait, such as FORGET. */
	bool (*submit)(struct fs *fs, struct fs_request *request, uint32_t *ret_written);
	/* The guest reset the device. Requests that have not begun end without effect, soon; the others when they
	 * end. What the guest held (files that are open, names it knows) is given up. */
	void (*abandon)(struct fs *fs);
	/* All requests have ended. */
	void (*close)(struct fs *fs);
};

static inline bool fs_submit(struct fs *fs, struct fs_request *request, uint32_t *ret_written)
{
	return fs->ops->submit(fs, request, ret_written);
}

static inline void fs_abandon(struct fs *fs)
{
	fs->ops->abandon(fs);
}

/* NULL is allowed. */
static inline void fs_close(struct fs *fs)
{
	if (fs)
		fs->ops->close(fs);
}

#endif
