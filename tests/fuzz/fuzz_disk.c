/*
 * Fuzzing of the reader that finds kernels on disks: the input is the disk. Whatever it holds, the search ends, within
 * the bounds of disk.h, with files or with an error that has a text.
 *
 * The plain driver changes some bytes of the corpus' disks, mostly of those that are not zero.
 */
#include "rig.h"

#include "base/error.h"
#include "boot/disk.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct disk {
	const uint8_t *bytes;
	size_t size;
};

static int read_disk(void *opaque, void *buf, uint64_t bytes, uint64_t offset)
{
	const struct disk *disk = opaque;

	MUST(offset <= disk->size && bytes <= disk->size - offset);
	memcpy(buf, disk->bytes + offset, bytes);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct disk disk = { data, size };
	const struct boot_source source = { read_disk, &disk, size };
	struct boot_found found;
	struct error err = { 0 };

	int status = boot_disk_find(&source, &found, &err);
	MUST(status < 0 ? err.code == -status && err.text[0] : found.kernel > 0 && found.cmdline);
	boot_found_done(&found);
	return 0;
}

#ifndef FUZZ_LIBFUZZER
#define DISKS_MAX 16
#define DISK_MAX  65536

static uint8_t disks[DISKS_MAX][DISK_MAX];
static size_t disk_bytes[DISKS_MAX];
static unsigned disk_count;

static void load(const char *folder)
{
	DIR *dir = opendir(folder);
	struct dirent *entry;

	while (dir && (entry = readdir(dir)) && disk_count < DISKS_MAX) {
		char path[4096];
		snprintf(path, sizeof(path), "%s/%s", folder, entry->d_name);
		FILE *file = entry->d_name[0] == '.' ? NULL : fopen(path, "rb");
		if (!file)
			continue;
		disk_bytes[disk_count] = fread(disks[disk_count], 1, DISK_MAX, file);
		disk_count += disk_bytes[disk_count] > 0;
		fclose(file);
	}
	if (dir)
		closedir(dir);
}

static size_t make(uint8_t *buf, size_t size, uint64_t *seed)
{
	MUST(disk_count && size >= DISK_MAX);
	const unsigned which = (unsigned)(rig_random(seed) % disk_count);
	const size_t bytes = disk_bytes[which];
	const unsigned changes = 1 + (unsigned)(rig_random(seed) % 12);

	memcpy(buf, disks[which], bytes);
	for (unsigned i = 0; i < changes; i++) {
		size_t at = rig_random(seed) % bytes;
		for (unsigned k = 0; k < 2000 && !buf[at]; k++)
			at = (at + 1) % bytes;
		switch (rig_random(seed) % 4) {
		case 0: buf[at] ^= (uint8_t)(1u << rig_random(seed) % 8); break;
		case 1: buf[at] = (uint8_t)(rig_random(seed) >> 16); break;
		case 2: buf[at] = 0xff; break;
		default: buf[(at + rig_random(seed) % 8) % bytes] = (uint8_t)(rig_random(seed) % 4); break;
		}
	}
	return bytes;
}

int main(int argc, char **argv)
{
	if (argc > 1)
		load(argv[1]);
	return rig_main(argc, argv, LLVMFuzzerTestOneInput, make);
}
#endif
