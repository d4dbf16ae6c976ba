/*
 * What the files of the vsock device share: vsock.c has the queues and the packets, vsock_connection.c the
 * connections with their sockets.
 *
 * All of it with the device's lock held, on the loop's thread.
 */
#ifndef LODGE_DEVICE_VIRTIO_VSOCK_PRIVATE_H
#define LODGE_DEVICE_VIRTIO_VSOCK_PRIVATE_H

#include "base/loop.h"
#include "device/virtio/virtio.h"
#include "device/virtio/vsock.h"
#include "device/vsock.h"

#define VSOCK_HEADER_BYTES 44
#define VSOCK_PACKET_MAX   KIB(64) /* bytes of a connection in one packet to the guest */
#define VSOCK_BUCKETS	   256
#define VSOCK_REFUSALS_MAX 256

enum vsock_op { /* 5.10.6 */
	VSOCK_OP_REQUEST = 1,
	VSOCK_OP_RESPONSE,
	VSOCK_OP_RST,
	VSOCK_OP_SHUTDOWN,
	VSOCK_OP_RW,
	VSOCK_OP_CREDIT_UPDATE,
	VSOCK_OP_CREDIT_REQUEST,
};

#define VSOCK_TYPE_STREAM   1
#define VSOCK_SHUTDOWN_RCV  1u /* will receive no more */
#define VSOCK_SHUTDOWN_SEND 2u
#define VSOCK_SHUTDOWN_BOTH 3u

/* What a connection has to tell the guest, apart from bytes; sent in this order. */
enum vsock_tell {
	VSOCK_TELL_RST = 1, /* and nothing else */
	VSOCK_TELL_REQUEST = 2,
	VSOCK_TELL_RESPONSE = 4,
	VSOCK_TELL_CREDIT = 8,
	VSOCK_TELL_WANT_CREDIT = 16,
	VSOCK_TELL_SHUTDOWN = 32,
};

enum vsock_state {
	VSOCK_CONNECTING, /* the guest is asked */
	VSOCK_OPEN,
	VSOCK_DRAINING, /* over for the guest, but the socket has yet to take bytes */
	VSOCK_DEAD,	/* nothing left but the RST that the guest is owed */
};

struct vsock_connection {
	struct virtio_vsock *vsock;
	struct vsock_connection *next, **link; /* of all */
	struct vsock_connection *hash_next,
		**hash_link; /* link NULL: the guest does not know it any more */
	struct vsock_connection *ready_next;
	bool ready; /* in the list of those with something for the guest */
	bool kept;  /* by somebody on the stack: not freed now */
	bool gone;  /* but when that one lets go */

	enum vsock_state state;
	uint32_t guest_port, host_port;
	uint64_t deadline_ns; /* of CONNECTING */
	unsigned tell;	      /* enum vsock_tell */

	int fd; /* -1: closed */
	struct loop_source *source;
	uint32_t watched;
	bool readable;			/* it may have bytes: not watched for them now */
	bool ended;			/* all bytes from it were read */
	bool hung_up;			/* nobody is at its other end */
	bool write_shut;		/* our half of it is closed */
	unsigned guest_shut, host_shut; /* VSOCK_SHUTDOWN_*: what each side said */

	/* Credit (5.10.6.3): counts of bytes, modulo 2^32. To the guest: */
	uint32_t guest_buffer, guest_forwarded, sent;
	bool credit_wanted; /* was asked for */
	/* and from it: */
	uint32_t received, forwarded, forwarded_told;
	uint8_t *
		ring; /* VSOCK_BUFFER_BYTES, made when first needed: what the socket did not take yet */
	uint32_t ring_head, ring_count;
};

struct virtio_vsock {
	pthread_mutex_t *lock;
	struct loop *loop;
	struct virtio_vsock_config config;
	struct virtio_device *device;
	struct loop_call later;	     /* the queues again */
	struct loop_call reset_call; /* close all connections, end the reset */
	struct loop_timer *timer;    /* looks for connections that the guest does not answer */
	bool timer_armed;
	uint32_t next_port;

	struct virtq_buffer tx, rx;
	struct iovec iov[VIRTIO_IOV_MAX];

	unsigned count;
	struct vsock_connection *all;
	struct vsock_connection *bucket[VSOCK_BUCKETS];
	struct vsock_connection *ready_first, **ready_last;

	/* RSTs for what is no connection, to be sent: a ring. */
	struct {
		uint32_t guest_port, host_port;
	} refusal[VSOCK_REFUSALS_MAX];
	unsigned refusal_head, refusal_count;
};

/* A packet's header but for the addresses, as numbers. */
struct vsock_header {
	uint64_t src_cid, dst_cid;
	uint32_t src_port, dst_port, bytes;
	uint16_t type, op;
	uint32_t flags, buffer_bytes, forwarded;
};

struct vsock_connection *vsock_find(
	struct virtio_vsock *vsock, uint32_t host_port, uint32_t guest_port);
/* Takes over fd. NULL: too many, or no memory; fd is closed. */
struct vsock_connection *vsock_connection_create(struct virtio_vsock *vsock, int fd,
	uint32_t host_port, uint32_t guest_port, enum vsock_state state);
/* It is over at once, both ways; `tell`: the guest is sent a RST. May free it. */
void vsock_connection_kill(struct vsock_connection *c, bool tell);
/* The RST was sent. May free it. */
void vsock_connection_forget(struct vsock_connection *c);
/* It has something for the guest: put it in the list. */
void vsock_connection_ready(struct vsock_connection *c);
/* Has it? */
bool vsock_connection_has(const struct vsock_connection *c);

/* The guest's: what a packet says of its buffer; it answered; it sent `bytes` bytes, behind the header in vsock->tx;
 * it will not send or receive any more. May free it. */
void vsock_connection_credit(struct vsock_connection *c, const struct vsock_header *header);
void vsock_connection_opened(struct vsock_connection *c);
void vsock_connection_take(struct vsock_connection *c, uint32_t bytes);
void vsock_connection_shut(struct vsock_connection *c, unsigned flags);

/* Read from the socket into vsock->rx, behind the header. Returns how many bytes; 0: none now, but there may be
 * something to tell. */
uint32_t vsock_connection_fill(struct vsock_connection *c);

/* vsock.c: send what is ready, as far as there are buffers. */
void vsock_pump(struct virtio_vsock *vsock);

#endif
