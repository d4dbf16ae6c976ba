/*
 * Network storage: an export of an NBD server as a host file (file.h), for any image format on top. By libnbd.
 *
 * A lost connection is made again while requests wait. Writes that the server has acknowledged but not yet flushed
 * are kept in memory (up to NBD_JOURNAL_BYTES, then a flush comes before the next) and sent again: the server may have
 * lost them.
 * A request waits for an answer, or for a connection, for the timeout; then the connection is dropped, and all requests
 * fail with -ETIMEDOUT until the server has answered one again. Nothing is lost by that: a flush may be tried again.
 *
 * Nothing locks an export: that two machines do not write to one is the server's care.
 *
 * Threads: as file.h says; each file has a thread of its own that talks to the server.
 */
#ifndef LODGE_BACKEND_DISK_NBD_H
#define LODGE_BACKEND_DISK_NBD_H

#include "backend/disk/file.h"

#define NBD_TIMEOUT_NS	  30000000000ull
#define NBD_NO_TIMEOUT	  UINT64_MAX
#define NBD_CONNECT_NS	  10000000000ull /* for one attempt, at most */
#define NBD_JOURNAL_BYTES MIB(32)

/* nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH, and the same with TLS: nbds://, nbds+unix:// */
bool nbd_file_is_uri(const char *path);

/* Errors: with a line for people; -EROFS: the export is read-only and more was wanted; -ETIMEDOUT: somebody
 * is there who does not answer. */
struct nbd_file_options {
	bool readonly;
	uint64_t timeout_ns; /* 0: NBD_TIMEOUT_NS */
};
MUST_CHECK int nbd_file_open(const char *uri, const struct nbd_file_options *options,
	struct disk_file **ret_file, struct error *err);

#endif
