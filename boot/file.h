/*
 * The files a boot reads. Each is opened once, its size taken once from the open file, and its bytes
 * read once into memory that nobody else can change: what was checked is what is used.
 */
#ifndef LODGE_BOOT_FILE_H
#define LODGE_BOOT_FILE_H

#include "base/types.h"
#include "base/util.h"

struct error;
struct guest_memory;

/* Larger than any kernel: the largest stock ones are under 64 MiB. */
#define BOOT_KERNEL_MAX_BYTES MIB(512)

struct boot_file {
	const char *path; /* for messages, and to open when fd is not given */
	int fd;		  /* > 0: an open file, used in place of the path; stays the caller's */
	const char *args; /* multiboot and PVH: the module's command line, or NULL */
};

/* The bytes of a kernel. Free with boot_image_done(). */
struct boot_image {
	const char *name; /* for people; belongs to the caller */
	uint8_t *bytes;
	uint64_t size_bytes;
};

/* Errors: what open() and read() say, -EINVAL (not a regular file, empty), -EFBIG. */
MUST_CHECK int boot_image_read(struct boot_image *ret_image, const struct boot_file *file,
	uint64_t max_bytes, struct error *err);
void boot_image_done(struct boot_image *image);

/* Open an initrd or module and learn its size. Caller closes *ret_fd. Errors as above. */
MUST_CHECK int boot_file_open(
	const struct boot_file *file, int *ret_fd, uint64_t *ret_size_bytes, struct error *err);

/* Read exactly size_bytes of fd into guest RAM that lies in one region. */
MUST_CHECK int boot_file_load(struct guest_memory *memory, int fd, const char *name, gpa_t base,
	uint64_t size_bytes, struct error *err);

#endif
