/*
 * The console of the machine in this process: see console.h.
 */
#include "vmm/console.h"
#include "backend/terminal.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "device/stream.h"
#include "machine/machine.h"
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define ABANDON_SIGNAL SIGUSR1
#define GRACE_NS       (100 * NS_PER_MS) /* what the reader of abandoned output has to take it */

#define STREAM_ROOM    (CONSOLE_BUFFER / 4) /* what must be free before the device is asked for more */

struct console {
	struct stream stream; /* first: the ops cast it back */
	struct terminal *terminal;
	bool virtio; /* input goes to the stream's peer */
	void (*quit)(void *opaque);
	void *opaque;
	pthread_t input, output;

	pthread_mutex_t lock;
	pthread_cond_t changed; /* anything below */
	struct machine *machine;
	bool inside; /* the input thread is in the machine, or in the peer */
	struct stream_peer peer;
	bool has_peer;
	unsigned calls;	 /* of the peer's functions that are under way */
	bool wants_room; /* the peer was refused */
	bool has_room;
	bool closing, abandoned, output_done;
	size_t head, count; /* of the ring */
	uint8_t ring[CONSOLE_BUFFER];
};

static const char help_text[] =
	"\r\nlodge: Ctrl-A x ends the machine, Ctrl-A Ctrl-A types Ctrl-A\r\n";

/* ---- output ---- */

static void ring_put(struct console *console, const uint8_t *bytes, size_t count)
{
	for (size_t i = 0; i < count; i++)
		console->ring[(console->head + console->count + i) % CONSOLE_BUFFER] = bytes[i];
	console->count += count;
}

void console_output(void *opaque, const uint8_t *bytes, size_t count)
{
	struct console *console = opaque;
	AUTO_LOCK(&console->lock);

	while (count && !console->output_done) {
		size_t room = CONSOLE_BUFFER - console->count, part = MIN(room, count);

		if (!room && console->abandoned)
			return;
		if (!room) {
			pthread_cond_wait(&console->changed, &console->lock);
			continue;
		}
		if (!console->count)
			pthread_cond_broadcast(&console->changed);
		ring_put(console, bytes, part);
		bytes += part;
		count -= part;
	}
}

/* Write from the ring, once. Returns how much, or a negative errno. */
static ssize_t write_some(const uint8_t *bytes, size_t count)
{
	ssize_t put = write(STDOUT_FILENO, bytes, count);

	if (put < 0 && errno == EAGAIN) { /* somebody else made it non-blocking */
		struct pollfd fd = {.fd = STDOUT_FILENO, .events = POLLOUT};
		return poll(&fd, 1, -1) < 0 ? -errno : 0;
	}
	return put < 0 ? -errno : put;
}

/* Call the peer, with the lock held, which they drop; the peer stays until then. */
static struct stream_peer peer_enter(struct console *console)
{
	const struct stream_peer peer = console->peer;

	console->calls++;
	pthread_mutex_unlock(&console->lock);
	return peer;
}

static void peer_leave(struct console *console)
{
	pthread_mutex_lock(&console->lock);
	console->calls--;
	pthread_cond_broadcast(&console->changed);
}

static void tell_room(struct console *console)
{
	const bool room = CONSOLE_BUFFER - console->count >= STREAM_ROOM || console->output_done ||
			  console->abandoned;

	if (!console->wants_room || !console->has_peer || !room)
		return;
	console->wants_room = false;
	const struct stream_peer peer = peer_enter(console);
	peer.room(peer.opaque);
	peer_leave(console);
}

/* With the lock held, which it drops to write. False: no more of it. */
static bool drain(struct console *console)
{
	size_t part = MIN(console->count, CONSOLE_BUFFER - console->head);
	const uint8_t *bytes = console->ring + console->head;

	pthread_mutex_unlock(&console->lock);
	ssize_t put = write_some(bytes, part);
	pthread_mutex_lock(&console->lock);
	if (put < 0 && put != -EINTR) {
		if (put != -EPIPE) /* a reader that went away did so on purpose */
			log_warn("console", "the guest's output is lost: %s", strerror((int)-put));
		return false;
	}
	if (put > 0) {
		console->head = (console->head + (size_t)put) % CONSOLE_BUFFER;
		console->count -= (size_t)put;
		pthread_cond_broadcast(&console->changed);
		tell_room(console);
	}
	return put >= 0 || !console->abandoned;
}

static void *output_thread(void *opaque)
{
	struct console *console = opaque;
	bool good = true;

	pthread_setname_np(pthread_self(), "console-output");
	pthread_mutex_lock(&console->lock);
	while (good && (console->count || !console->closing)) {
		if (console->count)
			good = drain(console);
		else
			pthread_cond_wait(&console->changed, &console->lock);
	}
	/* The guest runs on, unheard. */
	console->output_done = true;
	console->count = 0;
	pthread_cond_broadcast(&console->changed);
	tell_room(console);
	pthread_mutex_unlock(&console->lock);
	return NULL;
}

void console_flush(struct console *console)
{
	AUTO_LOCK(&console->lock);
	while (console->count && !console->output_done && !console->abandoned)
		pthread_cond_wait(&console->changed, &console->lock);
}

void console_abandon(struct console *console)
{
	AUTO_LOCK(&console->lock);
	console->abandoned = true;
	pthread_cond_broadcast(&console->changed);
	tell_room(console);
}

static void interrupt_write(int number) {}

/* The thread may be in a write that nobody reads: one that was abandoned is interrupted, again and
 * again, for the signal may come just before it. */
static void output_stop(struct console *console)
{
	uint64_t asked_ns = 0;

	pthread_mutex_lock(&console->lock);
	console->closing = true;
	pthread_cond_broadcast(&console->changed);
	while (!console->output_done) {
		uint64_t now_ns = clock_monotonic_ns(), until_ns = now_ns + 10 * NS_PER_MS;
		const struct timespec until = clock_timespec(until_ns);

		if (!console->abandoned) {
			pthread_cond_wait(&console->changed, &console->lock);
			continue;
		}
		if (!asked_ns)
			asked_ns = now_ns;
		if (now_ns - asked_ns >= GRACE_NS)
			pthread_kill(console->output, ABANDON_SIGNAL);
		pthread_cond_timedwait(&console->changed, &console->lock, &until);
	}
	pthread_mutex_unlock(&console->lock);
	pthread_join(console->output, NULL);
}

/* ---- input ---- */

void console_room(void *opaque)
{
	struct console *console = opaque;
	AUTO_LOCK(&console->lock);

	console->has_room = true;
	pthread_cond_broadcast(&console->changed);
}

/* Offer input to the machine, with the lock held, which it drops: room() may be called from inside. */
static size_t offer(struct console *console, const uint8_t *bytes, size_t count)
{
	struct machine *machine = console->machine;
	size_t took;

	console->has_room = false;
	console->inside = true;
	if (console->virtio) {
		const struct stream_peer peer = peer_enter(console);
		took = peer.receive(peer.opaque, bytes, count);
		peer_leave(console);
	} else {
		pthread_mutex_unlock(&console->lock);
		took = machine_console_input(machine, bytes, count);
		pthread_mutex_lock(&console->lock);
	}
	console->inside = false;
	pthread_cond_broadcast(&console->changed);
	return took;
}

static bool somebody_listens(const struct console *console)
{
	return console->virtio ? console->has_peer : console->machine != NULL;
}

/* Hand input to the guest, waiting for room as long as it takes. */
static void feed(struct console *console, const uint8_t *bytes, size_t count)
{
	AUTO_LOCK(&console->lock);
	while (count && !console->closing) {
		if (!somebody_listens(console) || !console->has_room) {
			pthread_cond_wait(&console->changed, &console->lock);
			continue;
		}
		size_t took = offer(console, bytes, count);
		/* It said nothing of room if it was not full. */
		console->has_room |= took > 0;
		bytes += took;
		count -= took;
	}
}

static bool closing(struct console *console)
{
	AUTO_LOCK(&console->lock);
	return console->closing;
}

static void *input_thread(void *opaque)
{
	struct console *console = opaque;
	uint8_t buf[256];

	pthread_setname_np(pthread_self(), "console-input");
	for (;;) {
		enum terminal_command command;
		int got = terminal_read(console->terminal, buf, sizeof(buf), &command);

		/* At the end of the input the guest simply runs on. */
		if (got < 0 || closing(console))
			return NULL;
		if (command == TERMINAL_QUIT) {
			console_abandon(console);
			console->quit(console->opaque);
		} else if (command == TERMINAL_HELP) {
			console_output(console, (const uint8_t *)help_text, sizeof(help_text) - 1);
		}
		feed(console, buf, (size_t)got);
	}
}

void console_attach(struct console *console, struct machine *machine)
{
	AUTO_LOCK(&console->lock);
	console->machine = machine;
	console->has_room = true;
	pthread_cond_broadcast(&console->changed);
}

void console_detach(struct console *console)
{
	AUTO_LOCK(&console->lock);
	console->machine = NULL;
	while (console->inside)
		pthread_cond_wait(&console->changed, &console->lock);
}

/* ---- the stream of a virtio console ---- */

static struct winsize terminal_size(void)
{
	struct winsize size = {0};

	if (ioctl(STDIN_FILENO, TIOCGWINSZ, &size) < 0)
		(void)!ioctl(STDOUT_FILENO, TIOCGWINSZ, &size);
	return size;
}

void console_resized(struct console *console)
{
	const struct winsize size = terminal_size();
	AUTO_LOCK(&console->lock);

	if (!console->has_peer || !size.ws_col)
		return;
	const struct stream_peer peer = peer_enter(console);
	peer.resized(peer.opaque, size.ws_col, size.ws_row);
	peer_leave(console);
}

static void stream_attach(struct stream *stream, const struct stream_peer *peer)
{
	struct console *console = (struct console *)stream;

	pthread_mutex_lock(&console->lock);
	console->has_peer = peer;
	console->wants_room = false;
	if (peer)
		console->peer = *peer;
	/* A new one may have room; an old one is left by all. */
	console->has_room = true;
	pthread_cond_broadcast(&console->changed);
	while (!peer && console->calls)
		pthread_cond_wait(&console->changed, &console->lock);
	pthread_mutex_unlock(&console->lock);
	if (peer) {
		peer->connected(peer->opaque, true);
		console_resized(console);
	}
}

static size_t stream_send(struct stream *stream, const uint8_t *bytes, size_t count)
{
	struct console *console = (struct console *)stream;
	AUTO_LOCK(&console->lock);
	const size_t part = MIN(count, CONSOLE_BUFFER - console->count);

	if (console->output_done || (console->abandoned && part < count))
		return count; /* nobody reads it */
	if (!console->count)
		pthread_cond_broadcast(&console->changed);
	ring_put(console, bytes, part);
	console->wants_room |= part < count;
	return part;
}

static void stream_ready(struct stream *stream)
{
	console_room(stream);
}

static const struct stream_ops console_stream_ops = {
	.attach = stream_attach,
	.send = stream_send,
	.ready = stream_ready,
};

struct stream *console_stream(struct console *console)
{
	return &console->stream;
}

/* ---- life ---- */

static void input_stop(struct console *console)
{
	pthread_mutex_lock(&console->lock);
	console->closing = true;
	pthread_cond_broadcast(&console->changed);
	pthread_mutex_unlock(&console->lock);
	terminal_wake(console->terminal);
	pthread_join(console->input, NULL);
}

static void done(struct console *console)
{
	terminal_close(console->terminal);
	pthread_mutex_destroy(&console->lock);
	pthread_cond_destroy(&console->changed);
	free(console);
}

static int start(struct console *console, struct error *err)
{
	int code = pthread_create(&console->output, NULL, output_thread, console);

	if (code)
		return error_set_errno(err, code, "can't start a thread for the console");
	code = pthread_create(&console->input, NULL, input_thread, console);
	if (code) {
		output_stop(console);
		return error_set_errno(err, code, "can't start a thread for the console");
	}
	return 0;
}

int console_open(struct console **ret_console, bool virtio, void (*quit)(void *opaque),
	void *opaque, struct error *err)
{
	const struct sigaction action = {.sa_handler = interrupt_write};
	struct console *console = calloc(1, sizeof(*console));
	pthread_condattr_t attr;

	if (!console)
		return error_set(err, ENOMEM, "no memory for the console");
	console->stream.ops = &console_stream_ops;
	console->virtio = virtio;
	console->quit = quit;
	console->opaque = opaque;
	pthread_mutex_init(&console->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&console->changed, &attr);
	pthread_condattr_destroy(&attr);
	sigaction(ABANDON_SIGNAL, &action, NULL);
	int status = terminal_open(&console->terminal, err);
	if (status == 0)
		status = start(console, err);
	if (status < 0) {
		done(console);
		return status;
	}
	*ret_console = console;
	return 0;
}

void console_close(struct console *console)
{
	input_stop(console);
	output_stop(console);
	done(console);
}
