/*
 * PVH: the x86/HVM direct boot ABI (Xen's docs/misc/pvh and public/arch-x86/hvm/start_info.h), version 1
 * of hvm_start_info with a memory map. The kernel says where to enter it by an ELF note.
 *
 * Entry: flat 32-bit mode without paging, EBX = start_info.
 */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "boot/entry.h"
#include "boot/layout.h"
#include "boot/loader.h"
#include "isa/x86/state.h"
#include "memory/memory.h"

#define START_INFO_MAGIC 0x336ec578u
#define START_INFO_BYTES 56
#define MODULE_BYTES	 32
#define MAP_ENTRY_BYTES	 24

static int write_modules(struct boot_loader *loader, gpa_t *ret_list)
{
	uint8_t list[BOOT_INITRDS_MAX * MODULE_BYTES] = {0};
	struct boot_module module[BOOT_INITRDS_MAX] = {0};
	unsigned count = loader->config->initrd_count;
	int r;

	r = boot_modules(loader, BOOT_HIGH_GPA, module);
	for (unsigned i = 0; !r && i < count; i++) {
		const char *args = loader->config->initrd[i].args;
		gpa_t text = 0;

		if (args)
			r = boot_record(loader, args, strlen(args) + 1, &text);
		store_le64(list + i * MODULE_BYTES, module[i].base);
		store_le64(list + i * MODULE_BYTES + 8, module[i].size_bytes);
		store_le64(list + i * MODULE_BYTES + 16, text);
	}
	return r ? r : boot_record(loader, list, count * MODULE_BYTES, ret_list);
}

static int write_map(struct boot_loader *loader, gpa_t *ret_map)
{
	uint8_t map[BOOT_MAP_MAX * MAP_ENTRY_BYTES] = {0};

	for (unsigned i = 0; i < loader->map.count; i++) {
		uint8_t *to = map + i * MAP_ENTRY_BYTES;

		store_le64(to, loader->map.entry[i].base);
		store_le64(to + 8, loader->map.entry[i].size_bytes);
		store_le32(to + 16, loader->map.entry[i].type);
	}
	return boot_record(loader, map, loader->map.count * MAP_ENTRY_BYTES, ret_map);
}

static int write_start_info(struct boot_loader *loader, gpa_t *ret_info)
{
	uint8_t info[START_INFO_BYTES] = {0};
	gpa_t modules = 0, map = 0;
	int r;

	r = boot_cmdline(loader, NULL, BOOT_CMDLINE_BYTES - 1);
	if (!r)
		r = write_modules(loader, &modules);
	if (!r)
		r = write_map(loader, &map);
	if (r < 0)
		return r;
	store_le32(info + 0, START_INFO_MAGIC);
	store_le32(info + 4, 1); /* version */
	store_le32(info + 12, loader->config->initrd_count);
	store_le64(info + 16, loader->config->initrd_count ? modules : 0);
	store_le64(info + 24, BOOT_CMDLINE_GPA);
	store_le64(info + 32, loader->config->rsdp);
	store_le64(info + 40, map);
	store_le32(info + 48, loader->map.count);
	return boot_record(loader, info, sizeof(info), ret_info);
}

int boot_pvh_load(struct boot_loader *loader, const struct boot_elf *elf)
{
	gpa_t info = 0;
	int r;

	if (!elf->has_pvh)
		return error_set(loader->err, ENOEXEC,
			"%s has no PVH note: boot it by another protocol (linux, elf)",
			elf->image->name);
	if (elf->pvh_entry >= BOOT_HOLE_END_GPA)
		return error_set(loader->err, ENOEXEC, "%s: its PVH entry point lies above 4 GiB",
			elf->image->name);
	r = write_start_info(loader, &info);
	if (r < 0)
		return r;
	r = boot_entry_tables(loader->memory, false);
	if (r < 0)
		return error_set(loader->err, -r, "cannot write the GDT to guest memory");
	boot_entry_flat32(loader->state, elf->pvh_entry);
	loader->state->reg[X86_RBX] = info;
	return 0;
}
