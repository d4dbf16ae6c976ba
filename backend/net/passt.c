/*
 * Networking by passt: NAT in a process of its own, which confines itself; the guest has the host's own addresses. passt
 * is started by us and ends with us. Frames go over a stream socket, each behind its length (passt(1), "qemu socket
 * back-end": 32 bits, big endian).
 *
 * passt takes and gives complete frames up to 64 KiB, so the guest's MTU is large (65520) unless told otherwise, and
 * large TCP frames are given whole, as to libslirp (user.c).
 */
#include "backend/net/network.h"

#include "backend/net/offload.h"
#include "backend/net/queue.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"
#include "base/loop.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PASST_MTU     65520u
#define LENGTH_BYTES  4u
#define INPUT_BYTES   KIB(512)
#define OUTPUT_LIMIT  MIB(4)
#define WAITING_LIMIT MIB(2)
#define START_MS      150 /* one that can't run ends sooner than that */
#define ARGUMENTS_MAX (2 * NETWORK_FORWARDS_MAX + 16)
#define FORWARD_TEXT  48

struct passt {
	struct net net;
	struct net_peer peer;
	unsigned takes;
	uint16_t mtu;
	pid_t pid;
	int fd;
	struct loop_source *source; /* NULL: passt is gone */
	struct frame_queue waiting; /* for the guest */
	struct frame_queue output;  /* for the socket */
	size_t output_done;	    /* bytes of the first of them that are sent, with its length */
	size_t input_bytes;
	uint8_t input[INPUT_BYTES];
	uint8_t frame[OFFLOAD_FRAME_MAX], room[OFFLOAD_FRAME_MAX];
};

static struct passt *passt_of(struct net *net)
{
	return container_of(net, struct passt, net);
}

static void passt_wait(struct passt *p)
{
	uint32_t events = p->output.first ? EPOLLOUT : 0;

	if (!p->waiting.first && p->peer.receive)
		events |= EPOLLIN;
	if (p->source)
		(void)!loop_change(p->source, events);
}

static void lose(struct passt *p)
{
	log_warn("net", "passt has ended: the guest's cable is unplugged");
	loop_remove(p->source);
	p->source = NULL;
	frame_queue_done(&p->output);
	if (p->peer.link)
		p->peer.link(p->peer.opaque, false);
}

/* ---- to the guest ---- */

static void give(struct passt *p, uint8_t *frame, size_t bytes)
{
	struct net_offload offload = {.flags = p->takes & NET_CSUM ? NET_DATA_VALID : 0};
	struct iovec iov = {frame, bytes};

	frame_queue_receive(&p->waiting, &p->peer, &offload, &iov, 1);
}

/* Gives the frames that are complete. False: the stream makes no sense. */
static bool take_frames(struct passt *p)
{
	size_t at = 0;
	bool sane = true;

	while (p->input_bytes - at >= LENGTH_BYTES && !p->waiting.first) {
		uint32_t bytes = load_be32(p->input + at);
		sane = bytes <= OFFLOAD_FRAME_MAX;
		if (!sane || p->input_bytes - at - LENGTH_BYTES < bytes)
			break;
		give(p, p->input + at + LENGTH_BYTES, bytes);
		at += LENGTH_BYTES + bytes;
	}
	memmove(p->input, p->input + at, p->input_bytes - at);
	p->input_bytes -= at;
	return sane;
}

static void passt_readable(struct passt *p)
{
	ssize_t size = recv(
		p->fd, p->input + p->input_bytes, sizeof(p->input) - p->input_bytes, MSG_DONTWAIT);

	if (size < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (size > 0)
		p->input_bytes += (size_t)size;
	if (size <= 0 || !take_frames(p))
		lose(p);
}

/* ---- from the guest ---- */

/* The rest of the first frame that waits. 0, or negative as errno. */
static int send_first(struct passt *p)
{
	struct queued_frame *frame = p->output.first;
	uint8_t length[LENGTH_BYTES];
	size_t skip = p->output_done, in_length = skip < LENGTH_BYTES ? LENGTH_BYTES - skip : 0;
	size_t in_frame = skip < LENGTH_BYTES ? 0 : skip - LENGTH_BYTES;
	struct iovec iov[2] = {{length + LENGTH_BYTES - in_length, in_length},
		{frame->frame + in_frame, frame->bytes - in_frame}};
	struct msghdr message = {.msg_iov = iov, .msg_iovlen = 2};

	store_be32(length, (uint32_t)frame->bytes);
	ssize_t sent = sendmsg(p->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (sent < 0)
		return -errno;
	p->output_done += (size_t)sent;
	if (p->output_done < LENGTH_BYTES + frame->bytes)
		return -EAGAIN;
	p->output_done = 0;
	frame_queue_drop_first(&p->output);
	return 0;
}

static void send_waiting(struct passt *p)
{
	int status = 0;

	while (p->output.first && status == 0)
		status = send_first(p);
	if (status < 0 && status != -EAGAIN && status != -EINTR)
		lose(p);
}

static void emit(void *opaque, uint8_t *frame, size_t bytes)
{
	struct passt *p = opaque;
	struct iovec iov = {frame, bytes};

	(void)frame_queue_put(&p->output, &(struct net_offload){0}, &iov, 1);
}

static void passt_send(struct net *net, const struct net_offload *offload, const struct iovec *iov,
	unsigned iov_count)
{
	struct passt *p = passt_of(net);
	size_t bytes = offload_gather(p->frame, sizeof(p->frame), iov, iov_count, 0);

	if (!p->source)
		return;
	bool waited = p->output.first;
	offload_whole(offload, p->frame, bytes, PASST_MTU, p->room, emit, p);
	if (!waited && p->output.first) {
		send_waiting(p);
		if (p->output.first)
			passt_wait(p);
	}
}

static void passt_ready_events(void *opaque, uint32_t events)
{
	struct passt *p = opaque;

	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		passt_readable(p);
	if (p->source && events & EPOLLOUT)
		send_waiting(p);
	passt_wait(p);
}

/* ---- the network ---- */

static void passt_attach(struct net *net, const struct net_peer *peer, unsigned takes)
{
	struct passt *p = passt_of(net);

	p->peer = peer ? *peer : (struct net_peer){0};
	p->takes = takes;
	frame_queue_done(&p->waiting);
	passt_wait(p);
	if (!p->source && p->peer.link)
		p->peer.link(p->peer.opaque, false);
}

static unsigned passt_features(struct net *net)
{
	return NET_CSUM | NET_TSO4 | NET_TSO6 | NET_USO;
}

static uint16_t passt_mtu(struct net *net)
{
	return passt_of(net)->mtu;
}

static void passt_ready(struct net *net)
{
	struct passt *p = passt_of(net);

	frame_queue_flush(&p->waiting, &p->peer);
	/* What was read already comes before what was not. */
	if (!p->waiting.first && p->source && !take_frames(p))
		lose(p);
	passt_wait(p);
}

static void passt_close(struct net *net)
{
	struct passt *p = passt_of(net);

	loop_remove(p->source);
	if (p->fd >= 0)
		close(p->fd);
	if (p->pid > 0) {
		kill(p->pid, SIGTERM);
		while (waitpid(p->pid, NULL, 0) < 0 && errno == EINTR)
			;
	}
	frame_queue_done(&p->waiting);
	frame_queue_done(&p->output);
	free(p);
}

static const struct net_ops passt_ops = {
	.attach = passt_attach,
	.features = passt_features,
	.mtu = passt_mtu,
	.send = passt_send,
	.ready = passt_ready,
	.close = passt_close,
};

/* ---- starting it ---- */

struct arguments {
	const char *list[ARGUMENTS_MAX];
	unsigned count;
	char fd[16], mtu[16], forward[NETWORK_FORWARDS_MAX][FORWARD_TEXT];
};

static void add_argument(struct arguments *a, const char *option, const char *value)
{
	a->list[a->count++] = option;
	if (value)
		a->list[a->count++] = value;
	a->list[a->count] = NULL;
}

static void make_arguments(
	struct arguments *a, const struct passt *p, const struct network_spec *spec)
{
	char address[INET_ADDRSTRLEN];

	*a = (struct arguments){0};
	snprintf(a->fd, sizeof(a->fd), "%d", 3);
	snprintf(a->mtu, sizeof(a->mtu), "%u", p->mtu);
	add_argument(a, "passt", "--foreground");
	add_argument(a, "--quiet", "--stderr");
	add_argument(a, "--fd", a->fd);
	add_argument(a, "--mtu", a->mtu);
	for (unsigned i = 0; i < spec->forward_count; i++) {
		const struct network_forward *f = &spec->forward[i];
		inet_ntop(AF_INET, &f->host, address, sizeof(address));
		snprintf(a->forward[i], FORWARD_TEXT, "%s/%u:%u", address, f->host_port,
			f->guest_port);
		add_argument(a, f->udp ? "-u" : "-t", a->forward[i]);
	}
}

/* In the child: only what passt shall have. */
static _Noreturn void become_passt(int fd, const struct arguments *a)
{
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (fd == 3)
		fcntl(fd, F_SETFD, 0);
	else if (dup2(fd, 3) < 0)
		_exit(127);
	/* Standard input and output are the guest's console. */
	int null = open("/dev/null", O_RDWR);
	if (null >= 0) {
		dup2(null, 0);
		dup2(null, 1);
	}
	execvp("passt", (char *const *)a->list);
	_exit(errno == ENOENT ? 127 : 126);
}

/* Does it run? Whatever it has to complain about it says on stderr. */
static int check_started(struct passt *p, struct error *err)
{
	int status;

	for (unsigned ms = 0; ms < START_MS; ms += 10) {
		poll(NULL, 0, 10);
		if (waitpid(p->pid, &status, WNOHANG) != p->pid)
			continue;
		p->pid = 0;
		if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
			return error_set(err, ENOENT,
				"passt is not installed: install the package passt, or use --net user");
		return error_set(err, EIO,
			"passt could not start (its reason is above; it needs a host with a route outward); "
			"--net user needs nothing");
	}
	return 0;
}

static int start(struct passt *p, const struct network_spec *spec, struct error *err)
{
	AUTO_FREE struct arguments *a = calloc(1, sizeof(*a));
	int pair[2];

	if (!a || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return error_set_errno(err, errno, "can't make a socket for passt");
	p->fd = pair[0];
	make_arguments(a, p, spec);
	p->pid = fork();
	if (p->pid == 0)
		become_passt(pair[1], a);
	close(pair[1]);
	if (p->pid < 0)
		return error_set_errno(err, errno, "can't start passt");
	return check_started(p, err);
}

int passt_open(
	const struct network_spec *spec, struct loop *loop, struct net **ret_net, struct error *err)
{
	struct passt *p = calloc(1, sizeof(*p));

	if (!p)
		return error_set(err, ENOMEM, "no memory for a network");
	p->net.ops = &passt_ops;
	p->fd = -1;
	p->mtu = spec->mtu ? spec->mtu : PASST_MTU;
	frame_queue_init(&p->waiting, WAITING_LIMIT);
	frame_queue_init(&p->output, OUTPUT_LIMIT);
	int status = start(p, spec, err);
	if (status == 0) {
		status = loop_add(loop, p->fd, 0, passt_ready_events, p, &p->source);
		if (status < 0)
			error_set_errno(err, -status, "can't wait for passt");
	}
	if (status < 0) {
		passt_close(&p->net);
		return status;
	}
	*ret_net = &p->net;
	return 0;
}
