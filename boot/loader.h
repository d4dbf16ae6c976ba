/*
 * What the loaders of this room share while one boot goes on. Not for other rooms: see boot.h.
 */
#ifndef LODGE_BOOT_LOADER_H
#define LODGE_BOOT_LOADER_H

#include "boot/boot.h"
#include "boot/elf.h"

struct boot_loader {
	struct guest_memory *memory;
	const struct boot_config *config;
	struct x86_state *state;
	struct error *err;
	struct boot_space space;
	struct boot_map map;
	gpa_t records; /* the next free byte of the boot records' area */
};

/* One loaded module, or the initramfs. */
struct boot_module {
	gpa_t base;
	uint64_t size_bytes; /* 0 = there is none */
};

/* Copy to the boot records' area, 8-byte aligned. Errors: -ENOSPC. */
MUST_CHECK int boot_record(
	struct boot_loader *loader, const void *bytes, uint64_t size_bytes, gpa_t *ret_gpa);

/* The text, or nothing (NULL), behind a first word (or NULL). The caller's to free; NULL: no memory. */
char *boot_line(const char *name, const char *text);

/* Write the command line to its place, behind a first word (or NULL); max_bytes is without the final zero.
 * Errors: -E2BIG, -ENOMEM. */
MUST_CHECK int boot_cmdline(struct boot_loader *loader, const char *name, uint64_t max_bytes);

/* Load all initrds as one piece, as high below `limit` as it goes. */
MUST_CHECK int boot_initramfs(
	struct boot_loader *loader, gpa_t limit, struct boot_module *ret_module);

/* Load each initrd by itself, from `min` upwards. ret_modules has BOOT_INITRDS_MAX entries. */
MUST_CHECK int boot_modules(struct boot_loader *loader, gpa_t min, struct boot_module *ret_modules);

/* bzimage.c */
bool boot_bzimage_probe(const struct boot_image *image);
MUST_CHECK int boot_bzimage_load(struct boot_loader *loader, const struct boot_image *image);

/* linux.c: the zero page. `header` is the setup header's bytes from 0x1f1 on, or NULL for an ELF that
 * came without one. */
struct linux_header {
	const uint8_t *bytes;
	unsigned size_bytes;
	uint32_t initrd_max; /* the last byte an initrd may occupy */
	uint32_t cmdline_max_bytes;
};

MUST_CHECK int boot_linux_prepare(struct boot_loader *loader, const struct linux_header *header);
/* Enter an ELF that elf_load() loaded. */
MUST_CHECK int boot_linux_elf(struct boot_loader *loader, const struct boot_elf *elf,
	const struct linux_header *header);

/* pvh.c */
MUST_CHECK int boot_pvh_load(struct boot_loader *loader, const struct boot_elf *elf);

/* multiboot.c */
bool boot_multiboot_probe(const struct boot_image *image);
MUST_CHECK int boot_multiboot_load(struct boot_loader *loader, const struct boot_image *image);

#endif
