/*
 * ELF loading: System V ABI, chapter 4 (ELF header) and 5 (program header, notes), i386 and x86-64
 * supplements; Xen's note for the physical entry point (Xen public headers, elfnote.h:
 * XEN_ELFNOTE_PHYS32_ENTRY).
 *
 * Segments go to their physical addresses. Left out on purpose: section headers, relocation, dynamic
 * linking, more than 64 program headers.
 *
 * Invariant: boot_elf_parse() accepts only offsets that lie within the file.
 */
#include "boot/elf.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "memory/memory.h"

#define EHDR32_BYTES 52
#define EHDR64_BYTES 64
#define PHDR32_BYTES 32
#define PHDR64_BYTES 56

#define ET_EXEC	  2
#define ET_DYN	  3
#define EM_386	  3
#define EM_X86_64 62
#define PT_LOAD	  1
#define PT_NOTE	  4

#define XEN_ELFNOTE_PHYS32_ENTRY 18

struct phdr {
	uint32_t type;
	uint64_t offset, vaddr, paddr, file_bytes, size_bytes;
};

bool boot_elf_probe(const struct boot_image *image)
{
	return image->size_bytes >= EHDR32_BYTES && !memcmp(image->bytes, "\177ELF", 4);
}

static int elf_bad(struct error *err, const struct boot_image *image, const char *why)
{
	return error_set(err, ENOEXEC, "%s: damaged or unsuitable ELF file: %s", image->name, why);
}

static bool file_has(const struct boot_image *image, uint64_t offset, uint64_t size_bytes)
{
	return offset <= image->size_bytes && size_bytes <= image->size_bytes - offset;
}

static struct phdr phdr_read(const uint8_t *p, bool is_64)
{
	if (is_64)
		return (struct phdr){.type = load_le32(p),
			.offset = load_le64(p + 8),
			.vaddr = load_le64(p + 16),
			.paddr = load_le64(p + 24),
			.file_bytes = load_le64(p + 32),
			.size_bytes = load_le64(p + 40)};
	return (struct phdr){.type = load_le32(p),
		.offset = load_le32(p + 4),
		.vaddr = load_le32(p + 8),
		.paddr = load_le32(p + 12),
		.file_bytes = load_le32(p + 16),
		.size_bytes = load_le32(p + 20)};
}

static int check_ident(const struct boot_image *image, bool *ret_is_64, struct error *err)
{
	const uint8_t *h = image->bytes;
	uint16_t type, machine;

	if (!boot_elf_probe(image) || (h[4] != 1 && h[4] != 2))
		return elf_bad(err, image, "neither 32-bit nor 64-bit");
	*ret_is_64 = h[4] == 2;
	if (*ret_is_64 && image->size_bytes < EHDR64_BYTES)
		return elf_bad(err, image, "it ends within its header");
	if (h[5] != 1)
		return elf_bad(err, image, "big-endian, so not for x86: get the amd64 or i386 one");
	type = load_le16(h + 16);
	machine = load_le16(h + 18);
	if (machine != (*ret_is_64 ? EM_X86_64 : EM_386) && machine != EM_X86_64)
		return elf_bad(err, image, "not for x86: get the amd64 or i386 one");
	if (type != ET_EXEC && type != ET_DYN)
		return elf_bad(err, image, "not an executable (an object file or a module?)");
	return 0;
}

static int add_segment(struct boot_elf *elf, const struct phdr *ph, struct error *err)
{
	const struct boot_image *image = elf->image;

	if (!ph->size_bytes)
		return 0;
	if (ph->file_bytes > ph->size_bytes)
		return elf_bad(err, image, "a segment has more bytes in the file than in memory");
	if (!file_has(image, ph->offset, ph->file_bytes))
		return elf_bad(err, image, "a segment reaches past the file's end (cut short?)");
	if (ph->size_bytes > UINT64_MAX - ph->paddr)
		return elf_bad(err, image, "a segment reaches past the address space");
	elf->segment[elf->segment_count++] = (struct boot_elf_segment){
		.offset = ph->offset,
		.file_bytes = ph->file_bytes,
		.base = ph->paddr,
		.size_bytes = ph->size_bytes,
		.vaddr = ph->vaddr,
	};
	return 0;
}

/* Notes are aligned to 4 bytes, also in 64-bit files as kernels build them. */
static int read_notes(struct boot_elf *elf, const struct phdr *ph, struct error *err)
{
	uint64_t at = ph->offset, left = ph->file_bytes;

	if (!file_has(elf->image, at, left))
		return elf_bad(err, elf->image, "its notes reach past the file's end (cut short?)");
	while (left >= 12) {
		const uint8_t *note = elf->image->bytes + at;
		uint64_t name_bytes = ALIGN_UP((uint64_t)load_le32(note), 4);
		uint64_t desc_bytes = load_le32(note + 4);
		uint64_t whole = 12 + name_bytes + ALIGN_UP(desc_bytes, 4);

		if (12 + name_bytes + desc_bytes > left)
			return elf_bad(err, elf->image, "a note is longer than its segment");
		if (load_le32(note + 8) == XEN_ELFNOTE_PHYS32_ENTRY && name_bytes == 4 &&
			!memcmp(note + 12, "Xen", 4) && desc_bytes >= 4) {
			elf->has_pvh = true;
			elf->pvh_entry = desc_bytes >= 8 ? load_le64(note + 16)
							 : load_le32(note + 16);
		}
		if (whole >= left)
			break;
		at += whole;
		left -= whole;
	}
	return 0;
}

static bool entry_is_loaded(const struct boot_elf *elf, gpa_t entry)
{
	for (unsigned i = 0; i < elf->segment_count; i++) {
		const struct boot_elf_segment *seg = &elf->segment[i];

		if (entry >= seg->base && entry - seg->base < seg->size_bytes)
			return true;
	}
	return false;
}

/* e_entry is physical in Linux; a kernel linked high may name its virtual address. */
static bool entry_find(struct boot_elf *elf, uint64_t e_entry)
{
	elf->entry = e_entry;
	if (entry_is_loaded(elf, e_entry))
		return true;
	for (unsigned i = 0; i < elf->segment_count; i++) {
		const struct boot_elf_segment *seg = &elf->segment[i];

		if (e_entry < seg->vaddr || e_entry - seg->vaddr >= seg->size_bytes)
			continue;
		elf->entry = seg->base + (e_entry - seg->vaddr);
		return true;
	}
	return false;
}

static int read_phdrs(struct boot_elf *elf, uint64_t phoff, unsigned count, unsigned entry_bytes,
	struct error *err)
{
	if (count > BOOT_ELF_SEGMENTS_MAX)
		return elf_bad(err, elf->image, "more than 64 program headers");
	if (!file_has(elf->image, phoff, (uint64_t)count * entry_bytes))
		return elf_bad(err, elf->image,
			"its program headers reach past the file's end (cut short?)");
	for (unsigned i = 0; i < count; i++) {
		struct phdr ph = phdr_read(
			elf->image->bytes + phoff + (uint64_t)i * entry_bytes, elf->is_64);
		int r = 0;

		if (ph.type == PT_LOAD)
			r = add_segment(elf, &ph, err);
		else if (ph.type == PT_NOTE)
			r = read_notes(elf, &ph, err);
		if (r < 0)
			return r;
	}
	return 0;
}

int boot_elf_parse(const struct boot_image *image, struct boot_elf *ret_elf, struct error *err)
{
	const uint8_t *h = image->bytes;
	unsigned phentsize, least;
	uint64_t phoff;
	bool is_64 = false;
	int r;

	r = check_ident(image, &is_64, err);
	if (r < 0)
		return r;
	*ret_elf = (struct boot_elf){.image = image, .is_64 = is_64};
	phoff = is_64 ? load_le64(h + 32) : load_le32(h + 28);
	phentsize = load_le16(h + (is_64 ? 54 : 42));
	least = is_64 ? PHDR64_BYTES : PHDR32_BYTES;
	if (phentsize < least)
		return elf_bad(err, image, "program headers of an unknown size");
	r = read_phdrs(ret_elf, phoff, load_le16(h + (is_64 ? 56 : 44)), phentsize, err);
	if (r < 0)
		return r;
	if (!ret_elf->segment_count)
		return elf_bad(err, image, "nothing to load");
	if (!entry_find(ret_elf, is_64 ? load_le64(h + 24) : load_le32(h + 24)))
		return elf_bad(err, image, "its entry point is in none of its segments");
	if (ret_elf->has_pvh && !entry_is_loaded(ret_elf, ret_elf->pvh_entry))
		return elf_bad(err, image, "its PVH entry point is in none of its segments");
	return 0;
}

int boot_elf_load(const struct boot_elf *elf, struct boot_space *space, struct error *err)
{
	const char *name = elf->image->name;

	for (unsigned i = 0; i < elf->segment_count; i++) {
		const struct boot_elf_segment *seg = &elf->segment[i];
		int r = boot_space_take(
			space, seg->base, seg->size_bytes, "a part of the kernel", name, err);

		if (r < 0)
			return r;
		r = memory_write(space->memory, seg->base, elf->image->bytes + seg->offset,
			seg->file_bytes);
		if (!r)
			r = boot_zero(space->memory, seg->base + seg->file_bytes,
				seg->size_bytes - seg->file_bytes);
		if (r < 0)
			return error_set(err, -r, "%s: cannot write its segment to guest memory", name);
	}
	return 0;
}
