/*
 * Boot from inside an open disk: see disk_boot.h. Reads go through the disk's own request layer, so what the guest
 * wrote before it reset the machine is seen, whatever the image's format.
 */
#include "vmm/disk_boot.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"
#include "base/loop.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BOUNCE_BYTES MIB(1)
#define BOUNCE_ALIGN 4096

struct reader {
	struct loop *io;
	struct block *block;
	struct block_limits limits;
	uint8_t *bounce;
	pthread_mutex_t lock;
	pthread_cond_t ended;
	bool done;
	int status;
	struct loop_call call;
	struct block_request request;
	struct iovec iov;
};

static void read_done(struct block_request *request, int status)
{
	struct reader *r = request->opaque;
	AUTO_LOCK(&r->lock);

	r->status = status;
	r->done = true;
	pthread_cond_signal(&r->ended);
}

static void submit(void *opaque)
{
	struct reader *r = opaque;

	block_submit(r->block, &r->request);
}

/* Whole sectors into the bounce buffer. */
static int read_sectors(struct reader *r, uint64_t offset, uint64_t bytes)
{
	AUTO_LOCK(&r->lock);

	r->done = false;
	r->iov = (struct iovec){ r->bounce, bytes };
	r->request = (struct block_request){ .op = BLOCK_READ, .offset = offset, .bytes = bytes, .iov = &r->iov,
		.iov_count = 1, .done = read_done, .opaque = r };
	r->call = (struct loop_call){ .fn = submit, .opaque = r };
	loop_post(r->io, &r->call);
	while (!r->done)
		pthread_cond_wait(&r->ended, &r->lock);
	return r->status;
}

static int read_bytes(void *opaque, void *buf, uint64_t bytes, uint64_t offset)
{
	struct reader *r = opaque;
	const uint64_t sector = r->limits.sector_bytes;
	uint8_t *to = buf;

	while (bytes) {
		const uint64_t skip = offset % sector;
		const uint64_t whole = MIN(ALIGN_UP(skip + bytes, sector), (uint64_t)BOUNCE_BYTES);
		const uint64_t useful = MIN(whole - skip, bytes);
		int status = read_sectors(r, offset - skip, whole);
		if (status < 0)
			return status;
		memcpy(to, r->bounce + skip, useful);
		to += useful;
		offset += useful;
		bytes -= useful;
	}
	return 0;
}

static bool has_word(const char *line, const char *start)
{
	for (const char *at = line; (at = strstr(at, start)); at++)
		if (at == line || at[-1] == ' ')
			return true;
	return false;
}

/* Without a console on the serial port its owner would see nothing; without root= nothing is mounted. */
static int compose(const struct vmm_disk_boot *boot, struct vmm_disk_booted *booted, struct error *err)
{
	const char *own = boot->cmdline ? boot->cmdline : booted->found.cmdline;
	const bool root = boot->cmdline || has_word(own, "root="), console = boot->cmdline || has_word(own, "console=ttyS0");

	if (asprintf(&booted->cmdline, "%s%s%s%s%s%s%s", own, root ? "" : *own ? " " : "", root ? "" : booted->found.partition,
		    root ? "" : " ro", console ? "" : " console=ttyS0", boot->append ? " " : "",
		    boot->append ? boot->append : "") < 0) {
		booted->cmdline = NULL;
		return error_set(err, ENOMEM, "no memory");
	}
	log_info("boot", "from the disk: %s; command line: %s", booted->found.from, booted->cmdline);
	return 0;
}

int vmm_disk_boot(const struct vmm_disk_boot *boot, struct loop *io, struct block *block,
	struct vmm_disk_booted *ret_booted, struct error *err)
{
	struct reader r = { .io = io, .block = block, .lock = PTHREAD_MUTEX_INITIALIZER, .ended = PTHREAD_COND_INITIALIZER };
	AUTO_FREE uint8_t *bounce = aligned_alloc(BOUNCE_ALIGN, BOUNCE_BYTES);

	*ret_booted = (struct vmm_disk_booted){ .found = { .kernel = -1, .initrd = -1 } };
	if (!bounce)
		return error_set(err, ENOMEM, "no memory");
	r.bounce = bounce;
	block_limits(block, &r.limits);
	const struct boot_source source = { read_bytes, &r, ALIGN_DOWN(r.limits.size_bytes, (uint64_t)r.limits.sector_bytes) };
	int status = boot_disk_find(&source, &ret_booted->found, err);
	if (status == 0)
		status = compose(boot, ret_booted, err);
	if (status < 0)
		vmm_disk_booted_done(ret_booted);
	return status;
}

void vmm_disk_booted_done(struct vmm_disk_booted *booted)
{
	boot_found_done(&booted->found);
	free(booted->cmdline);
	booted->cmdline = NULL;
}
