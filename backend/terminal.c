/*
 * The caller's terminal: see terminal.h.
 */
#include "backend/terminal.h"
#include "base/cleanup.h"
#include "base/error.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define ESCAPE 0x01 /* Ctrl-A */

struct terminal {
	bool raw;
	bool escaped; /* the last byte was an escape */
	struct termios original;
	int wake_fd;
	int continue_fd; /* SIGCONT came; -1: not raw */
	pid_t guardian;
	int guardian_fd; /* closed when this process ends; a byte = all is well */
};

/* The guardian's whole life: wait for the other end to close, restore unless told not to. */
static void guard(int fd, const struct termios *original)
{
	char byte;
	ssize_t got;

	/* It must outlive whatever ends the monitor, a kill of its whole process group too, and may set the
	 * terminal from the background. */
	setsid();
	signal(SIGTTOU, SIG_IGN);
	signal(SIGINT, SIG_IGN);
	signal(SIGQUIT, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal(SIGTERM, SIG_IGN);
	signal(SIGTSTP, SIG_IGN);
	prctl(PR_SET_NAME, "lodge-terminal");
	do
		got = read(fd, &byte, 1);
	while (got < 0 && errno == EINTR);
	if (got == 0)
		tcsetattr(STDIN_FILENO, TCSANOW, original);
	_exit(0);
}

static int guardian_start(struct terminal *terminal, struct error *err)
{
	int fds[2];

	if (pipe(fds) < 0)
		return error_set_errno(err, errno, "can't make a pipe");
	terminal->guardian = fork();
	if (terminal->guardian < 0) {
		int code = errno;
		close(fds[0]);
		close(fds[1]);
		return error_set_errno(err, code, "can't start the process that guards the terminal");
	}
	if (terminal->guardian == 0) {
		close(fds[1]);
		close(terminal->wake_fd);
		close(terminal->continue_fd);
		guard(fds[0], &terminal->original);
	}
	close(fds[0]);
	terminal->guardian_fd = fds[1];
	return 0;
}

static bool in_foreground(void)
{
	return tcgetpgrp(STDIN_FILENO) == getpgrp();
}

static bool set_raw(const struct terminal *terminal)
{
	struct termios raw = terminal->original;

	cfmakeraw(&raw);
	/* What the guest prints has its own line ends; what the monitor prints still gets its own. */
	raw.c_oflag = terminal->original.c_oflag;
	return tcsetattr(STDIN_FILENO, TCSADRAIN, &raw) == 0;
}

/* Shells give a stopped job's terminal settings of their own, and not all put the job's back. */
static int watch_continue(struct terminal *terminal, struct error *err)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCONT);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	terminal->continue_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (terminal->continue_fd < 0)
		return error_set_errno(err, errno, "can't make a signal descriptor");
	return 0;
}

static int go_raw(struct terminal *terminal, struct error *err)
{
	int status = watch_continue(terminal, err);

	if (status == 0)
		status = guardian_start(terminal, err);
	if (status == 0)
		terminal->raw = set_raw(terminal);
	return status;
}

/* Stopped and continued; in the background the terminal is another's. */
static void continued(struct terminal *terminal)
{
	struct signalfd_siginfo info;

	if (read(terminal->continue_fd, &info, sizeof(info)) == sizeof(info) && terminal->raw &&
		in_foreground())
		set_raw(terminal);
}

int terminal_open(struct terminal **ret_terminal, struct error *err)
{
	struct terminal *terminal = calloc(1, sizeof(*terminal));
	int status = 0;

	if (!terminal)
		return error_set(err, ENOMEM, "no memory for the terminal");
	terminal->guardian_fd = terminal->continue_fd = -1;
	terminal->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (terminal->wake_fd < 0) {
		status = error_set_errno(err, errno, "can't make an event descriptor");
		free(terminal);
		return status;
	}
	if (isatty(STDIN_FILENO) && tcgetattr(STDIN_FILENO, &terminal->original) == 0 &&
		in_foreground())
		status = go_raw(terminal, err);
	if (status < 0) {
		terminal_close(terminal);
		return status;
	}
	*ret_terminal = terminal;
	return 0;
}

void terminal_close(struct terminal *terminal)
{
	if (!terminal)
		return;
	if (terminal->raw)
		tcsetattr(STDIN_FILENO, TCSANOW, &terminal->original);
	if (terminal->guardian_fd >= 0) {
		(void)!write(terminal->guardian_fd, "", 1);
		close(terminal->guardian_fd);
		waitpid(terminal->guardian, NULL, 0);
	}
	if (terminal->continue_fd >= 0)
		close(terminal->continue_fd);
	close(terminal->wake_fd);
	free(terminal);
}

void terminal_wake(struct terminal *terminal)
{
	uint64_t one = 1;

	(void)!write(terminal->wake_fd, &one, sizeof(one));
}

/* One typed byte; true: it is for the guest. */
static bool filter(struct terminal *terminal, uint8_t byte, enum terminal_command *ret_command)
{
	if (!terminal->escaped) {
		terminal->escaped = byte == ESCAPE;
		return !terminal->escaped;
	}
	terminal->escaped = false;
	if (byte == 'x' || byte == 'X')
		*ret_command = TERMINAL_QUIT;
	else if (byte == 'h' || byte == '?')
		*ret_command = TERMINAL_HELP;
	return byte == ESCAPE;
}

static int read_input(struct terminal *terminal, uint8_t *buf, size_t size,
	enum terminal_command *ret_command)
{
	ssize_t got = read(STDIN_FILENO, buf, size);
	int kept = 0;

	if (got < 0)
		return errno == EINTR || errno == EAGAIN ? 0 : -errno;
	if (got == 0)
		return -EPIPE;
	if (!terminal->raw)
		return (int)got;
	for (ssize_t i = 0; i < got; i++)
		if (filter(terminal, buf[i], ret_command))
			buf[kept++] = buf[i];
	return kept;
}

int terminal_read(struct terminal *terminal, uint8_t *buf, size_t size,
	enum terminal_command *ret_command)
{
	struct pollfd fds[3] = {
		{ .fd = terminal->wake_fd, .events = POLLIN },
		{ .fd = STDIN_FILENO, .events = POLLIN },
		{ .fd = terminal->continue_fd, .events = POLLIN },
	};
	uint64_t count;

	*ret_command = TERMINAL_NONE;
	if (poll(fds, 3, -1) < 0)
		return errno == EINTR ? 0 : -errno;
	if (fds[0].revents) {
		(void)!read(terminal->wake_fd, &count, sizeof(count));
		return 0;
	}
	if (fds[2].revents)
		continued(terminal);
	return fds[1].revents ? read_input(terminal, buf, size, ret_command) : 0;
}
