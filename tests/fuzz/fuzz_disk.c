/*
 * Fuzzing of the reader that finds kernels on disks: the input is the disk. Whatever it holds, the search ends, within
 * the bounds of disk.h, with files or with an error that has a text.
 *
 * The plain driver changes some bytes of the corpus' disks, mostly of those that are not zero.
 */
#include "rig.h"

#include "base/error.h"
#include "boot/disk.h"

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

#define DISKS_MAX 16
#define DISK_MAX  65536

static uint8_t disks[DISKS_MAX][DISK_MAX];
static size_t disk_bytes[DISKS_MAX];
static unsigned disk_count;

void rig_replayed(const uint8_t *data, size_t size)
{
	if (!size || size > DISK_MAX || disk_count == DISKS_MAX)
		return;
	memcpy(disks[disk_count], data, size);
	disk_bytes[disk_count++] = size;
}

size_t rig_make(uint8_t *buf, size_t size, uint64_t *seed)
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
