/*
 * What is in a flash (device/flash.h), in a file: every write is in it before the guest goes on, so that a killed process
 * loses none. A power failure of the host may lose those that it had not yet brought to its disk.
 *
 * The file holds the bytes of a UEFI firmware volume (PI specification 3, 3.2.1) and nothing else, as those of OVMF's package
 * and QEMU's do. Another program that has it open and respects locks (backend/disk/lock.h) keeps it to itself.
 */
#ifndef LODGE_BACKEND_FLASH_FILE_H
#define LODGE_BACKEND_FLASH_FILE_H

#include "device/flash_store.h"

struct error;
struct flash_file;

/*
 * With a path it is that file, made from template_path if it is not there; without, the template's bytes, which are gone when
 * it is closed. template_path NULL: the file must be there; else the file must be of the template's size.
 * Errors: with a line for people; -EAGAIN (in use), -EINVAL (no such file), -ENOENT and what else open and read say.
 */
MUST_CHECK int flash_file_open(const char *path, const char *template_path,
	struct flash_file **ret_file, struct error *err);
/* NULL is allowed. No machine has it. */
void flash_file_close(struct flash_file *file);

/* Good until it is closed; NULL for NULL. */
struct flash_store *flash_file_store(struct flash_file *file);

#endif
