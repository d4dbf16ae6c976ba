/*
 * Linux's zero page (struct boot_params; Documentation/arch/x86/zero-page.rst and boot.rst) and the
 * entry of an unpacked kernel: startup_64 in long mode or startup_32 in flat mode, with the zero page in
 * RSI, which is where the kernel's own decompressor would have jumped.
 *
 * No screen is announced: orig_video_isVGA stays 0.
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

#define ZP_BYTES	 4096
#define ZP_RSDP		 0x070
#define ZP_ALT_MEM_K	 0x1e0
#define ZP_E820_ENTRIES	 0x1e8
#define ZP_HEADER	 0x1f1
#define ZP_VID_MODE	 0x1fa
#define ZP_BOOT_FLAG	 0x1fe
#define ZP_MAGIC	 0x202
#define ZP_VERSION	 0x206
#define ZP_LOADER_TYPE	 0x210
#define ZP_LOADFLAGS	 0x211
#define ZP_RAMDISK_IMAGE 0x218
#define ZP_RAMDISK_SIZE	 0x21c
#define ZP_EXT_LOADER	 0x226 /* version, type */
#define ZP_CMDLINE_PTR	 0x228
#define ZP_ALIGNMENT	 0x230
#define ZP_SETUP_DATA	 0x250
#define ZP_E820_TABLE	 0x2d0

#define LOADER_UNDEFINED   0xff
#define VID_MODE_NORMAL	   0xffff
#define LOADFLAG_HIGH	   0x01
#define LOADFLAG_KASLR	   0x02 /* only the kernel's decompressor may say so */
#define E820_ENTRY_BYTES   20

/* What an ELF without a setup header is taken for. */
static const struct linux_header plain_header = {
	.initrd_max = 0x7fffffff,
	.cmdline_max_bytes = 2047,
};

static void fill_header(uint8_t *zp, const struct linux_header *header)
{
	if (header->bytes) {
		memcpy(zp + ZP_HEADER, header->bytes, header->size_bytes);
		store_le64(zp + ZP_SETUP_DATA, 0);
		zp[ZP_LOADFLAGS] &= (uint8_t)~LOADFLAG_KASLR;
	} else {
		store_le16(zp + ZP_BOOT_FLAG, 0xaa55);
		memcpy(zp + ZP_MAGIC, "HdrS", 4);
		store_le16(zp + ZP_VERSION, 0x020c);
		zp[ZP_LOADFLAGS] = LOADFLAG_HIGH;
		store_le32(zp + ZP_ALIGNMENT, (uint32_t)BOOT_KERNEL_GPA);
	}
	store_le16(zp + ZP_VID_MODE, VID_MODE_NORMAL);
	zp[ZP_LOADER_TYPE] = LOADER_UNDEFINED;
	store_le16(zp + ZP_EXT_LOADER, 0);
}

static void fill_map(uint8_t *zp, const struct boot_map *map)
{
	_Static_assert(BOOT_MAP_MAX <= 128, "the zero page has room for 128 entries");

	for (unsigned i = 0; i < map->count; i++) {
		uint8_t *to = zp + ZP_E820_TABLE + i * E820_ENTRY_BYTES;

		store_le64(to, map->entry[i].base);
		store_le64(to + 8, map->entry[i].size_bytes);
		store_le32(to + 16, map->entry[i].type);
	}
	zp[ZP_E820_ENTRIES] = (uint8_t)map->count;
}

int boot_linux_prepare(struct boot_loader *loader, const struct linux_header *header)
{
	struct boot_module initramfs = {0};
	uint8_t zp[ZP_BYTES] = {0};
	int r;

	if (!header)
		header = &plain_header;
	r = boot_cmdline(loader, NULL, header->cmdline_max_bytes);
	if (!r)
		r = boot_initramfs(loader, (gpa_t)header->initrd_max + 1, &initramfs);
	if (r < 0)
		return r;
	fill_header(zp, header);
	fill_map(zp, &loader->map);
	store_le64(zp + ZP_RSDP, loader->config->rsdp);
	store_le32(zp + ZP_RAMDISK_IMAGE, (uint32_t)initramfs.base);
	store_le32(zp + ZP_RAMDISK_SIZE, (uint32_t)initramfs.size_bytes);
	store_le32(zp + ZP_CMDLINE_PTR, (uint32_t)BOOT_CMDLINE_GPA);
	/* For kernels that distrust the map: KiB from 1 MiB on, below the hole. */
	store_le32(zp + ZP_ALT_MEM_K,
		(uint32_t)((boot_ram_low_bytes(memory_ram_bytes(loader->memory)) - MIB(1)) >> 10));
	r = memory_write(loader->memory, BOOT_ZERO_PAGE_GPA, zp, sizeof(zp));
	if (r < 0)
		return error_set(loader->err, -r, "cannot write the boot parameters to guest memory");
	return 0;
}

int boot_linux_elf(struct boot_loader *loader, const struct boot_elf *elf,
	const struct linux_header *header)
{
	int r;

	if (elf->entry >= BOOT_HOLE_END_GPA)
		return error_set(loader->err, ENOEXEC,
			"%s: its entry point lies above 4 GiB: link it below", elf->image->name);
	r = boot_linux_prepare(loader, header);
	if (r < 0)
		return r;
	r = boot_entry_tables(loader->memory, elf->is_64);
	if (r < 0)
		return error_set(loader->err, -r, "cannot write the page tables to guest memory");
	if (elf->is_64)
		boot_entry_long64(loader->state, elf->entry);
	else
		boot_entry_flat32(loader->state, elf->entry);
	loader->state->reg[X86_RSI] = BOOT_ZERO_PAGE_GPA;
	return 0;
}
