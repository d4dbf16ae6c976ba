/*
 * Multiboot 1 (the Multiboot Specification 0.6.96): header search (3.1), machine state (3.2), boot
 * information (3.3). Entry: flat 32-bit mode, EAX = 0x2badb002, EBX = the information.
 *
 * Loaded by the header's address fields if it has them, else as an ELF. Left out on purpose: drives,
 * config table, APM, symbols and video: a header's wish for a video mode (flag 2) goes unanswered, as
 * the specification allows.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "boot/entry.h"
#include "boot/layout.h"
#include "boot/loader.h"
#include "isa/x86/state.h"
#include "memory/memory.h"

#define SEARCH_BYTES	8192
#define HEADER_MAGIC	0x1badb002u
#define LOADER_MAGIC	0x2badb002u
#define HEADER_BYTES	12
#define HEADER_ADDRESSES_BYTES 32

#define FLAG_ADDRESSES	   BIT(16)
#define FLAGS_MUST_KNOW	   0xffffu
#define FLAGS_KNOWN	   0x0007u /* aligned modules, memory information, video mode */

#define INFO_BYTES	   116
#define INFO_MEMORY	   BIT(0)
#define INFO_CMDLINE	   BIT(2)
#define INFO_MODULES	   BIT(3)
#define INFO_MAP	   BIT(6)
#define INFO_LOADER_NAME   BIT(9)
#define MODULE_BYTES	   16
#define MAP_ENTRY_BYTES	   24 /* with the size field, which does not count itself */

static bool header_find(const struct boot_image *image, uint64_t *ret_offset)
{
	uint64_t end = MIN(image->size_bytes, (uint64_t)SEARCH_BYTES);

	for (uint64_t at = 0; at + HEADER_BYTES <= end; at += 4) {
		const uint8_t *h = image->bytes + at;

		if (load_le32(h) == HEADER_MAGIC &&
			load_le32(h) + load_le32(h + 4) + load_le32(h + 8) == 0) {
			*ret_offset = at;
			return true;
		}
	}
	return false;
}

bool boot_multiboot_probe(const struct boot_image *image)
{
	uint64_t offset;

	return header_find(image, &offset);
}

static int bad(struct error *err, const struct boot_image *image, const char *why)
{
	return error_set(err, ENOEXEC, "%s: damaged or unsuitable multiboot kernel: %s", image->name,
		why);
}

/* Where the address fields put the file, section 3.1.3. */
struct flat_load {
	uint64_t offset, file_bytes;
	gpa_t base;
	uint64_t size_bytes;
	gpa_t entry;
};

static int flat_read(const struct boot_image *image, uint64_t header_offset,
	struct flat_load *ret_load, struct error *err)
{
	const uint8_t *h = image->bytes + header_offset;
	uint32_t header_addr, load_addr, load_end, bss_end;

	if (image->size_bytes - header_offset < HEADER_ADDRESSES_BYTES)
		return bad(err, image, "it ends within its header");
	header_addr = load_le32(h + 12);
	load_addr = load_le32(h + 16);
	load_end = load_le32(h + 20);
	bss_end = load_le32(h + 24);
	if (load_addr > header_addr || header_addr - load_addr > header_offset)
		return bad(err, image, "its load address does not fit its header's place");
	ret_load->offset = header_offset - (header_addr - load_addr);
	ret_load->file_bytes = image->size_bytes - ret_load->offset;
	if (load_end) {
		if (load_end <= load_addr || load_end - load_addr > ret_load->file_bytes)
			return bad(err, image, "its load end lies outside the file (cut short?)");
		ret_load->file_bytes = load_end - load_addr;
	}
	ret_load->base = load_addr;
	ret_load->size_bytes = ret_load->file_bytes;
	if (bss_end) {
		if (bss_end < load_addr || bss_end - load_addr < ret_load->file_bytes)
			return bad(err, image, "its BSS ends before its data does");
		ret_load->size_bytes = bss_end - load_addr;
	}
	ret_load->entry = load_le32(h + 28);
	if (ret_load->entry < ret_load->base ||
		ret_load->entry - ret_load->base >= ret_load->size_bytes)
		return bad(err, image, "its entry point is not in what it loads");
	return 0;
}

static int load_flat(struct boot_loader *loader, const struct boot_image *image,
	uint64_t header_offset, gpa_t *ret_entry)
{
	struct flat_load load = {0};
	int r;

	r = flat_read(image, header_offset, &load, loader->err);
	if (!r)
		r = boot_space_take(&loader->space, load.base, load.size_bytes, "the kernel",
			image->name, loader->err);
	if (r < 0)
		return r;
	r = memory_write(loader->memory, load.base, image->bytes + load.offset, load.file_bytes);
	if (!r)
		r = boot_zero(loader->memory, load.base + load.file_bytes,
			load.size_bytes - load.file_bytes);
	if (r < 0)
		return error_set(loader->err, -r, "%s: cannot write it to guest memory", image->name);
	*ret_entry = load.entry;
	return 0;
}

static int load_as_elf(
	struct boot_loader *loader, const struct boot_image *image, gpa_t *ret_entry)
{
	AUTO_FREE struct boot_elf *elf = malloc(sizeof(*elf));
	int r;

	if (!elf)
		return error_set(loader->err, ENOMEM, "no memory on the host");
	r = boot_elf_parse(image, elf, loader->err);
	if (!r)
		r = boot_elf_load(elf, &loader->space, loader->err);
	if (r < 0)
		return r;
	if (elf->entry >= BOOT_HOLE_END_GPA)
		return bad(loader->err, image, "its entry point lies above 4 GiB");
	*ret_entry = elf->entry;
	return 0;
}

/* The first word of every command line: loaders have always put the file's name there, and Xen for one
 * drops that word unread. */
static const char *file_word(const struct boot_file *file)
{
	const char *slash = file->path ? strrchr(file->path, '/') : NULL;

	return slash ? slash + 1 : file->path ? file->path : "module";
}

static int write_module_line(struct boot_loader *loader, const struct boot_file *file, gpa_t *ret_text)
{
	AUTO_FREE char *line = boot_line(file_word(file), file->args);

	if (!line)
		return error_set(loader->err, ENOMEM, "no memory on the host");
	return boot_record(loader, line, strlen(line) + 1, ret_text);
}

static int write_modules(struct boot_loader *loader, gpa_t *ret_list)
{
	uint8_t list[BOOT_INITRDS_MAX * MODULE_BYTES] = {0};
	struct boot_module module[BOOT_INITRDS_MAX] = {0};
	unsigned count = loader->config->initrd_count;
	int r;

	/* Low, behind the kernel: some kernels map only their first megabytes. */
	r = boot_modules(loader, MAX(boot_space_end(&loader->space), BOOT_HIGH_GPA), module);
	for (unsigned i = 0; !r && i < count; i++) {
		uint8_t *to = list + i * MODULE_BYTES;
		gpa_t text = 0;

		r = write_module_line(loader, &loader->config->initrd[i], &text);
		store_le32(to, (uint32_t)module[i].base);
		store_le32(to + 4, (uint32_t)(module[i].base + module[i].size_bytes));
		store_le32(to + 8, (uint32_t)text);
	}
	return r ? r : boot_record(loader, list, count * MODULE_BYTES, ret_list);
}

static int write_map(struct boot_loader *loader, gpa_t *ret_map)
{
	uint8_t map[BOOT_MAP_MAX * MAP_ENTRY_BYTES] = {0};

	for (unsigned i = 0; i < loader->map.count; i++) {
		uint8_t *to = map + i * MAP_ENTRY_BYTES;

		store_le32(to, MAP_ENTRY_BYTES - 4);
		store_le64(to + 4, loader->map.entry[i].base);
		store_le64(to + 12, loader->map.entry[i].size_bytes);
		store_le32(to + 20, loader->map.entry[i].type);
	}
	return boot_record(loader, map, loader->map.count * MAP_ENTRY_BYTES, ret_map);
}

static int write_info(struct boot_loader *loader, gpa_t *ret_info)
{
	static const char loader_name[] = "lodge";
	uint64_t low_bytes = boot_ram_low_bytes(memory_ram_bytes(loader->memory));
	gpa_t modules = 0, map = 0, name = 0;
	uint8_t info[INFO_BYTES] = {0};
	int r;

	r = boot_cmdline(loader, file_word(&loader->config->kernel), BOOT_CMDLINE_BYTES - 1);
	if (!r)
		r = write_modules(loader, &modules);
	if (!r)
		r = write_map(loader, &map);
	if (!r)
		r = boot_record(loader, loader_name, sizeof(loader_name), &name);
	if (r < 0)
		return r;
	store_le32(info, INFO_MEMORY | INFO_CMDLINE | INFO_MODULES | INFO_MAP | INFO_LOADER_NAME);
	store_le32(info + 4, (uint32_t)(BOOT_EBDA_GPA >> 10));
	store_le32(info + 8, (uint32_t)((low_bytes - BOOT_HIGH_GPA) >> 10));
	store_le32(info + 16, (uint32_t)BOOT_CMDLINE_GPA);
	store_le32(info + 20, loader->config->initrd_count);
	store_le32(info + 24, (uint32_t)modules);
	store_le32(info + 44, loader->map.count * MAP_ENTRY_BYTES);
	store_le32(info + 48, (uint32_t)map);
	store_le32(info + 64, (uint32_t)name);
	return boot_record(loader, info, sizeof(info), ret_info);
}

int boot_multiboot_load(struct boot_loader *loader, const struct boot_image *image)
{
	uint64_t offset = 0;
	uint32_t flags;
	gpa_t entry = 0, info = 0;
	int r;

	if (!header_find(image, &offset))
		return error_set(loader->err, ENOEXEC,
			"%s has no multiboot header in its first 8 KiB: boot it by another protocol",
			image->name);
	flags = load_le32(image->bytes + offset + 4);
	if (flags & FLAGS_MUST_KNOW & ~FLAGS_KNOWN)
		return bad(loader->err, image, "it asks for what multiboot 1 does not have");
	r = flags & FLAG_ADDRESSES ? load_flat(loader, image, offset, &entry)
				   : load_as_elf(loader, image, &entry);
	if (!r)
		r = write_info(loader, &info);
	if (r < 0)
		return r;
	r = boot_entry_tables(loader->memory, false);
	if (r < 0)
		return error_set(loader->err, -r, "cannot write the GDT to guest memory");
	boot_entry_flat32(loader->state, entry);
	loader->state->reg[X86_RAX] = LOADER_MAGIC;
	loader->state->reg[X86_RBX] = info;
	return 0;
}
