/*
 * Fuzz target: what a port of a virtual switch makes of the datagrams that it gets (backend/net/switch.h), with every
 * choice of what its guest takes: headers of any kind, frames cut and completed in software; and the same frames the
 * other way, as networks complete them that know no offloads.
 *
 * Input: what the guest takes, then datagrams, each behind its length in two bytes.
 *
 * What must hold: nothing crashes, and the guest is given what it takes and what is consistent, no longer than a frame.
 */
#include "tests/fuzz/rig.h"

#include "backend/net/network.h"
#include "backend/net/offload.h"
#include "backend/net/switch.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/loop.h"

#include <ftw.h>
#include <stdio.h>
#include <unistd.h>

static unsigned takes, refuse;
static uint64_t sum;
static char directory[] = "/tmp/lodge-fuzz-XXXXXX";

static bool receive(void *opaque, const struct net_offload *offload, const struct iovec *iov,
	unsigned iov_count)
{
	static uint8_t copy[OFFLOAD_FRAME_MAX];

	MUST(!(net_offload_needs(offload) & ~takes));
	MUST(iov_count == 1 && net_offload_check(offload, iov->iov_len));
	memcpy(copy, iov->iov_base, iov->iov_len);
	return !refuse || --refuse;
}

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
	return remove(path);
}

static void clean_up(void)
{
	nftw(directory, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

static struct net *open_switch(void)
{
	struct network_spec spec = {.kind = NETWORK_SWITCH, .name = "fuzz"};
	struct loop *loop;
	struct net *net;
	struct error err;

	MUST(mkdtemp(directory));
	atexit(clean_up);
	setenv("XDG_RUNTIME_DIR", directory, 1);
	MUST(loop_create(&loop) == 0);
	MUST(switch_open(&spec, loop, &net, &err) == 0);
	return net;
}

static void count(void *opaque, uint8_t *frame, size_t bytes)
{
	MUST(bytes && bytes <= OFFLOAD_FRAME_MAX);
	sum += frame[0] + frame[bytes - 1];
}

/* As a frame of a guest's, for libslirp or passt. */
static void whole(uint8_t *frame, size_t bytes, const struct net_offload *offload)
{
	static uint8_t room[OFFLOAD_FRAME_MAX];
	struct net_offload bundle;

	(void)offload_raise_mss(frame, bytes, offload->flags & NET_NEEDS_CSUM, 1460, 32768);
	offload_whole(offload, frame, bytes, 65520, room, count, NULL);
	(void)offload_fragment(
		frame, bytes, 576 + offload->gso_bytes % 1500, room, sizeof(room), count, NULL);
	(void)offload_bundle(frame, MIN(bytes, (size_t)160), bytes, 1448, &bundle);
}

static void one(struct net *net, struct rig_input *in)
{
	size_t bytes = (size_t)rig_take(in, 2), pad = bytes & 0x8000 ? bytes & 0x7ff8 : 0;
	struct net_offload offload;

	bytes = MIN((size_t)(bytes & 0x7fff), in->left);
	/* An exact copy, so that the sanitizer sees a byte too many; padding for long frames from short inputs. */
	uint8_t *datagram = calloc(1, bytes + pad + 1), *other = malloc(bytes + pad + 1);
	MUST(datagram && other);
	rig_take_bytes(in, datagram, bytes);
	if (bytes >= 4 && !(datagram[0] & 1))
		store_le32(datagram, SWITCH_MAGIC);
	bytes += pad;
	memcpy(other, datagram, bytes);
	switch_input(switch_of(net), datagram, bytes);
	if (bytes >= SWITCH_HEADER_BYTES) {
		net_offload_load(&offload, other + 12);
		bytes -= SWITCH_HEADER_BYTES;
		memmove(other, other + SWITCH_HEADER_BYTES, bytes);
		if (net_offload_check(&offload, bytes))
			whole(other, bytes, &offload);
	}
	free(datagram);
	free(other);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct net_peer peer = {.receive = receive};
	struct rig_input in = {data, size};
	static struct net *net;

	if (!net)
		net = open_switch();
	uint8_t how = (uint8_t)rig_take(&in, 1);
	takes = how & 15;
	refuse = how >> 6;
	net->ops->attach(net, &peer, takes);
	while (in.left)
		one(net, &in);
	net->ops->ready(net);
	return 0;
}

/* Frames that are nearly right. */
size_t rig_make(uint8_t *buf, size_t size, uint64_t *seed)
{
	static const uint8_t plain[] = {2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 1, 0x90,
		0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 80, 1, 0, 0, 0, 0, 1, 0, 0, 0,
		2, 0x60, 2, 1, 0, 0, 0, 0, 0, 2, 4, 5, 0xb4};
	size_t at = 1;

	buf[0] = (uint8_t)(rig_random(seed) >> 16);
	for (unsigned n = 1 + (unsigned)rig_random(seed) % 4; n--;) {
		size_t bytes = SWITCH_HEADER_BYTES + 60 + rig_random(seed) % 500;
		uint8_t *d = buf + at + 2;
		store_le16(buf + at, (uint16_t)(bytes | (rig_random(seed) % 4 ? 0 : 0x8000)));
		for (size_t i = 0; i < bytes; i++)
			d[i] = (uint8_t)(rig_random(seed) >> 16);
		d[0] = 0;
		d[12] = rig_random(seed) & 1;
		d[13] = (uint8_t)(rig_random(seed) % 6);
		store_le16(d + 18, 34);
		store_le16(d + 20, rig_random(seed) & 1 ? 16 : 6);
		d[17] &= 7;
		memcpy(d + SWITCH_HEADER_BYTES, plain, sizeof(plain));
		if (rig_random(seed) & 1)
			d[SWITCH_HEADER_BYTES + 23] = 17;
		for (unsigned k = (unsigned)(rig_random(seed) % 4); k--;)
			d[rig_random(seed) % 100] ^= (uint8_t)(rig_random(seed) >> 16);
		at += 2 + bytes;
	}
	return at;
}
