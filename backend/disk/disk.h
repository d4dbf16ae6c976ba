/*
 * What formats share among each other; not for those who only use disks.
 */
#ifndef LODGE_BACKEND_DISK_DISK_H
#define LODGE_BACKEND_DISK_DISK_H

#include "backend/disk/format.h"
#include "backend/disk/iov.h"

/* Do these first bytes of a file look like one of the formats that are known by their looks? */
bool disk_format_known(const uint8_t *head, size_t bytes);

/* The path of what an image at path `image` calls `name`: relative to the image's directory. On the heap. */
char *disk_backing_path(const char *image, const char *name);

/* What lies behind the image; zeros where there is nothing. */
int disk_read_backing(struct disk *disk, const struct iovec *iov, unsigned count, uint64_t offset,
	uint64_t bytes);
int disk_map_backing(
	struct disk *disk, uint64_t offset, uint64_t bytes, struct disk_map_run *ret_run);

#endif
