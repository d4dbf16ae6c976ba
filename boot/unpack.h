/*
 * Unpacking a compressed kernel on the host.
 */
#ifndef LODGE_BOOT_UNPACK_H
#define LODGE_BOOT_UNPACK_H

#include "base/types.h"
#include "base/util.h"

/* The format's name by its first bytes, or NULL if it is none that boot_unpack() knows. */
const char *boot_unpack_format(const uint8_t *bytes, uint64_t size_bytes);

/*
 * Unpack into a new buffer, which the caller frees. The result never has more than max_bytes, nor is
 * much more host memory used on the way. What follows the packed data is ignored. Errors: -EOPNOTSUPP
 * (unknown format), -EBADMSG (damaged), -EFBIG (more than max_bytes), -ENOMEM.
 */
MUST_CHECK int boot_unpack(const uint8_t *bytes, uint64_t size_bytes, uint64_t max_bytes,
	uint8_t **ret_bytes, uint64_t *ret_size_bytes);

#endif
