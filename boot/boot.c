/*
 * One boot from beginning to end: read the kernel, tell its format, hand it to that format's loader. See
 * boot.h. Also what the loaders share: command line, initrds, small records.
 */
#include "boot/boot.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "boot/layout.h"
#include "boot/loader.h"
#include "boot/unpack.h"
#include "memory/memory.h"

#define LEAST_RAM_BYTES		MIB(2)
#define DEFLATE_RATIO_MAX	1032 /* nothing gets smaller (zlib's technical details) */
#define UNPACKED_MAX_BYTES MIB(256) /* of a kernel that was a .gz file: five times the largest stock one */

static const char *const protocol_names[] = {
	[BOOT_AUTO] = "auto",
	[BOOT_LINUX] = "linux",
	[BOOT_PVH] = "pvh",
	[BOOT_ELF] = "elf",
	[BOOT_MULTIBOOT] = "multiboot",
};

int boot_protocol_parse(const char *name, enum boot_protocol *ret_protocol)
{
	for (unsigned i = 0; i < ARRAY_SIZE(protocol_names); i++) {
		if (!strcmp(name, protocol_names[i])) {
			*ret_protocol = (enum boot_protocol)i;
			return 0;
		}
	}
	return -EINVAL;
}

int boot_record(
	struct boot_loader *loader, const void *bytes, uint64_t size_bytes, gpa_t *ret_gpa)
{
	uint64_t left = BOOT_RECORDS_GPA + BOOT_RECORDS_BYTES - loader->records;
	int r;

	if (size_bytes > left)
		return error_set(loader->err, ENOSPC,
			"the initrds' names and arguments are too long: shorten them");
	r = memory_write(loader->memory, loader->records, bytes, size_bytes);
	if (r < 0)
		return error_set(loader->err, -r, "cannot write boot records to guest memory");
	*ret_gpa = loader->records;
	loader->records += MIN(ALIGN_UP(size_bytes, 8), left);
	return 0;
}

char *boot_line(const char *name, const char *text)
{
	char *line;

	text = text ? text : "";
	return asprintf(&line, "%s%s%s", name ? name : "", name && *text ? " " : "", text) < 0 ? NULL
												: line;
}

int boot_cmdline(struct boot_loader *loader, const char *name, uint64_t max_bytes)
{
	AUTO_FREE char *line = boot_line(name, loader->config->cmdline);
	uint64_t length;
	int r;

	if (!line)
		return error_set(loader->err, ENOMEM, "no memory on the host");
	length = strlen(line);
	max_bytes = MIN(max_bytes, BOOT_CMDLINE_BYTES - 1);
	if (length > max_bytes)
		return error_set(loader->err, E2BIG,
			"the kernel command line has %llu bytes, and this kernel takes %llu: shorten it",
			(unsigned long long)length, (unsigned long long)max_bytes);
	r = memory_write(loader->memory, BOOT_CMDLINE_GPA, line, length + 1);
	if (r < 0)
		return error_set(loader->err, -r, "cannot write the command line to guest memory");
	return 0;
}

static int initrd_no_room(struct boot_loader *loader, const char *name, uint64_t size_bytes,
	gpa_t limit)
{
	uint64_t needed = ALIGN_UP(boot_space_end(&loader->space), GUEST_PAGE_SIZE) +
			  ALIGN_UP(size_bytes, GUEST_PAGE_SIZE);

	if (needed > MIN(limit, BOOT_HOLE_GPA))
		return error_set(loader->err, ENOMEM,
			"%s: %llu MiB of initrd are more than this kernel can be given (it must end "
			"below %llu MiB): make it smaller", name,
			(unsigned long long)(size_bytes >> 20),
			(unsigned long long)(MIN(limit, BOOT_HOLE_GPA) >> 20));
	return error_set(loader->err, ENOMEM,
		"%s: %llu MiB of initrd do not fit beside the kernel into %llu MiB of guest memory: "
		"give the guest at least %llu MiB, better twice that", name,
		(unsigned long long)((size_bytes + MIB(1) - 1) >> 20),
		(unsigned long long)(memory_ram_bytes(loader->memory) >> 20),
		(unsigned long long)((needed + MIB(1) - 1) >> 20));
}

/* The files of all initrds, opened once. */
struct initrd_files {
	unsigned count;
	int fd[BOOT_INITRDS_MAX];
	uint64_t size_bytes[BOOT_INITRDS_MAX];
};

static void initrd_files_done(struct initrd_files *files)
{
	for (unsigned i = 0; i < files->count; i++)
		close(files->fd[i]);
	files->count = 0;
}

static int initrd_files_open(struct boot_loader *loader, struct initrd_files *ret_files)
{
	const struct boot_config *config = loader->config;

	ret_files->count = 0;
	if (config->initrd_count > BOOT_INITRDS_MAX)
		return error_set(loader->err, EINVAL, "%u initrds given, and %d are the most",
			config->initrd_count, BOOT_INITRDS_MAX);
	for (unsigned i = 0; i < config->initrd_count; i++) {
		int r = boot_file_open(&config->initrd[i], &ret_files->fd[i],
			&ret_files->size_bytes[i], loader->err);

		if (r < 0)
			return r;
		ret_files->count++;
		/* So that no sum of sizes wraps. */
		if (ret_files->size_bytes[i] > BOOT_HOLE_GPA)
			return initrd_no_room(loader, config->initrd[i].path,
				ret_files->size_bytes[i], BOOT_HOLE_GPA);
	}
	return 0;
}

/* Each archive is padded to 4 bytes: the kernel's unpacker expects the next one there. */
static int initramfs_place(struct boot_loader *loader, const struct initrd_files *files,
	gpa_t limit, struct boot_module *ret_module)
{
	const struct boot_file *initrd = loader->config->initrd;
	uint64_t total = 0, at;
	int r;

	for (unsigned i = 0; i < files->count; i++)
		total += ALIGN_UP(files->size_bytes[i], 4);
	if (!total)
		return 0;
	if (boot_space_find(&loader->space, total, BOOT_HIGH_GPA, MIN(limit, BOOT_HOLE_GPA), true,
		    &ret_module->base) < 0)
		return initrd_no_room(loader, initrd[0].path, total, limit);
	r = boot_space_take(&loader->space, ret_module->base, total, "the initrd", initrd[0].path,
		loader->err);
	at = ret_module->base;
	for (unsigned i = 0; !r && i < files->count; i++) {
		uint64_t padded = ALIGN_UP(files->size_bytes[i], 4);

		r = boot_zero(loader->memory, at + padded - 4, 4);
		if (!r)
			r = boot_file_load(loader->memory, files->fd[i], initrd[i].path, at,
				files->size_bytes[i], loader->err);
		at += padded;
	}
	ret_module->size_bytes = total;
	if (files->count == 1) /* nothing follows: the size is the file's own */
		ret_module->size_bytes = files->size_bytes[0];
	return r;
}

int boot_initramfs(struct boot_loader *loader, gpa_t limit, struct boot_module *ret_module)
{
	struct initrd_files files;
	int r;

	*ret_module = (struct boot_module){0};
	r = initrd_files_open(loader, &files);
	if (!r)
		r = initramfs_place(loader, &files, limit, ret_module);
	initrd_files_done(&files);
	return r;
}

static int module_place(struct boot_loader *loader, const struct initrd_files *files, unsigned i,
	gpa_t min, struct boot_module *ret_module)
{
	const char *name = loader->config->initrd[i].path;
	int r;

	ret_module->size_bytes = files->size_bytes[i];
	if (boot_space_find(&loader->space, ret_module->size_bytes, min, BOOT_HOLE_GPA, false,
		    &ret_module->base) < 0)
		return initrd_no_room(loader, name, ret_module->size_bytes, BOOT_HOLE_GPA);
	r = boot_space_take(&loader->space, ret_module->base, ret_module->size_bytes, "a module",
		name, loader->err);
	return r ? r
		 : boot_file_load(loader->memory, files->fd[i], name, ret_module->base,
			   ret_module->size_bytes, loader->err);
}

int boot_modules(struct boot_loader *loader, gpa_t min, struct boot_module *ret_modules)
{
	struct initrd_files files;
	int r;

	r = initrd_files_open(loader, &files);
	for (unsigned i = 0; !r && i < files.count; i++)
		r = module_place(loader, &files, i, min, &ret_modules[i]);
	initrd_files_done(&files);
	return r;
}

/* ---- which loader ---- */

static int load_elf(struct boot_loader *loader, const struct boot_image *image)
{
	enum boot_protocol protocol = loader->config->protocol;
	AUTO_FREE struct boot_elf *elf = malloc(sizeof(*elf));
	int r;

	if (!elf)
		return error_set(loader->err, ENOMEM, "no memory on the host");
	r = boot_elf_parse(image, elf, loader->err);
	if (r < 0)
		return r;
	if (protocol == BOOT_AUTO && !elf->has_pvh && boot_multiboot_probe(image))
		return boot_multiboot_load(loader, image);
	r = boot_elf_load(elf, &loader->space, loader->err);
	if (r < 0)
		return r;
	if (protocol == BOOT_PVH || (protocol == BOOT_AUTO && elf->has_pvh))
		return boot_pvh_load(loader, elf);
	return boot_linux_elf(loader, elf, NULL);
}

/* What people put in a kernel's place, and what to do about it. */
static int unknown_format(const struct boot_image *image, struct error *err)
{
	const uint8_t *b = image->bytes;

	if (image->size_bytes >= 64 && !memcmp(b + 56, "ARM\x64", 4))
		return error_set(err, ENOEXEC, "%s is a kernel for arm64: get the amd64 one",
			image->name);
	if (image->size_bytes >= 2 && b[0] == 0x1f && b[1] == 0x8b)
		return error_set(err, ENOEXEC, "%s is compressed with gzip twice: unpack it first",
			image->name);
	if (image->size_bytes >= 6 && !memcmp(b, "0707", 4))
		return error_set(err, ENOEXEC, "%s is an initrd, not a kernel: are the two mixed up?",
			image->name);
	return error_set(err, ENOEXEC,
		"%s is not a kernel that can be booted: neither a Linux bzImage nor ELF nor multiboot "
		"(for Debian it is /boot/vmlinuz-VERSION)", image->name);
}

static int wrong_format(
	const struct boot_loader *loader, const struct boot_image *image, const char *is)
{
	return error_set(loader->err, ENOEXEC,
		"%s is %s and cannot be booted by the %s protocol: leave the choice to auto",
		image->name, is, protocol_names[loader->config->protocol]);
}

static int load_image(struct boot_loader *loader, const struct boot_image *image)
{
	enum boot_protocol protocol = loader->config->protocol;

	if (protocol == BOOT_MULTIBOOT)
		return boot_multiboot_load(loader, image);
	if (boot_bzimage_probe(image))
		return protocol == BOOT_ELF ? wrong_format(loader, image, "a Linux bzImage")
					    : boot_bzimage_load(loader, image);
	if (boot_elf_probe(image))
		return load_elf(loader, image);
	if (protocol == BOOT_AUTO && boot_multiboot_probe(image))
		return boot_multiboot_load(loader, image);
	return unknown_format(image, loader->err);
}

/* Kernels that are not Linux are often installed as FILE.gz, and every boot loader unpacks them. */
static int unpack_image(struct boot_image *image, struct error *err)
{
	AUTO_FREE uint8_t *packed = NULL;
	uint64_t packed_bytes = image->size_bytes;
	int r;

	if (packed_bytes < 2 || image->bytes[0] != 0x1f || image->bytes[1] != 0x8b)
		return 0;
	packed = take_ptr(&image->bytes);
	r = boot_unpack(packed, packed_bytes, MIN(UNPACKED_MAX_BYTES, packed_bytes * DEFLATE_RATIO_MAX),
		&image->bytes, &image->size_bytes);
	if (r == -ENOMEM)
		return error_set(err, ENOMEM, "no memory on the host to unpack %s", image->name);
	if (r == -EFBIG)
		return error_set(err, EFBIG, "%s has more than %u MiB unpacked: is it a kernel?", image->name,
			(unsigned)(UNPACKED_MAX_BYTES >> 20));
	return r < 0 ? error_set(err, -r, "%s is compressed with gzip and damaged: get it again",
			       image->name)
		     : 0;
}

int boot_load(struct guest_memory *memory, const struct boot_config *config,
	struct x86_state *state, struct error *err)
{
	AUTO_FREE struct boot_loader *loader = calloc(1, sizeof(*loader));
	struct boot_image image = {0};
	int r;

	if (!loader)
		return error_set(err, ENOMEM, "no memory on the host");
	loader->memory = memory;
	loader->config = config;
	loader->state = state;
	loader->err = err;
	loader->records = BOOT_RECORDS_GPA;
	if (!memory_host(memory, 0, LEAST_RAM_BYTES, true))
		return error_set(err, ENOMEM, "the guest has less than %u MiB of memory: give it "
			"more", (unsigned)(LEAST_RAM_BYTES >> 20));
	boot_space_init(&loader->space, memory);
	r = boot_map_build(memory, config->reserved, config->reserved_count, &loader->map);
	if (r < 0)
		return error_set(err, -r, "the guest's memory is in too many pieces to describe");
	r = boot_image_read(&image, &config->kernel, BOOT_KERNEL_MAX_BYTES, err);
	if (r < 0)
		return r;
	r = unpack_image(&image, err);
	if (!r)
		r = load_image(loader, &image);
	boot_image_done(&image);
	return r;
}
