/*
 * A virtual switch with no switch in the middle: the machines of one user on one subnet, with no root and no daemon.
 *
 * A switch is a directory of the user's, and each port of it a datagram socket there. Who joins makes a socket, connects
 * to all that are there, and watches the directory for others (inotify). A frame for a station that was heard of goes
 * to that port's socket, all others to every socket. So no port is special: any may come, go or be killed at any time,
 * and the rest do not notice. A dead port's socket refuses connections, and is removed by whoever finds that.
 *
 * Frames travel with what is left to do of checksums and segmentation; the receiving side does it if its guest does not
 * take that. A full socket makes its sender keep frames, up to a limit; then they are dropped.
 *
 * Trust: the directory is the user's alone (0700, checked), so datagrams come from processes of the same user. They are
 * checked all the same, as what they carry came from a guest.
 *
 * A socket is bound under a hidden name and gets its real one when it is ready, so that nobody finds it half made.
 */
#include "backend/net/switch.h"

#include "backend/net/network.h"
#include "backend/net/offload.h"
#include "backend/net/queue.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/loop.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#define PEERS_MAX	1024
#define STATIONS	1024 /* places in the table of who is where */
#define STATION_LIFE_NS (300 * NS_PER_SEC)
#define PEER_LIMIT	MIB(4) /* that wait for one socket */
#define WAITING_LIMIT	MIB(4) /* that wait for the guest's buffers */
#define BATCH		64     /* frames, then others have their turn */
#define SOCKET_BYTES	MIB(1) /* asked for; the system gives less */
#define PARTS_MAX	256    /* a frame in more pieces is copied first */
#define JOIN_TRIES	5
#define NAME_BYTES	16 /* of a port: its number in hexadecimal */

struct switch_peer {
	struct switch_net *in;
	struct switch_peer *next;
	uint64_t port;
	int fd;
	struct loop_source *source;
	struct frame_queue queue;
	bool dead; /* to be removed when nobody walks the list */
};

struct station {
	uint8_t mac[6];
	struct switch_peer *peer; /* NULL: free */
	uint64_t heard_ns;
};

struct switch_net {
	struct net net;
	struct loop *loop;
	struct net_peer card;
	unsigned takes;
	uint16_t mtu;
	uint64_t port;
	char directory[PATH_MAX];
	int directory_fd, fd, inotify_fd;
	struct loop_source *source, *inotify_source;
	struct loop_call bury_call;
	struct switch_peer *peers;
	unsigned peer_count;
	struct station station[STATIONS];
	struct frame_queue waiting;
	uint8_t datagram[SWITCH_HEADER_BYTES + OFFLOAD_FRAME_MAX];
	uint8_t room[OFFLOAD_FRAME_MAX];
};

struct switch_net *switch_of(struct net *net)
{
	return container_of(net, struct switch_net, net);
}

unsigned switch_peers(const struct switch_net *s)
{
	return s->peer_count;
}

/* ---- who is where ---- */

static struct station *station_of(struct switch_net *s, const uint8_t *mac)
{
	uint32_t hash = (load_le32(mac) ^ load_le16(mac + 4)) * 0x9e3779b1u;

	return &s->station[hash >> 22 & (STATIONS - 1)];
}

static void learn(struct switch_net *s, const uint8_t *mac, struct switch_peer *peer)
{
	struct station *station = station_of(s, mac);

	if (mac[0] & 1)
		return;
	memcpy(station->mac, mac, 6);
	station->peer = peer;
	station->heard_ns = clock_monotonic_ns();
}

/* NULL: everybody. */
static struct switch_peer *look_up(struct switch_net *s, const uint8_t *mac)
{
	struct station *station = station_of(s, mac);

	if (mac[0] & 1 || !station->peer || memcmp(station->mac, mac, 6) ||
		clock_monotonic_ns() - station->heard_ns > STATION_LIFE_NS)
		return NULL;
	return station->peer;
}

static void forget(struct switch_net *s, const struct switch_peer *peer)
{
	for (unsigned i = 0; i < STATIONS; i++)
		if (s->station[i].peer == peer)
			s->station[i].peer = NULL;
}

/* ---- peers ---- */

static void port_name(uint64_t port, char name[NAME_BYTES + 1])
{
	snprintf(name, NAME_BYTES + 1, "%016" PRIx64, port);
}

static bool parse_port(const char *name, uint64_t *ret_port)
{
	*ret_port = 0;
	for (unsigned i = 0; i < NAME_BYTES; i++) {
		const char *digits = "0123456789abcdef", *digit = strchr(digits, name[i]);
		if (!name[i] || !digit)
			return false;
		*ret_port = *ret_port << 4 | (uint64_t)(digit - digits);
	}
	return !name[NAME_BYTES];
}

static struct switch_peer *find_peer(struct switch_net *s, uint64_t port)
{
	struct switch_peer *peer = s->peers;

	while (peer && (peer->port != port || peer->dead))
		peer = peer->next;
	return peer;
}

static int address_of(const struct switch_net *s, const char *name, struct sockaddr_un *ret)
{
	*ret = (struct sockaddr_un){.sun_family = AF_UNIX};
	int length = snprintf(ret->sun_path, sizeof(ret->sun_path), "%s/%s", s->directory, name);
	return length < 0 || (size_t)length >= sizeof(ret->sun_path) ? -ENAMETOOLONG : 0;
}

static int new_socket(void)
{
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int bytes = SOCKET_BYTES;

	if (fd >= 0)
		setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
	return fd < 0 ? -errno : fd;
}

static void free_peer(struct switch_peer *peer)
{
	forget(peer->in, peer);
	peer->in->peer_count--;
	loop_remove(peer->source);
	close(peer->fd);
	frame_queue_done(&peer->queue);
	free(peer);
}

static void bury(void *opaque)
{
	struct switch_net *s = opaque;

	for (struct switch_peer **link = &s->peers; *link;) {
		struct switch_peer *peer = *link;
		if (peer->dead) {
			*link = peer->next;
			free_peer(peer);
		} else {
			link = &peer->next;
		}
	}
}

static void peer_died(struct switch_peer *peer)
{
	char name[NAME_BYTES + 1];

	if (peer->dead)
		return;
	peer->dead = true;
	forget(peer->in, peer);
	port_name(peer->port, name);
	unlinkat(peer->in->directory_fd, name, 0);
	loop_post(peer->in->loop, &peer->in->bury_call);
}

static void peer_writable(void *opaque, uint32_t events);

/* Connects to a port that is in the directory. One that refuses is dead. */
static void add_peer(struct switch_net *s, const char *name)
{
	AUTO_FREE struct switch_peer *peer = NULL;
	struct sockaddr_un address;
	uint64_t port;

	if (!parse_port(name, &port) || port == s->port || find_peer(s, port) ||
		s->peer_count == PEERS_MAX || address_of(s, name, &address) < 0)
		return;
	AUTO_CLOSE int fd = new_socket();
	if (fd < 0)
		return;
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		if (errno == ECONNREFUSED)
			unlinkat(s->directory_fd, name, 0);
		return;
	}
	peer = calloc(1, sizeof(*peer));
	if (!peer)
		return;
	frame_queue_init(&peer->queue, PEER_LIMIT);
	peer->in = s;
	peer->port = port;
	if (loop_add(s->loop, fd, 0, peer_writable, peer, &peer->source) < 0)
		return;
	peer->fd = take_fd(&fd);
	peer->next = s->peers;
	s->peers = take_ptr(&peer);
	s->peer_count++;
}

static void scan(struct switch_net *s)
{
	int fd = openat(s->directory_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	AUTO_CLOSEDIR DIR *dir = fd < 0 ? NULL : fdopendir(fd);

	if (!dir) {
		if (fd >= 0)
			close(fd);
		return;
	}
	for (struct dirent *entry; (entry = readdir(dir));)
		add_peer(s, entry->d_name);
}

/* A port came, or went in good order. */
static void directory_changed(void *opaque, uint32_t events)
{
	struct switch_net *s = opaque;
	uint8_t bytes[4096] __attribute__((aligned(__alignof__(struct inotify_event))));
	ssize_t size = read(s->inotify_fd, bytes, sizeof(bytes));
	uint64_t port;

	for (ssize_t at = 0; at < size;) {
		const struct inotify_event *event = (const void *)(bytes + at);
		if (event->mask & IN_Q_OVERFLOW)
			scan(s);
		else if (event->len && event->mask & IN_MOVED_TO)
			add_peer(s, event->name);
		else if (event->len && event->mask & IN_DELETE && parse_port(event->name, &port)) {
			struct switch_peer *peer = find_peer(s, port);
			if (peer)
				peer_died(peer);
		}
		at += (ssize_t)(sizeof(*event) + event->len);
	}
}

/* ---- to others ---- */

/* 0: sent; -EAGAIN: no room; other errors: it never will be. */
static int send_datagram(struct switch_peer *peer, const struct net_offload *offload,
	const struct iovec *iov, unsigned iov_count)
{
	uint8_t header[SWITCH_HEADER_BYTES];
	struct iovec all[PARTS_MAX + 1];
	struct msghdr message = {.msg_iov = all, .msg_iovlen = iov_count + 1};

	store_le32(header, SWITCH_MAGIC);
	store_le64(header + 4, peer->in->port);
	net_offload_store(header + 12, offload);
	all[0] = (struct iovec){header, sizeof(header)};
	memcpy(all + 1, iov, iov_count * sizeof(*iov));
	if (sendmsg(peer->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
		return 0;
	/* No buffers in the kernel is no room too, but nobody tells when there is: dropped. */
	return errno == EINTR ? -EAGAIN : -errno;
}

static void failed(struct switch_peer *peer, int status)
{
	if (status == -ECONNREFUSED || status == -ENOTCONN || status == -ECONNRESET ||
		status == -EPIPE)
		peer_died(peer);
}

static void send_to(struct switch_peer *peer, const struct net_offload *offload,
	const struct iovec *iov, unsigned iov_count)
{
	int status = -EAGAIN;

	if (peer->dead)
		return;
	if (!peer->queue.first)
		status = send_datagram(peer, offload, iov, iov_count);
	if (status == -EAGAIN) {
		if (frame_queue_put(&peer->queue, offload, iov, iov_count))
			(void)!loop_change(peer->source, EPOLLOUT);
	} else if (status < 0) {
		failed(peer, status);
	}
}

static void peer_writable(void *opaque, uint32_t events)
{
	struct switch_peer *peer = opaque;

	for (unsigned i = 0; peer->queue.first && i < BATCH; i++) {
		struct queued_frame *frame = peer->queue.first;
		struct iovec iov = {frame->frame, frame->bytes};
		int status = send_datagram(peer, &frame->offload, &iov, 1);
		if (status == -EAGAIN)
			return;
		if (status < 0)
			failed(peer, status);
		frame_queue_drop_first(&peer->queue);
	}
	if (peer->queue.first)
		return;
	/* An error or a hang-up with nothing to send: the socket tells when it is written to. */
	if (!(events & EPOLLOUT) && events & (EPOLLERR | EPOLLHUP))
		peer_died(peer);
	else
		(void)!loop_change(peer->source, 0);
}

static void switch_send(struct net *net, const struct net_offload *offload, const struct iovec *iov,
	unsigned iov_count)
{
	struct switch_net *s = switch_of(net);
	struct net_offload said = *offload;
	struct iovec whole;
	uint8_t mac[12];

	said.header_bytes = 0; /* a guest's hint */
	if (offload_gather(mac, sizeof(mac), iov, iov_count, 0) < sizeof(mac))
		return;
	if (iov_count > PARTS_MAX) {
		whole.iov_base = s->room;
		whole.iov_len = offload_gather(s->room, sizeof(s->room), iov, iov_count, 0);
		iov = &whole;
		iov_count = 1;
	}
	struct switch_peer *peer = look_up(s, mac);
	if (peer) {
		send_to(peer, &said, iov, iov_count);
		return;
	}
	for (peer = s->peers; peer; peer = peer->next)
		send_to(peer, &said, iov, iov_count);
}

/* ---- from others ---- */

static void give(void *opaque, const struct net_offload *offload, uint8_t *frame, size_t bytes)
{
	struct switch_net *s = opaque;
	struct iovec iov = {frame, bytes};

	frame_queue_receive(&s->waiting, &s->card, offload, &iov, 1);
}

void switch_input(struct switch_net *s, uint8_t *datagram, size_t bytes)
{
	uint8_t *frame = datagram + SWITCH_HEADER_BYTES;
	struct net_offload offload;

	if (bytes < SWITCH_HEADER_BYTES || load_le32(datagram) != SWITCH_MAGIC)
		return;
	bytes -= SWITCH_HEADER_BYTES;
	net_offload_load(&offload, datagram + 12);
	offload.flags &= NET_NEEDS_CSUM;
	offload.header_bytes = offload.buffers = 0;
	if (!net_offload_check(&offload, bytes))
		return;
	/* One that is not known yet is soon. */
	struct switch_peer *from = find_peer(s, load_le64(datagram + 4));
	if (from)
		learn(s, frame + 6, from);
	/* A receiver is told how long the headers are, and trusts it: found out here. */
	struct frame_layout l;
	if (offload.gso_type != NET_GSO_NONE) {
		if (!offload_layout(frame, bytes, true, &l))
			return;
		offload.header_bytes = (uint16_t)l.payload;
	}
	offload_complete(s->takes, &offload, frame, bytes, s->room, give, s);
}

static void switch_wait(struct switch_net *s)
{
	/* While frames wait for the guest the senders do. */
	(void)!loop_change(s->source, s->waiting.first || !s->card.receive ? 0 : EPOLLIN);
}

static void switch_readable(void *opaque, uint32_t events)
{
	struct switch_net *s = opaque;

	for (unsigned i = 0; i < BATCH && !s->waiting.first; i++) {
		ssize_t size =
			recv(s->fd, s->datagram, sizeof(s->datagram), MSG_DONTWAIT | MSG_TRUNC);
		if (size < 0)
			break;
		if ((size_t)size <= sizeof(s->datagram))
			switch_input(s, s->datagram, (size_t)size);
	}
	switch_wait(s);
}

/* ---- the network ---- */

static void switch_attach(struct net *net, const struct net_peer *peer, unsigned takes)
{
	struct switch_net *s = switch_of(net);

	s->card = peer ? *peer : (struct net_peer){0};
	s->takes = takes;
	frame_queue_done(&s->waiting);
	switch_wait(s);
}

static unsigned switch_features(struct net *net)
{
	return NET_CSUM | NET_TSO4 | NET_TSO6 | NET_USO;
}

static uint16_t switch_mtu(struct net *net)
{
	return switch_of(net)->mtu;
}

static void switch_ready(struct net *net)
{
	struct switch_net *s = switch_of(net);

	frame_queue_flush(&s->waiting, &s->card);
	switch_wait(s);
}

static void switch_close(struct net *net)
{
	struct switch_net *s = switch_of(net);
	char name[NAME_BYTES + 1];

	loop_cancel(s->loop, &s->bury_call);
	while (s->peers) {
		struct switch_peer *peer = s->peers;
		s->peers = peer->next;
		free_peer(peer);
	}
	loop_remove(s->source);
	loop_remove(s->inotify_source);
	if (s->directory_fd >= 0) {
		port_name(s->port, name);
		unlinkat(s->directory_fd, name, 0);
		close(s->directory_fd);
		/* Goes if it is empty. Who joins meanwhile makes it again. */
		rmdir(s->directory);
	}
	if (s->fd >= 0)
		close(s->fd);
	if (s->inotify_fd >= 0)
		close(s->inotify_fd);
	frame_queue_done(&s->waiting);
	free(s);
}

static const struct net_ops switch_ops = {
	.attach = switch_attach,
	.features = switch_features,
	.mtu = switch_mtu,
	.send = switch_send,
	.ready = switch_ready,
	.close = switch_close,
};

/* ---- joining ---- */

bool switch_name_valid(const char *name)
{
	size_t length = strlen(name);

	for (size_t i = 0; i < length; i++)
		if (!isalnum((unsigned char)name[i]) && !strchr("-_.", name[i]))
			return false;
	return length && length < NETWORK_NAME_MAX && name[0] != '.';
}

/* A directory that is the user's alone. */
static int make_private(const char *path, struct error *err)
{
	struct stat st;

	if (mkdir(path, 0700) < 0 && errno != EEXIST)
		return error_set_errno(err, errno, "can't make directory %s for the switch", path);
	if (lstat(path, &st) < 0)
		return error_set_errno(
			err, errno, "can't look at directory %s of the switch", path);
	if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || st.st_mode & 077)
		return error_set(err, EPERM,
			"%s must be a directory of yours that nobody else may enter (chmod 700): the switch's "
			"sockets are in it",
			path);
	return 0;
}

/* $XDG_RUNTIME_DIR/lodge/switch-NAME, or /tmp/lodge-UID/switch-NAME. */
static int make_directory(struct switch_net *s, const char *name, struct error *err)
{
	const char *runtime = getenv("XDG_RUNTIME_DIR");
	char parent[PATH_MAX - 64];
	int length;

	if (runtime && runtime[0] == '/')
		length = snprintf(parent, sizeof(parent), "%s/lodge", runtime);
	else
		length = snprintf(parent, sizeof(parent), "/tmp/lodge-%u", (unsigned)geteuid());
	if (length < 0 || (size_t)length >= sizeof(parent))
		return error_set(err, ENAMETOOLONG, "$XDG_RUNTIME_DIR is too long");
	int status = make_private(parent, err);
	if (status < 0)
		return status;
	snprintf(s->directory, sizeof(s->directory), "%s/switch-%s", parent, name);
	return make_private(s->directory, err);
}

/* Bind under a hidden name, then take the real one. -ENOENT: the directory was removed meanwhile. */
static int make_port(struct switch_net *s)
{
	char hidden[NAME_BYTES + 2] = ".", name[NAME_BYTES + 1];
	struct sockaddr_un address;

	if (getrandom(&s->port, sizeof(s->port), 0) != sizeof(s->port))
		return -errno;
	port_name(s->port, name);
	port_name(s->port, hidden + 1);
	int status = address_of(s, hidden, &address);
	if (status < 0)
		return status;
	s->fd = new_socket();
	if (s->fd < 0)
		return s->fd;
	if (bind(s->fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return -errno;
	return renameat(s->directory_fd, hidden, s->directory_fd, name) < 0 ? -errno : 0;
}

static int try_to_join(struct switch_net *s)
{
	s->directory_fd = open(s->directory, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (s->directory_fd < 0)
		return -errno;
	s->inotify_fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	/* Watched before the scan: who comes in between is seen twice, and nobody never. */
	if (s->inotify_fd < 0 || inotify_add_watch(s->inotify_fd, s->directory,
					 IN_MOVED_TO | IN_DELETE | IN_ONLYDIR) < 0)
		return -errno;
	return make_port(s);
}

static void leave(struct switch_net *s)
{
	int *fds[] = {&s->directory_fd, &s->inotify_fd, &s->fd};

	for (unsigned i = 0; i < ARRAY_SIZE(fds); i++) {
		if (*fds[i] >= 0)
			close(*fds[i]);
		*fds[i] = -1;
	}
}

static int join(struct switch_net *s, const char *name, struct error *err)
{
	int status = -ENOENT;

	/* The last one to leave may remove the directory under us. */
	for (unsigned i = 0; i < JOIN_TRIES && status == -ENOENT; i++) {
		leave(s);
		status = make_directory(s, name, err);
		if (status < 0)
			return status;
		status = try_to_join(s);
	}
	if (status == -ENAMETOOLONG)
		return error_set(err, ENAMETOOLONG,
			"the directory of switch %s has too long a name for sockets: %s", name,
			s->directory);
	if (status < 0)
		return error_set_errno(
			err, -status, "can't join switch %s in %s", name, s->directory);
	status = loop_add(s->loop, s->fd, 0, switch_readable, s, &s->source);
	if (status == 0)
		status = loop_add(
			s->loop, s->inotify_fd, EPOLLIN, directory_changed, s, &s->inotify_source);
	if (status < 0)
		return error_set_errno(err, -status, "can't wait for switch %s", name);
	scan(s);
	return 0;
}

int switch_open(
	const struct network_spec *spec, struct loop *loop, struct net **ret_net, struct error *err)
{
	struct switch_net *s = calloc(1, sizeof(*s));

	if (!s)
		return error_set(err, ENOMEM, "no memory for a network");
	s->net.ops = &switch_ops;
	s->loop = loop;
	s->mtu = spec->mtu ? spec->mtu : NETWORK_MTU_DEFAULT;
	s->directory_fd = s->fd = s->inotify_fd = -1;
	s->bury_call = (struct loop_call){.fn = bury, .opaque = s};
	frame_queue_init(&s->waiting, WAITING_LIMIT);
	int status = join(s, spec->name, err);
	if (status < 0) {
		switch_close(&s->net);
		return status;
	}
	*ret_net = &s->net;
	return 0;
}
