/*
 * Integers in bytes of any alignment, in the byte order the name gives. The caller has checked that
 * the bytes are there.
 */
#ifndef LODGE_BASE_BYTES_H
#define LODGE_BASE_BYTES_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define BYTES_DEFINE(order, bits)                                                 \
	static inline uint##bits##_t load_##order##bits(const void *bytes)        \
	{                                                                         \
		uint##bits##_t raw;                                               \
                                                                                  \
		memcpy(&raw, bytes, sizeof(raw));                                 \
		return order##bits##toh(raw);                                     \
	}                                                                         \
	static inline void store_##order##bits(void *bytes, uint##bits##_t value) \
	{                                                                         \
		uint##bits##_t raw = hto##order##bits(value);                     \
                                                                                  \
		memcpy(bytes, &raw, sizeof(raw));                                 \
	}

/* load_le16(), store_le16() ... load_be64(), store_be64() */
BYTES_DEFINE(le, 16)
BYTES_DEFINE(le, 32)
BYTES_DEFINE(le, 64)
BYTES_DEFINE(be, 16)
BYTES_DEFINE(be, 32)
BYTES_DEFINE(be, 64)

#endif
