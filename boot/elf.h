/*
 * Executable ELF files of both classes for x86: parsed and checked first, loaded afterwards.
 */
#ifndef LODGE_BOOT_ELF_H
#define LODGE_BOOT_ELF_H

#include "base/types.h"
#include "base/util.h"
#include "boot/file.h"
#include "boot/space.h"

struct error;

#define BOOT_ELF_SEGMENTS_MAX 64

struct boot_elf_segment {
	uint64_t offset, file_bytes; /* within the file: checked */
	gpa_t base;
	uint64_t size_bytes; /* at least file_bytes; base + size_bytes does not wrap */
	uint64_t vaddr;
};

struct boot_elf {
	const struct boot_image *image;
	bool is_64;
	gpa_t entry; /* physical, inside a segment */
	bool has_pvh;
	gpa_t pvh_entry; /* inside a segment */
	unsigned segment_count;
	struct boot_elf_segment segment[BOOT_ELF_SEGMENTS_MAX];
};

bool boot_elf_probe(const struct boot_image *image);

/* Errors: -ENOEXEC with the reason. */
MUST_CHECK int boot_elf_parse(
	const struct boot_image *image, struct boot_elf *ret_elf, struct error *err);

/* Take each segment's place, copy it and clear its tail. Errors: as boot_space_take(). */
MUST_CHECK int boot_elf_load(
	const struct boot_elf *elf, struct boot_space *space, struct error *err);

#endif
