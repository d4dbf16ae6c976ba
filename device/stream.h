/*
 * A stream of bytes both ways as a device (a port of a virtio console) sees it: a terminal, a Unix socket. vmm and
 * backend/ implement it; a test has one of its own.
 *
 * Nothing is lost in either direction: who can't take bytes now says so, and says again when it can.
 *
 * Threads: attach by the owner, before the guest runs and after it has stopped; send and ready on the thread of the
 * loop that the device is on, with the device's lock held. The peer's functions may be called by any thread that
 * holds no lock which send or ready take.
 */
#ifndef LODGE_DEVICE_STREAM_H
#define LODGE_DEVICE_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The device's side. */
struct stream_peer {
	/* Bytes for the guest; returns how many were taken. Less than count: ready() is called on the stream once more
	 * would be. */
	size_t (*receive)(void *opaque, const uint8_t *bytes, size_t count);
	/* send() took less than it was given, and would take more now. */
	void (*room)(void *opaque);
	/* Somebody came, or went. At the start nobody is there. */
	void (*connected)(void *opaque, bool connected);
	/* Of a terminal: it has this size now. */
	void (*resized)(void *opaque, uint16_t columns, uint16_t rows);
	void *opaque;
};

struct stream {
	const struct stream_ops *ops;
};

struct stream_ops {
	/* From now on the stream is this peer's, which is copied; it is told at once whether somebody is there. NULL: no
	 * one's, and no call of the peer's is under way when this returns. */
	void (*attach)(struct stream *stream, const struct stream_peer *peer);
	/* Bytes from the guest, which change under us: copied once. Returns how many were taken. */
	size_t (*send)(struct stream *stream, const uint8_t *bytes, size_t count);
	void (*ready)(struct stream *stream);
};

#endif
