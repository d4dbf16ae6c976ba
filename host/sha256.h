/*
 * SHA-256 (FIPS 180-4), for the digests of OCI layouts.
 */
#ifndef LODGE_HOST_SHA256_H
#define LODGE_HOST_SHA256_H

#include <stddef.h>
#include <stdint.h>

#define SHA256_TEXT 65

struct sha256 {
	uint32_t h[8];
	uint64_t bytes;
	uint8_t block[64];
};

void sha256_init(struct sha256 *s);
void sha256_add(struct sha256 *s, const void *bytes, size_t count);
/* As 64 small hexadecimal digits. */
void sha256_end(struct sha256 *s, char text[static SHA256_TEXT]);

#endif
