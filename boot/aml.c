/*
 * AML encoding: ACPI 6.4, chapter 20 (grammar, package lengths) and 6.4 (resource descriptors). See
 * aml.h. Left out: everything our DSDT does not use.
 */
#include "boot/aml.h"

#include <string.h>

#include "base/bytes.h"
#include "base/util.h"

enum aml_op {
	AML_ZERO = 0x00,
	AML_ONE = 0x01,
	AML_NAME = 0x08,
	AML_BYTE = 0x0a,
	AML_WORD = 0x0b,
	AML_DWORD = 0x0c,
	AML_STRING = 0x0d,
	AML_QWORD = 0x0e,
	AML_SCOPE = 0x10,
	AML_BUFFER = 0x11,
	AML_PACKAGE = 0x12,
	AML_METHOD = 0x14,
	AML_ARGUMENT = 0x68,
	AML_RETURN = 0xa4,
	AML_EXT = 0x5b,
	AML_EXT_DEVICE = 0x82,
};

/* Resource descriptors: the tag byte of small ones holds their length. */
#define RES_IO		 0x47
#define RES_IRQ		 0x22
#define RES_END		 0x79
#define RES_MEMORY32	 0x86
#define RES_WORD_SPACE	 0x88
#define RES_EXT_IRQ	 0x89
#define RES_QWORD_SPACE	 0x8a
#define SPACE_MEMORY	 0
#define SPACE_IO	 1
#define SPACE_BUS	 2
#define SPACE_FIXED	 0x0c /* both ends of the range */
#define SPACE_IO_ENTIRE	 0x03
#define SPACE_MEMORY_RW	 0x01 /* and not cached */

/* _CRS buffers have the size of their contents as an object of this many bytes. */
#define BUFFER_SIZE_BYTES 3

void aml_init(struct aml *aml, uint8_t *bytes, uint32_t room_bytes)
{
	*aml = (struct aml){.bytes = bytes, .room_bytes = room_bytes};
}

static void put(struct aml *aml, const void *bytes, uint32_t size_bytes)
{
	if (aml->failed || size_bytes > aml->room_bytes - aml->size_bytes) {
		aml->failed = true;
		return;
	}
	memcpy(aml->bytes + aml->size_bytes, bytes, size_bytes);
	aml->size_bytes += size_bytes;
}

static void put8(struct aml *aml, uint8_t value)
{
	put(aml, &value, 1);
}

/* Little-endian, the low size_bytes of value. */
static void put_le(struct aml *aml, uint64_t value, unsigned size_bytes)
{
	uint8_t raw[8];

	store_le64(raw, value);
	put(aml, raw, size_bytes);
}

/* Segments are padded with underscores to four characters. */
static void put_name(struct aml *aml, const char *name)
{
	if (*name == '\\') {
		put8(aml, '\\');
		name++;
	}
	for (unsigned i = 0; i < 4; i++)
		put8(aml, *name ? (uint8_t)*name++ : '_');
	if (*name)
		aml->failed = true;
}

void aml_name(struct aml *aml, const char *name)
{
	put8(aml, AML_NAME);
	put_name(aml, name);
}

void aml_integer(struct aml *aml, uint64_t value)
{
	if (value <= 1) {
		put8(aml, value ? AML_ONE : AML_ZERO);
	} else if (value <= UINT8_MAX) {
		put8(aml, AML_BYTE);
		put_le(aml, value, 1);
	} else if (value <= UINT16_MAX) {
		put8(aml, AML_WORD);
		put_le(aml, value, 2);
	} else if (value <= UINT32_MAX) {
		put8(aml, AML_DWORD);
		put_le(aml, value, 4);
	} else {
		put8(aml, AML_QWORD);
		put_le(aml, value, 8);
	}
}

void aml_string(struct aml *aml, const char *text)
{
	put8(aml, AML_STRING);
	put(aml, text, (uint32_t)strlen(text) + 1);
}

static unsigned hex_digit(char c)
{
	return c <= '9' ? (unsigned)(c - '0') : (unsigned)(c - 'A' + 10) & 15;
}

/* Three letters of 5 bits, four digits of 4 bits, big-endian (ACPI 6.4, 19.3.4 EISAID). */
void aml_eisaid(struct aml *aml, const char *id)
{
	uint32_t value = 0;
	uint8_t raw[4];

	if (strlen(id) != 7) {
		aml->failed = true;
		return;
	}
	for (unsigned i = 0; i < 3; i++)
		value = value << 5 | ((unsigned)id[i] - 0x40);
	for (unsigned i = 3; i < 7; i++)
		value = value << 4 | hex_digit(id[i]);
	store_be32(raw, value);
	put8(aml, AML_DWORD);
	put(aml, raw, 4);
}

/* A block is named by the offset at which its length belongs. */
unsigned aml_scope_open(struct aml *aml, const char *name)
{
	unsigned block;

	put8(aml, AML_SCOPE);
	block = aml->size_bytes;
	put_name(aml, name);
	return block;
}

unsigned aml_device_open(struct aml *aml, const char *name)
{
	unsigned block;

	put8(aml, AML_EXT);
	put8(aml, AML_EXT_DEVICE);
	block = aml->size_bytes;
	put_name(aml, name);
	return block;
}

unsigned aml_method_open(struct aml *aml, const char *name, unsigned arguments)
{
	unsigned block;

	put8(aml, AML_METHOD);
	block = aml->size_bytes;
	put_name(aml, name);
	put8(aml, (uint8_t)arguments);
	return block;
}

void aml_return_argument(struct aml *aml, unsigned n)
{
	put8(aml, AML_RETURN);
	put8(aml, (uint8_t)(AML_ARGUMENT + n));
}

unsigned aml_package_open(struct aml *aml, uint8_t elements)
{
	unsigned block;

	put8(aml, AML_PACKAGE);
	block = aml->size_bytes;
	put8(aml, elements);
	return block;
}

/* PkgLength (20.2.4) counts itself: one byte up to 63, else 4 bits in the first and 8 in each of the
 * others. */
static unsigned package_length(uint32_t content_bytes, uint8_t out[4])
{
	unsigned size = content_bytes + 1 < BIT(6) ? 1 :
			content_bytes + 2 < BIT(12) ? 2 :
			content_bytes + 3 < BIT(20) ? 3 : 4;
	uint32_t length = content_bytes + size;

	if (size == 1) {
		out[0] = (uint8_t)length;
		return 1;
	}
	out[0] = (uint8_t)((size - 1) << 6 | (length & 0xf));
	length >>= 4;
	for (unsigned i = 1; i < size; i++, length >>= 8)
		out[i] = (uint8_t)length;
	return size;
}

void aml_close(struct aml *aml, unsigned block)
{
	uint32_t content;
	uint8_t length[4];
	unsigned n;

	if (aml->failed || block > aml->size_bytes) {
		aml->failed = true;
		return;
	}
	content = aml->size_bytes - block;
	n = package_length(content, length);
	if (n > aml->room_bytes - aml->size_bytes) {
		aml->failed = true;
		return;
	}
	memmove(aml->bytes + block + n, aml->bytes + block, content);
	memcpy(aml->bytes + block, length, n);
	aml->size_bytes += n;
}

unsigned aml_resources_open(struct aml *aml)
{
	unsigned block;

	put8(aml, AML_BUFFER);
	block = aml->size_bytes;
	put8(aml, AML_WORD);
	put_le(aml, 0, 2); /* the size: filled in when closed */
	return block;
}

void aml_resources_close(struct aml *aml, unsigned block)
{
	put8(aml, RES_END);
	put8(aml, 0); /* no checksum */
	if (!aml->failed)
		store_le16(aml->bytes + block + 1,
			(uint16_t)(aml->size_bytes - block - BUFFER_SIZE_BYTES));
	aml_close(aml, block);
}

void aml_res_io(struct aml *aml, uint16_t port, uint8_t ports)
{
	put8(aml, RES_IO);
	put8(aml, 1); /* decodes 16 bits */
	put_le(aml, port, 2);
	put_le(aml, port, 2);
	put8(aml, 1); /* alignment */
	put8(aml, ports);
}

void aml_res_irq(struct aml *aml, uint8_t irq)
{
	put8(aml, RES_IRQ);
	put_le(aml, BIT(irq & 15), 2);
}

void aml_res_memory32(struct aml *aml, uint32_t base, uint32_t size_bytes)
{
	put8(aml, RES_MEMORY32);
	put_le(aml, 9, 2);
	put8(aml, 1); /* writable */
	put_le(aml, base, 4);
	put_le(aml, size_bytes, 4);
}

void aml_res_gsi(struct aml *aml, uint32_t gsi)
{
	put8(aml, RES_EXT_IRQ);
	put_le(aml, 6, 2);
	put8(aml, 9); /* a consumer; level, active high, shared */
	put8(aml, 1); /* one interrupt */
	put_le(aml, gsi, 4);
}

/* Granularity 0, fixed range, translation 0. */
static void put_space(struct aml *aml, uint8_t tag, unsigned width, uint8_t type, uint8_t type_flags,
	uint64_t first, uint64_t last)
{
	put8(aml, tag);
	put_le(aml, 3 + 5 * width, 2);
	put8(aml, type);
	put8(aml, SPACE_FIXED);
	put8(aml, type_flags);
	put_le(aml, 0, width);
	put_le(aml, first, width);
	put_le(aml, last, width);
	put_le(aml, 0, width);
	put_le(aml, last - first + 1, width);
}

void aml_res_bus_range(struct aml *aml, uint16_t first, uint16_t last)
{
	put_space(aml, RES_WORD_SPACE, 2, SPACE_BUS, 0, first, last);
}

void aml_res_io_range(struct aml *aml, uint16_t first, uint16_t last)
{
	put_space(aml, RES_WORD_SPACE, 2, SPACE_IO, SPACE_IO_ENTIRE, first, last);
}

void aml_res_memory_range(struct aml *aml, uint64_t first, uint64_t last)
{
	put_space(aml, RES_QWORD_SPACE, 8, SPACE_MEMORY, SPACE_MEMORY_RW, first, last);
}
