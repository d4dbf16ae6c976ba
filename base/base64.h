/*
 * Bytes as text: base64 (RFC 4648, section 4), with padding and without line breaks.
 */
#ifndef LODGE_BASE_BASE64_H
#define LODGE_BASE_BASE64_H

#include "base/util.h"

#include <stddef.h>
#include <stdint.h>

/* Caller frees. NULL: no memory. */
char *base64_encode(const uint8_t *bytes, size_t count);
/* Caller frees *ret_bytes. Errors: -EINVAL, -ENOMEM. */
MUST_CHECK int base64_decode(const char *text, uint8_t **ret_bytes, size_t *ret_count);

#endif
