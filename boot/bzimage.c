/*
 * Linux kernels as distributions ship them: the x86 boot protocol (Documentation/arch/x86/boot.rst in
 * the kernel's source), versions 2.10 and up. Field names are that document's.
 *
 * Two ways in: unpacked here and entered as the ELF that was inside, or, if the payload's format is
 * unknown or the caller says so, packed, through the 64-bit entry (XLF_KERNEL_64) or the 32-bit one.
 *
 * Left out on purpose: the real-mode entry (setup's code never runs), zImages, kernels older than 2.10
 * (Linux 2.6.31), loading above 4 GiB, EFI handover, setup_data.
 *
 * Invariant: header_read() has checked every offset the rest uses.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"
#include "boot/entry.h"
#include "boot/layout.h"
#include "boot/loader.h"
#include "boot/unpack.h"
#include "isa/x86/state.h"
#include "memory/memory.h"

#define HDR_SETUP_SECTS	    0x1f1
#define HDR_SYSSIZE	    0x1f4 /* of what follows the setup code, in 16 bytes */
#define HDR_BOOT_FLAG	    0x1fe
#define HDR_JUMP	    0x200
#define HDR_MAGIC	    0x202
#define HDR_VERSION	    0x206
#define HDR_LOADFLAGS	    0x211
#define HDR_INITRD_ADDR_MAX 0x22c
#define HDR_ALIGNMENT	    0x230
#define HDR_RELOCATABLE	    0x234
#define HDR_XLOADFLAGS	    0x236
#define HDR_CMDLINE_SIZE    0x238
#define HDR_PAYLOAD_OFFSET  0x248
#define HDR_PAYLOAD_LENGTH  0x24c
#define HDR_PREF_ADDRESS    0x258
#define HDR_INIT_SIZE	    0x260
#define HDR_LEAST_END	    0x264 /* of version 2.10 */
#define HDR_MOST_END	    0x290 /* where boot_params continues with other things */

#define LOADED_HIGH   0x01
#define XLF_KERNEL_64 0x0001

#define VERSION_LEAST	0x020a
#define VERSION_XLOAD	0x020c
#define ENTRY_64_OFFSET 0x200
#define INIT_SIZE_MAX	MIB(1024) /* ten times that of any stock kernel */

struct bzimage {
	const struct boot_image *image;
	struct linux_header header;
	uint64_t kernel_offset, kernel_bytes; /* the protected-mode part within the file */
	const uint8_t *payload;
	uint32_t payload_bytes;
	bool is_64, relocatable;
	gpa_t pref_address;
	uint32_t init_size, alignment;
};

bool boot_bzimage_probe(const struct boot_image *image)
{
	return image->size_bytes >= HDR_VERSION + 2 &&
	       load_le16(image->bytes + HDR_BOOT_FLAG) == 0xaa55 &&
	       !memcmp(image->bytes + HDR_MAGIC, "HdrS", 4);
}

static int bad(struct error *err, const struct boot_image *image, const char *why)
{
	return error_set(err, ENOEXEC, "%s: damaged or unsuitable Linux kernel: %s", image->name, why);
}

/* Whether this is a bzImage of a version and shape that can be booted. */
static int header_check_kind(const struct boot_image *image, struct error *err)
{
	const uint8_t *b = image->bytes;
	unsigned version;

	if (!boot_bzimage_probe(image))
		return error_set(err, ENOEXEC, "%s is not a Linux bzImage (no HdrS signature)",
			image->name);
	version = load_le16(b + HDR_VERSION);
	if (version < VERSION_LEAST)
		return error_set(err, ENOEXEC,
			"%s speaks boot protocol %u.%02u, and 2.10 is needed: take Linux 2.6.31 or "
			"newer", image->name, version >> 8, version & 0xff);
	if (image->size_bytes < HDR_LEAST_END)
		return bad(err, image, "it ends within its header (cut short?)");
	if (!(b[HDR_LOADFLAGS] & LOADED_HIGH))
		return bad(err, image, "a zImage; only bzImages can be booted");
	return 0;
}

static int header_check_sizes(struct bzimage *bz, struct error *err)
{
	const uint8_t *b = bz->image->bytes;
	uint64_t setup_sects = b[HDR_SETUP_SECTS] ? b[HDR_SETUP_SECTS] : 4;
	uint64_t payload_offset = load_le32(b + HDR_PAYLOAD_OFFSET);

	bz->kernel_offset = (setup_sects + 1) * 512;
	if (bz->kernel_offset < HDR_LEAST_END || bz->image->size_bytes <= bz->kernel_offset)
		return bad(err, bz->image, "it ends within its setup code (cut short?)");
	bz->kernel_bytes = bz->image->size_bytes - bz->kernel_offset;
	bz->payload_bytes = load_le32(b + HDR_PAYLOAD_LENGTH);
	/* A signature may follow what syssize counts, whose last 16 bytes need not be full (memtest86+). */
	if (16 * (uint64_t)load_le32(b + HDR_SYSSIZE) > ALIGN_UP(bz->kernel_bytes, 16ull) ||
		payload_offset > bz->kernel_bytes ||
		bz->payload_bytes > bz->kernel_bytes - payload_offset)
		return bad(err, bz->image, "it is shorter than its header says (cut short?)");
	bz->payload = b + bz->kernel_offset + payload_offset;
	bz->header.size_bytes = MIN(HDR_MAGIC + b[HDR_JUMP + 1], HDR_MOST_END) - HDR_SETUP_SECTS;
	if (HDR_SETUP_SECTS + bz->header.size_bytes < HDR_LEAST_END ||
		HDR_SETUP_SECTS + bz->header.size_bytes > bz->kernel_offset)
		return bad(err, bz->image, "the header's length is wrong");
	return 0;
}

static int header_check_addresses(struct bzimage *bz, struct error *err)
{
	const uint8_t *b = bz->image->bytes;

	bz->init_size = load_le32(b + HDR_INIT_SIZE);
	if (!bz->init_size || bz->init_size > INIT_SIZE_MAX)
		return bad(err, bz->image, "the memory it says it needs (init_size) makes no sense");
	bz->relocatable = b[HDR_RELOCATABLE];
	bz->alignment = load_le32(b + HDR_ALIGNMENT);
	bz->pref_address = load_le64(b + HDR_PREF_ADDRESS);
	if (bz->pref_address < BOOT_HIGH_GPA || bz->pref_address >= BOOT_HOLE_GPA)
		return bad(err, bz->image, "its preferred address is not in RAM");
	if (!bz->alignment || bz->alignment & (bz->alignment - 1) ||
		bz->pref_address & (bz->alignment - 1))
		return bad(err, bz->image, "its alignment makes no sense");
	return 0;
}

static int header_read(const struct boot_image *image, struct bzimage *ret_bz, struct error *err)
{
	const uint8_t *b = image->bytes;
	int r;

	*ret_bz = (struct bzimage){.image = image, .header.bytes = b + HDR_SETUP_SECTS};
	r = header_check_kind(image, err);
	if (!r)
		r = header_check_sizes(ret_bz, err);
	if (!r)
		r = header_check_addresses(ret_bz, err);
	if (r < 0)
		return r;
	ret_bz->is_64 = load_le16(b + HDR_VERSION) >= VERSION_XLOAD &&
			load_le16(b + HDR_XLOADFLAGS) & XLF_KERNEL_64;
	ret_bz->header.initrd_max = load_le32(b + HDR_INITRD_ADDR_MAX);
	ret_bz->header.cmdline_max_bytes = load_le32(b + HDR_CMDLINE_SIZE);
	return 0;
}

/* The packed kernel needs init_size bytes at the address where it will run. */
static int load_packed(struct boot_loader *loader, const struct bzimage *bz)
{
	gpa_t base = bz->relocatable ? bz->pref_address : BOOT_HIGH_GPA;
	uint64_t room = MAX(bz->init_size, bz->kernel_bytes);
	const char *name = bz->image->name;
	int r;

	if (base < bz->pref_address)
		room = MAX(room, bz->pref_address - base + bz->init_size);
	r = boot_space_take(&loader->space, base, room, "the kernel", name, loader->err);
	if (r < 0)
		return r;
	r = memory_write(loader->memory, base, bz->image->bytes + bz->kernel_offset,
		bz->kernel_bytes);
	if (r < 0)
		return error_set(loader->err, -r, "%s: cannot write it to guest memory", name);
	r = boot_linux_prepare(loader, &bz->header);
	if (!r)
		r = boot_entry_tables(loader->memory, bz->is_64);
	if (r < 0)
		return r;
	if (bz->is_64)
		boot_entry_long64(loader->state, base + ENTRY_64_OFFSET);
	else
		boot_entry_flat32(loader->state, base);
	loader->state->reg[X86_RSI] = BOOT_ZERO_PAGE_GPA;
	return 0;
}

static int unpack_failed(const struct bzimage *bz, int r, struct error *err)
{
	const char *format = boot_unpack_format(bz->payload, bz->payload_bytes);

	if (r == -ENOMEM)
		return error_set(err, ENOMEM, "no memory on the host to unpack %s", bz->image->name);
	return error_set(err, ENOEXEC, "%s: its %s data is damaged: get the kernel again",
		bz->image->name, format);
}

/* The ELF that was inside, entered where its segments say. The relocations that the build appends are
 * for other addresses than the linked one, and not needed. */
static int load_unpacked(struct boot_loader *loader, const struct bzimage *bz,
	const struct boot_image *inner)
{
	AUTO_FREE struct boot_elf *elf = malloc(sizeof(*elf));
	int r;

	if (!elf)
		return error_set(loader->err, ENOMEM, "no memory on the host");
	r = boot_elf_parse(inner, elf, loader->err);
	if (!r)
		r = boot_elf_load(elf, &loader->space, loader->err);
	if (r < 0)
		return r;
	if (loader->config->protocol == BOOT_PVH)
		return boot_pvh_load(loader, elf);
	return boot_linux_elf(loader, elf, &bz->header);
}

int boot_bzimage_load(struct boot_loader *loader, const struct boot_image *image)
{
	struct boot_image inner = {.name = image->name};
	AUTO_FREE uint8_t *unpacked = NULL;
	struct bzimage bz;
	int r;

	r = header_read(image, &bz, loader->err);
	if (r < 0)
		return r;
	if (loader->config->keep_packed && loader->config->protocol != BOOT_PVH)
		return load_packed(loader, &bz);
	r = boot_unpack(bz.payload, bz.payload_bytes, bz.init_size, &unpacked, &inner.size_bytes);
	if (r < 0 && r != -EOPNOTSUPP)
		return unpack_failed(&bz, r, loader->err);
	inner.bytes = unpacked;
	if (!r && boot_elf_probe(&inner))
		return load_unpacked(loader, &bz, &inner);
	if (loader->config->protocol == BOOT_PVH)
		return error_set(loader->err, ENOEXEC, "%s: its payload is in a format that Lodge "
			"cannot unpack: boot it by the Linux protocol", image->name);
	log_debug("boot", "%s: unknown payload, it unpacks itself", image->name);
	return load_packed(loader, &bz);
}
