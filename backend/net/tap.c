/*
 * A tap: the host's kernel is the other end of the guest's cable. Frames go with the same header as in the guest's
 * queues (IFF_VNET_HDR), so checksums and segmentation are left to the host's kernel, or not done at all.
 * (Linux: Documentation/networking/tuntap.rst)
 *
 * NETWORK_TAP uses the tap of that name, which an administrator may have made for the user, and makes it if it may;
 * NETWORK_BRIDGE makes one and puts it on the bridge. What we make goes with the process.
 * Left out: several queues, steering by the kernel, USO (kernels before 6.2 have none).
 */
#include "backend/net/network.h"

#include "backend/net/offload.h"
#include "backend/net/queue.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"
#include "base/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#define BATCH	      32 /* frames, then others have their turn */
#define WAITING_LIMIT MIB(1)
#define PARTS_MAX     256 /* a frame in more pieces is copied first */

struct tap {
	struct net net;
	struct net_peer peer;
	int fd;
	struct loop_source *source;
	struct frame_queue waiting;
	uint16_t mtu;
	uint8_t frame[NET_HEADER_BYTES + OFFLOAD_FRAME_MAX];
};

static struct tap *tap_of(struct net *net)
{
	return container_of(net, struct tap, net);
}

static void tap_wait(struct tap *tap)
{
	if (!tap->source)
		return;
	/* Nothing is read while frames wait for the guest: the kernel's queue is the place to wait. */
	(void)!loop_change(tap->source, tap->waiting.first || !tap->peer.receive ? 0 : EPOLLIN);
}

/* Somebody deleted the interface. */
static void lose(struct tap *tap)
{
	log_warn("net", "the tap is gone: the guest's cable is unplugged");
	loop_remove(tap->source);
	tap->source = NULL;
	if (tap->peer.link)
		tap->peer.link(tap->peer.opaque, false);
}

static void tap_readable(void *opaque, uint32_t events)
{
	struct tap *tap = opaque;
	struct net_offload offload;

	for (unsigned i = 0; i < BATCH && !tap->waiting.first; i++) {
		ssize_t size = read(tap->fd, tap->frame, sizeof(tap->frame));
		if (size < NET_HEADER_BYTES) {
			/* EBADFD: the interface is gone. */
			if (size < 0 && errno != EAGAIN && errno != EINTR)
				lose(tap);
			return;
		}
		struct iovec iov = {tap->frame + NET_HEADER_BYTES, (size_t)size - NET_HEADER_BYTES};
		net_offload_load(&offload, tap->frame);
		frame_queue_receive(&tap->waiting, &tap->peer, &offload, &iov, 1);
	}
	tap_wait(tap);
}

/* ---- the network ---- */

static void tap_attach(struct net *net, const struct net_peer *peer, unsigned takes)
{
	struct tap *tap = tap_of(net);
	unsigned long offload = 0;

	tap->peer = peer ? *peer : (struct net_peer){0};
	if (takes & NET_CSUM) {
		offload |= TUN_F_CSUM;
		if (takes & NET_TSO4)
			offload |= TUN_F_TSO4 | TUN_F_TSO_ECN;
		if (takes & NET_TSO6)
			offload |= TUN_F_TSO6 | TUN_F_TSO_ECN;
	}
	/* If the kernel can't do that it does the work itself. */
	if (ioctl(tap->fd, TUNSETOFFLOAD, offload) < 0)
		(void)!ioctl(tap->fd, TUNSETOFFLOAD, 0ul);
	frame_queue_done(&tap->waiting);
	tap_wait(tap);
}

static unsigned tap_features(struct net *net)
{
	return NET_CSUM | NET_TSO4 | NET_TSO6;
}

static uint16_t tap_mtu(struct net *net)
{
	return tap_of(net)->mtu;
}

/* Frames that the kernel can't take now are dropped, as on a cable. */
static void tap_send(struct net *net, const struct net_offload *offload, const struct iovec *iov,
	unsigned iov_count)
{
	struct tap *tap = tap_of(net);
	uint8_t header[NET_HEADER_BYTES];
	struct iovec all[PARTS_MAX + 1];
	struct net_offload said = *offload;

	all[0] = (struct iovec){header, sizeof(header)};
	if (iov_count > PARTS_MAX) {
		size_t bytes = offload_gather(tap->frame, OFFLOAD_FRAME_MAX, iov, iov_count, 0);
		all[1] = (struct iovec){tap->frame, bytes};
		iov_count = 1;
	} else {
		memcpy(all + 1, iov, iov_count * sizeof(*iov));
	}
	/* A hint of the guest's only, and the kernel refuses a wrong one: it finds out by itself. */
	said.header_bytes = 0;
	net_offload_store(header, &said);
	ssize_t sent;
	do {
		sent = writev(tap->fd, all, (int)iov_count + 1);
	} while (sent < 0 && errno == EINTR);
}

static void tap_ready(struct net *net)
{
	struct tap *tap = tap_of(net);

	frame_queue_flush(&tap->waiting, &tap->peer);
	tap_wait(tap);
}

static void tap_close(struct net *net)
{
	struct tap *tap = tap_of(net);

	loop_remove(tap->source);
	if (tap->fd >= 0)
		close(tap->fd);
	frame_queue_done(&tap->waiting);
	free(tap);
}

static const struct net_ops tap_ops = {
	.attach = tap_attach,
	.features = tap_features,
	.mtu = tap_mtu,
	.send = tap_send,
	.ready = tap_ready,
	.close = tap_close,
};

/* ---- opening ---- */

static const char *user_name(void)
{
	const struct passwd *entry = getpwuid(geteuid());

	return entry ? entry->pw_name : "USER";
}

static int refuse_tap(const struct network_spec *spec, int code, struct error *err)
{
	if (code == EBUSY)
		return error_set(err, code, "tap %s is used by another process", spec->name);
	if ((code == EPERM || code == EACCES) && spec->kind == NETWORK_BRIDGE)
		return error_set(err, code,
			"to put a tap on bridge %s takes the capability CAP_NET_ADMIN, which this process lacks. An "
			"administrator can make a tap for you: ip tuntap add dev lodge0 mode tap user %s; ip link set "
			"lodge0 master %s up. Then use --net tap=lodge0",
			spec->name, user_name(), spec->name);
	if (code == EPERM || code == EACCES)
		return error_set(err, code,
			"tap %s does not exist or is not yours, and to make it takes the capability CAP_NET_ADMIN, "
			"which this process lacks. An administrator can make it for you: ip tuntap add dev %s mode "
			"tap user %s; ip link set %s up",
			spec->name, spec->name, user_name(), spec->name);
	return error_set_errno(err, code, "can't open tap %s", spec->name);
}

static int open_tun(struct error *err)
{
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);

	if (fd >= 0)
		return fd;
	if (errno == ENOENT || errno == ENODEV)
		return error_set(err, errno,
			"this host has no /dev/net/tun: an administrator can load it with modprobe tun");
	if (errno == EACCES || errno == EPERM)
		return error_set(err, errno,
			"/dev/net/tun is closed to this user: an administrator can open it with chmod 666 "
			"/dev/net/tun (what a tap may be used for is still checked)");
	return error_set_errno(err, errno, "can't open /dev/net/tun");
}

/* Returns 0 or negative; the kernel chooses the number in a name with %d. */
static int set_interface(int fd, struct ifreq *request)
{
	int size = NET_HEADER_BYTES;

	request->ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
	if (ioctl(fd, TUNSETIFF, request) < 0) {
		if (errno != EINVAL)
			return -errno;
		/* One that was made for several queues wants to hear so. */
		request->ifr_flags |= IFF_MULTI_QUEUE;
		if (ioctl(fd, TUNSETIFF, request) < 0)
			return -errno;
	}
	return ioctl(fd, TUNSETVNETHDRSZ, &size) < 0 ? -errno : 0;
}

static int put_on_bridge(
	int socket_fd, const struct network_spec *spec, const char *tap, struct error *err)
{
	struct ifreq request = {.ifr_ifindex = (int)if_nametoindex(tap)};

	snprintf(request.ifr_name, sizeof(request.ifr_name), "%.15s", spec->name);
	if (ioctl(socket_fd, SIOCBRADDIF, &request) == 0)
		return 0;
	if (errno == ENODEV || errno == EOPNOTSUPP || errno == EINVAL)
		return error_set(err, errno, "this host has no bridge %s", spec->name);
	return refuse_tap(spec, errno, err);
}

/* Up, with its MTU looked up or set. */
static int prepare(
	struct tap *tap, const struct network_spec *spec, const char *name, struct error *err)
{
	AUTO_CLOSE int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ifreq request = {0};

	if (fd < 0)
		return error_set_errno(err, errno, "can't make a socket");
	if (spec->kind == NETWORK_BRIDGE) {
		int status = put_on_bridge(fd, spec, name, err);
		if (status < 0)
			return status;
	}
	snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
	if (spec->mtu) {
		request.ifr_mtu = spec->mtu;
		if (ioctl(fd, SIOCSIFMTU, &request) < 0)
			return error_set_errno(
				err, errno, "can't set the MTU of tap %s to %u", name, spec->mtu);
	}
	if (ioctl(fd, SIOCGIFMTU, &request) == 0)
		tap->mtu = (uint16_t)MIN(MAX(request.ifr_mtu, NETWORK_MTU_MIN), NETWORK_MTU_MAX);
	if (ioctl(fd, SIOCGIFFLAGS, &request) < 0)
		return error_set_errno(err, errno, "can't look at tap %s", name);
	if (request.ifr_flags & IFF_UP)
		return 0;
	request.ifr_flags |= IFF_UP;
	if (ioctl(fd, SIOCSIFFLAGS, &request) < 0)
		return error_set(err, errno,
			"tap %s is down: an administrator can start it with ip link set %s up",
			name, name);
	return 0;
}

static int open_device(struct tap *tap, const struct network_spec *spec, struct error *err)
{
	struct ifreq request = {0};

	tap->fd = open_tun(err);
	if (tap->fd < 0)
		return tap->fd;
	if (spec->kind == NETWORK_BRIDGE && !if_nametoindex(spec->name))
		return error_set(err, ENODEV, "this host has no bridge %s", spec->name);
	snprintf(request.ifr_name, sizeof(request.ifr_name), "%.15s",
		spec->kind == NETWORK_BRIDGE ? "lodge%d" : spec->name);
	int status = set_interface(tap->fd, &request);
	return status < 0 ? refuse_tap(spec, -status, err)
			  : prepare(tap, spec, request.ifr_name, err);
}

int tap_open(
	const struct network_spec *spec, struct loop *loop, struct net **ret_net, struct error *err)
{
	struct tap *tap = calloc(1, sizeof(*tap));

	if (!tap)
		return error_set(err, ENOMEM, "no memory for a network");
	tap->net.ops = &tap_ops;
	tap->mtu = NETWORK_MTU_DEFAULT;
	frame_queue_init(&tap->waiting, WAITING_LIMIT);
	int status = open_device(tap, spec, err);
	if (status == 0) {
		status = loop_add(loop, tap->fd, 0, tap_readable, tap, &tap->source);
		if (status < 0)
			error_set_errno(err, -status, "can't wait for tap %s", spec->name);
	}
	if (status < 0) {
		tap_close(&tap->net);
		return status;
	}
	*ret_net = &tap->net;
	return 0;
}
