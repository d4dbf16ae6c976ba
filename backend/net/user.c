/*
 * User-mode networking: a router with DHCP and DNS for one guest, whose connections are sockets of this process (NAT),
 * by libslirp. Needs no permission. Addresses are QEMU's: guest 10.0.2.15, router and host 10.0.2.2, DNS 10.0.2.3;
 * IPv6 fec0::/64.
 *
 * libslirp knows neither checksums left to do nor segmentation, and takes frames up to 65520 bytes. So:
 * - A large TCP frame of the guest's is given to it as one large packet; only the checksum is made here.
 * - libslirp sends as large as the guest's maximum segment size (MSS) option permits. A guest that takes TCP work has
 *   the option raised on its way, if it says no more than that its MTU is the card's; and the large frames that come are
 *   given to the guest as that: a number of segments of its own size.
 * That is where the speed is: most costs are by frame.
 *
 * Its sockets are in an epoll set of ours, which is in the loop. serve() is the one place that lets libslirp look at
 * them; it is called when one is ready, when a timer is due, and after each batch of the guest's frames.
 */
#include "backend/net/network.h"

#include "backend/net/offload.h"
#include "backend/net/queue.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/loop.h"

#include <arpa/inet.h>
#include <errno.h>
#include <slirp/libslirp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#define SLIRP_MTU     65520u /* the largest it can be configured for */
#define SLIRP_MSS     (SLIRP_MTU - 60)
#define HEAD_BYTES    160u /* Ethernet, and the largest IPv4 and TCP headers */
#define WAITING_LIMIT MIB(8)
#define WAITING_HIGH  MIB(1) /* no more is read from the host */
#define ROUNDS_MAX    4	     /* of serving, then others have their turn */
#define EVENTS	      64

struct poll_slot {
	int fd;
	uint32_t wanted, got;
};

struct user {
	struct net net;
	struct loop *loop;
	Slirp *slirp;
	struct net_peer peer;
	unsigned takes;
	uint16_t mtu;
	struct frame_queue waiting; /* for the guest's buffers */
	struct log_limit limit;

	int poll_fd;
	struct loop_source *source;
	struct loop_timer *timer;
	uint64_t deadline_ns; /* the timer's; 0: not armed */
	struct loop_call call;
	struct poll_slot *slot; /* what libslirp wants, in its order */
	unsigned slots, slot_capacity;
	struct watched {	/* by file descriptor */
		uint32_t armed; /* events in the epoll set; 0: not in it */
		unsigned slot;	/* valid in this round if `round` is the current one */
		uint64_t round;
	} * watched;
	unsigned watched_count;
	uint64_t round;

	uint8_t frame[OFFLOAD_FRAME_MAX], room[OFFLOAD_FRAME_MAX];
};

struct user_timer {
	struct user *user;
	struct loop_timer *timer;
	SlirpTimerId id;
	void *cb_opaque;
};

static struct user *user_of(struct net *net)
{
	return container_of(net, struct user, net);
}

/* ---- to the guest ---- */

static bool takes_tcp(const struct user *user, bool ipv6)
{
	return user->takes & (ipv6 ? NET_TSO6 : NET_TSO4);
}

static bool is_ipv6(const uint8_t *frame, size_t bytes)
{
	return bytes > 14 && frame[12] == 0x86 && frame[13] == 0xdd;
}

/* Of the guest's TCP segments, on a card of this MTU. */
static uint16_t guest_mss(const struct user *user, bool ipv6)
{
	return (uint16_t)(user->mtu - (ipv6 ? 60 : 40));
}

static void give(void *opaque, uint8_t *frame, size_t bytes)
{
	struct user *user = opaque;
	struct net_offload offload = {.flags = user->takes & NET_CSUM ? NET_DATA_VALID : 0};
	struct iovec iov = {frame, bytes};

	frame_queue_receive(&user->waiting, &user->peer, &offload, &iov, 1);
}

/* A frame longer than the guest's MTU, to a guest that takes no such. */
static void give_in_parts(struct user *user, const uint8_t *frame, size_t bytes)
{
	struct frame_layout l;
	bool done;

	if (offload_layout(frame, bytes, false, &l) && l.protocol == IPPROTO_TCP)
		done = offload_cut(frame, bytes, guest_mss(user, l.ipv6), user->room,
			sizeof(user->room), give, user);
	else
		done = offload_fragment(
			frame, bytes, user->mtu, user->room, sizeof(user->room), give, user);
	if (!done)
		give(user, (uint8_t *)frame, bytes);
}

static ssize_t slirp_sends(const void *bytes, size_t size, void *opaque)
{
	struct user *user = opaque;
	const uint8_t *frame = bytes;
	uint8_t head[HEAD_BYTES];
	size_t head_bytes = MIN(size, sizeof(head));
	bool ipv6 = is_ipv6(frame, size);
	struct net_offload offload = {.flags = user->takes & NET_CSUM ? NET_DATA_VALID : 0};

	if (size > user->mtu + 14u && !takes_tcp(user, ipv6)) {
		give_in_parts(user, frame, size);
		return (ssize_t)size;
	}
	memcpy(head, frame, head_bytes);
	if (takes_tcp(user, ipv6))
		(void)offload_bundle(head, head_bytes, size, guest_mss(user, ipv6), &offload);
	struct iovec iov[2] = {
		{head, head_bytes}, {(uint8_t *)frame + head_bytes, size - head_bytes}};
	frame_queue_receive(&user->waiting, &user->peer, &offload, iov, 2);
	return (ssize_t)size;
}

/* ---- from the guest ---- */

static void input(void *opaque, uint8_t *frame, size_t bytes)
{
	if (bytes <= SLIRP_MTU + 14)
		slirp_input(((struct user *)opaque)->slirp, frame, (int)bytes);
}

static void user_send(struct net *net, const struct net_offload *offload, const struct iovec *iov,
	unsigned iov_count)
{
	struct user *user = user_of(net);
	/* The guest may write it meanwhile: a copy. */
	size_t bytes = offload_gather(user->frame, sizeof(user->frame), iov, iov_count, 0);
	bool ipv6 = is_ipv6(user->frame, bytes);

	loop_post(user->loop, &user->call);
	if (offload->gso_type == NET_GSO_NONE && takes_tcp(user, ipv6))
		(void)offload_raise_mss(user->frame, bytes, offload->flags & NET_NEEDS_CSUM,
			guest_mss(user, ipv6), SLIRP_MSS);
	offload_whole(offload, user->frame, bytes, SLIRP_MTU, user->room, input, user);
}

/* ---- sockets ---- */

static const struct {
	int slirp;
	uint32_t epoll;
} event_names[] = {
	{SLIRP_POLL_IN, EPOLLIN},
	{SLIRP_POLL_OUT, EPOLLOUT},
	{SLIRP_POLL_PRI, EPOLLPRI},
	{SLIRP_POLL_ERR, EPOLLERR},
	{SLIRP_POLL_HUP, EPOLLHUP},
};

static bool watch_room(struct user *user, int fd)
{
	unsigned count = user->watched_count;

	if ((unsigned)fd < count)
		return true;
	count = MAX((unsigned)fd + 1, count * 2);
	struct watched *more = realloc(user->watched, count * sizeof(*more));
	if (!more)
		return false;
	memset(more + user->watched_count, 0, (count - user->watched_count) * sizeof(*more));
	user->watched = more;
	user->watched_count = count;
	return true;
}

static bool slot_room(struct user *user)
{
	unsigned capacity = MAX(32u, user->slot_capacity * 2);

	if (user->slots < user->slot_capacity)
		return true;
	struct poll_slot *more = realloc(user->slot, capacity * sizeof(*more));
	if (!more)
		return false;
	user->slot = more;
	user->slot_capacity = capacity;
	return true;
}

static int slirp_wants(int fd, int events, void *opaque)
{
	struct user *user = opaque;
	struct poll_slot slot = {.fd = fd};

	for (unsigned i = 0; i < ARRAY_SIZE(event_names); i++)
		if (events & event_names[i].slirp)
			slot.wanted |= event_names[i].epoll;
	if (fd < 0 || !slot.wanted || !watch_room(user, fd) || !slot_room(user))
		return -1;
	user->watched[fd].slot = user->slots;
	user->watched[fd].round = user->round;
	user->slot[user->slots] = slot;
	return (int)user->slots++;
}

static int slirp_asks(int index, void *opaque)
{
	const struct user *user = opaque;
	int events = 0;

	if (index < 0 || (unsigned)index >= user->slots)
		return 0;
	for (unsigned i = 0; i < ARRAY_SIZE(event_names); i++)
		if (user->slot[index].got & event_names[i].epoll)
			events |= event_names[i].slirp;
	return events;
}

/* Make the epoll set what was asked for. A descriptor may have been closed and opened again behind our back. */
static void arm(struct user *user, int fd, uint32_t wanted)
{
	struct epoll_event event = {.events = wanted, .data.fd = fd};
	struct watched *w = &user->watched[fd];

	if (w->armed == wanted)
		return;
	if (!wanted) {
		epoll_ctl(user->poll_fd, EPOLL_CTL_DEL, fd, NULL);
	} else {
		int op = w->armed ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
		int other = w->armed ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
		if (epoll_ctl(user->poll_fd, op, fd, &event) < 0 &&
			epoll_ctl(user->poll_fd, other, fd, &event) < 0)
			wanted = 0;
	}
	w->armed = wanted;
}

static void slirp_opened(int fd, void *opaque)
{
	struct user *user = opaque;

	/* A new socket: nothing known of the number holds. */
	if (fd >= 0 && watch_room(user, fd))
		user->watched[fd].armed = 0;
}

static void slirp_closes(int fd, void *opaque)
{
	struct user *user = opaque;

	if (fd >= 0 && (unsigned)fd < user->watched_count)
		arm(user, fd, 0);
}

/* An earlier deadline than wanted is left alone: it costs less to serve once too often than to set it each time. */
static void timeout_to_timer(struct user *user, uint32_t timeout_ms)
{
	if (timeout_ms == UINT32_MAX)
		return;
	uint64_t deadline_ns = clock_monotonic_ns() + timeout_ms * NS_PER_MS;
	if (user->deadline_ns && user->deadline_ns <= deadline_ns)
		return;
	user->deadline_ns = deadline_ns;
	loop_timer_arm(user->timer, deadline_ns);
}

/* What does libslirp wait for now? */
static void fill(struct user *user)
{
	uint32_t timeout_ms = UINT32_MAX;

	user->slots = 0;
	user->round++;
	slirp_pollfds_fill(user->slirp, &timeout_ms, slirp_wants, user);
	for (unsigned fd = 0; fd < user->watched_count; fd++) {
		struct watched *w = &user->watched[fd];
		arm(user, (int)fd, w->round == user->round ? user->slot[w->slot].wanted : 0);
	}
	timeout_to_timer(user, timeout_ms);
}

/* Returns how many are ready. */
static int look(struct user *user)
{
	struct epoll_event events[EVENTS];
	int count = epoll_wait(user->poll_fd, events, EVENTS, 0);

	for (int i = 0; i < count; i++) {
		const struct watched *w = &user->watched[events[i].data.fd];
		struct poll_slot *slot = &user->slot[w->slot];
		if (w->round == user->round)
			slot->got = events[i].events & slot->wanted;
	}
	return count;
}

/* Too much waits for the guest: let the host's senders wait too. */
static bool is_full(struct user *user)
{
	bool full = user->waiting.bytes > WAITING_HIGH;

	/* Can't fail: nothing is allocated. */
	(void)!loop_change(user->source, full ? 0 : EPOLLIN);
	return full;
}

static void serve(struct user *user)
{
	for (unsigned i = 0; i < ROUNDS_MAX && !is_full(user); i++) {
		fill(user);
		if (!look(user))
			return;
		slirp_pollfds_poll(user->slirp, 0, slirp_asks, user);
	}
	loop_post(user->loop, &user->call);
}

static void sockets_ready(void *opaque, uint32_t events)
{
	serve(opaque);
}

static void posted(void *opaque)
{
	serve(opaque);
}

static void timer_due(void *opaque)
{
	struct user *user = opaque;

	user->deadline_ns = 0;
	/* With nothing ready, for its timers' sake. */
	fill(user);
	slirp_pollfds_poll(user->slirp, 0, slirp_asks, user);
	serve(user);
}

/* ---- libslirp's other wishes ---- */

static int64_t slirp_clock(void *opaque)
{
	return (int64_t)clock_monotonic_ns();
}

static void slirp_complains(const char *message, void *opaque)
{
	log_limited(&((struct user *)opaque)->limit, LOG_LEVEL_DEBUG, "net", "%s", message);
}

static void own_timer_due(void *opaque)
{
	struct user_timer *t = opaque;

	slirp_handle_timer(t->user->slirp, t->id, t->cb_opaque);
}

static void *slirp_timer_new(SlirpTimerId id, void *cb_opaque, void *opaque)
{
	struct user *user = opaque;
	struct user_timer *t = calloc(1, sizeof(*t));

	if (!t)
		abort(); /* libslirp does the same when memory ends */
	*t = (struct user_timer){.user = user, .id = id, .cb_opaque = cb_opaque};
	t->timer = loop_timer_create(user->loop, own_timer_due, t);
	if (!t->timer)
		abort();
	return t;
}

static void slirp_timer_free(void *timer, void *opaque)
{
	struct user_timer *t = timer;

	if (t)
		loop_timer_free(t->timer);
	free(t);
}

static void slirp_timer_set(void *timer, int64_t expire_ms, void *opaque)
{
	loop_timer_arm(
		((struct user_timer *)timer)->timer, (uint64_t)MAX(expire_ms, 0) * NS_PER_MS);
}

static void slirp_notifies(void *opaque)
{
	struct user *user = opaque;

	loop_post(user->loop, &user->call);
}

static const SlirpCb slirp_calls = {
	.send_packet = slirp_sends,
	.guest_error = slirp_complains,
	.clock_get_ns = slirp_clock,
	.timer_free = slirp_timer_free,
	.timer_mod = slirp_timer_set,
	.register_poll_fd = slirp_opened,
	.unregister_poll_fd = slirp_closes,
	.notify = slirp_notifies,
	.timer_new_opaque = slirp_timer_new,
};

/* ---- the network ---- */

static void user_attach(struct net *net, const struct net_peer *peer, unsigned takes)
{
	struct user *user = user_of(net);

	user->peer = peer ? *peer : (struct net_peer){0};
	user->takes = takes;
	frame_queue_done(&user->waiting);
	/* What was not read while the queue was full can be now. */
	loop_post(user->loop, &user->call);
}

static unsigned user_features(struct net *net)
{
	return NET_CSUM | NET_TSO4 | NET_TSO6 | NET_USO;
}

static uint16_t user_mtu(struct net *net)
{
	return user_of(net)->mtu;
}

static void user_ready(struct net *net)
{
	struct user *user = user_of(net);

	frame_queue_flush(&user->waiting, &user->peer);
	loop_post(user->loop, &user->call);
}

static void user_close(struct net *net)
{
	struct user *user = user_of(net);

	user->peer = (struct net_peer){0};
	if (user->slirp)
		slirp_cleanup(user->slirp);
	loop_cancel(user->loop, &user->call);
	loop_remove(user->source);
	loop_timer_free(user->timer);
	if (user->poll_fd >= 0)
		close(user->poll_fd);
	frame_queue_done(&user->waiting);
	free(user->slot);
	free(user->watched);
	free(user);
}

static const struct net_ops user_ops = {
	.attach = user_attach,
	.features = user_features,
	.mtu = user_mtu,
	.send = user_send,
	.ready = user_ready,
	.close = user_close,
};

static int refuse_forward(const struct network_forward *forward, int code, struct error *err)
{
	const char *kind = forward->udp ? "UDP port" : "port";
	char owner[128];

	if (code == EADDRINUSE &&
		port_owner(forward->udp, forward->host_port, owner, sizeof(owner)))
		return error_set(err, code, "%s %u of this host is taken by %s: forward another",
			kind, forward->host_port, owner);
	if (code == EADDRINUSE)
		return error_set(err, code, "%s %u of this host is taken: forward another", kind,
			forward->host_port);
	if (code == EACCES || code == EPERM)
		return error_set(err, code,
			"%s %u of this host is for root only: forward one from 1024 on", kind,
			forward->host_port);
	if (code == EADDRNOTAVAIL)
		return error_set(
			err, code, "%s is no address of this host", inet_ntoa(forward->host));
	return error_set_errno(
		err, code, "can't forward %s %u of this host", kind, forward->host_port);
}

static int add_forwards(struct user *user, const struct network_spec *spec, struct error *err)
{
	for (unsigned i = 0; i < spec->forward_count; i++) {
		const struct network_forward *f = &spec->forward[i];
		errno = 0;
		if (slirp_add_hostfwd(user->slirp, f->udp, f->host, f->host_port,
			    (struct in_addr){0}, f->guest_port) < 0)
			return refuse_forward(f, errno ? errno : EADDRINUSE, err);
	}
	return 0;
}

static void configure(const struct network_spec *spec, SlirpConfig *c)
{
	*c = (SlirpConfig){
		.version = 4,
		.restricted = spec->isolated,
		.in_enabled = true,
		.in6_enabled = !spec->no_ipv6,
		.vprefix_len = 64,
		.if_mtu = SLIRP_MTU,
		.if_mru = SLIRP_MTU,
		.disable_host_loopback = spec->no_host,
	};
	inet_pton(AF_INET, "10.0.2.0", &c->vnetwork);
	inet_pton(AF_INET, "255.255.255.0", &c->vnetmask);
	inet_pton(AF_INET, "10.0.2.2", &c->vhost);
	inet_pton(AF_INET, "10.0.2.15", &c->vdhcp_start);
	inet_pton(AF_INET, "10.0.2.3", &c->vnameserver);
	inet_pton(AF_INET6, "fec0::", &c->vprefix_addr6);
	inet_pton(AF_INET6, "fec0::2", &c->vhost6);
	inet_pton(AF_INET6, "fec0::3", &c->vnameserver6);
}

int user_open(
	const struct network_spec *spec, struct loop *loop, struct net **ret_net, struct error *err)
{
	struct user *user = calloc(1, sizeof(*user));
	SlirpConfig config;

	if (!user)
		return error_set(err, ENOMEM, "no memory for a network");
	user->net.ops = &user_ops;
	user->loop = loop;
	user->mtu = spec->mtu ? spec->mtu : NETWORK_MTU_DEFAULT;
	user->call = (struct loop_call){.fn = posted, .opaque = user};
	frame_queue_init(&user->waiting, WAITING_LIMIT);
	user->poll_fd = epoll_create1(EPOLL_CLOEXEC);
	user->timer = loop_timer_create(loop, timer_due, user);
	int status = user->poll_fd < 0 ? -errno : !user->timer ? -ENOMEM : 0;
	if (status == 0)
		status = loop_add(loop, user->poll_fd, EPOLLIN, sockets_ready, user, &user->source);
	if (status < 0) {
		user_close(&user->net);
		return error_set_errno(err, -status, "can't make a user network");
	}
	configure(spec, &config);
	user->slirp = slirp_new(&config, &slirp_calls, user);
	status = user->slirp ? add_forwards(user, spec, err)
			     : error_set(err, ENOMEM, "libslirp can't make a user network");
	if (status < 0) {
		user_close(&user->net);
		return status;
	}
	loop_post(loop, &user->call);
	*ret_net = &user->net;
	return 0;
}
