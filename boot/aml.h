/*
 * A small builder of ACPI machine language: names, packages, devices, methods, resource templates.
 *
 * Bytes go into the caller's buffer. When it is full, or a nesting is wrong, `failed` is set and stays:
 * look at it once, at the end. Blocks are opened and closed in pairs; the length before a block is
 * inserted when it is closed.
 *
 *	struct aml aml;
 *	unsigned device;
 *
 *	aml_init(&aml, buffer, sizeof(buffer));
 *	device = aml_device_open(&aml, "COM1");
 *	aml_name(&aml, "_UID");
 *	aml_integer(&aml, 1);
 *	aml_close(&aml, device);
 */
#ifndef LODGE_BOOT_AML_H
#define LODGE_BOOT_AML_H

#include "base/types.h"

struct aml {
	uint8_t *bytes;
	uint32_t size_bytes, room_bytes;
	bool failed;
};

void aml_init(struct aml *aml, uint8_t *bytes, uint32_t room_bytes);

/* A definition; the object that is written next is its value. `name` is up to four characters, with a
 * leading backslash if it belongs to the root. */
void aml_name(struct aml *aml, const char *name);
void aml_integer(struct aml *aml, uint64_t value);
void aml_string(struct aml *aml, const char *text);
/* A compressed EISA identifier such as "PNP0501". */
void aml_eisaid(struct aml *aml, const char *id);

/* In a method: its result is its n-th argument. */
void aml_return_argument(struct aml *aml, unsigned n);

/* Blocks: each returns what aml_close() wants. */
unsigned aml_scope_open(struct aml *aml, const char *name);
unsigned aml_device_open(struct aml *aml, const char *name);
unsigned aml_method_open(struct aml *aml, const char *name, unsigned arguments);
unsigned aml_package_open(struct aml *aml, uint8_t elements);
void aml_close(struct aml *aml, unsigned block);

/* A resource template: a buffer with descriptors (ACPI 6.4, section 6.4), closed by aml_resources_close(),
 * which writes the end tag. */
unsigned aml_resources_open(struct aml *aml);
void aml_resources_close(struct aml *aml, unsigned block);

void aml_res_io(struct aml *aml, uint16_t port, uint8_t ports);
void aml_res_irq(struct aml *aml, uint8_t irq);			 /* ISA: edge, active high */
void aml_res_memory32(struct aml *aml, uint32_t base, uint32_t size_bytes); /* read and write */
void aml_res_gsi(struct aml *aml, uint32_t gsi);		 /* level, active high, exclusive */

/* Address spaces that a bridge passes on. last is included. */
void aml_res_bus_range(struct aml *aml, uint16_t first, uint16_t last);
void aml_res_io_range(struct aml *aml, uint16_t first, uint16_t last);
void aml_res_memory_range(struct aml *aml, uint64_t first, uint64_t last);

#endif
