/*
 * A Debian root file system by mmdebstrap, which resolves packages with the host's apt and checks signatures with
 * Debian's keys. It works as root, else in a user namespace, else under fakechroot; its result, a tar stream, goes
 * straight into the image.
 *
 * host/debian/setup.sh, which runs in the new root, makes a guest of it.
 */
#include "base/cleanup.h"
#include "base/error.h"
#include "host/image_private.h"
#include "host/process.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* host/debian/setup.sh; made by meson.build */
extern const char image_debian_setup[];

#define KEYRING	     "/usr/share/keyrings/debian-archive-keyring.gpg"
#define LINE_BYTES   400
#define POLL_MS	     200
#define ARGUMENTS    24

static const char packages[] =
	"systemd-sysv,systemd-resolved,systemd-timesyncd,dbus,libpam-systemd,udev,linux-image-cloud-amd64,initramfs-tools,"
	"zstd,grub-pc-bin,grub-efi-amd64-bin,openssh-server,sudo,e2fsprogs,fdisk,cloud-guest-utils,iproute2,iputils-ping,"
	"ca-certificates,less,nano,procps,libnss-myhostname,netbase";

/* ---- how it can be done here ---- */

static bool has_subordinates(const char *path, const char *user, uid_t uid)
{
	char line[256], number[16];
	AUTO_FCLOSE FILE *file = fopen(path, "re");

	snprintf(number, sizeof(number), "%u", uid);
	while (file && fgets(line, sizeof(line), file)) {
		char *colon = strchr(line, ':');
		if (!colon)
			continue;
		*colon = '\0';
		if (strcmp(line, number) == 0 || (user && strcmp(line, user) == 0))
			return true;
	}
	return false;
}

static bool may_unshare(void)
{
	int status;
	pid_t child = fork();

	if (child == 0)
		_exit(unshare(CLONE_NEWUSER) < 0);
	return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static bool have(const char *program)
{
	AUTO_FREE char *path = NULL;

	return process_find(&path, program, program, NULL) == 0;
}

static int choose_mode(const char **ret_mode, struct error *err)
{
	const struct passwd *user = getpwuid(getuid());
	const char *name = user ? user->pw_name : NULL;

	*ret_mode = "auto"; /* root, where root may mount */
	if (geteuid() == 0)
		return 0;
	const bool namespaces = may_unshare(), map = have("newuidmap"),
		   ids = has_subordinates("/etc/subuid", name, getuid()) &&
			 has_subordinates("/etc/subgid", name, getuid());
	*ret_mode = "unshare";
	if (namespaces && map && ids)
		return 0;
	*ret_mode = "fakechroot";
	if (have("fakechroot") && have("fakeroot"))
		return 0;
	return error_set(err, EPERM,
		"as a user this needs %s%s%s: %s%s%s; or apt-get install fakechroot fakeroot; or be root",
		namespaces ? "" : "user namespaces ", map ? "" : "newuidmap ", ids ? "" : "subordinate ids",
		namespaces ? "" : "sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000; ",
		map ? "" : "apt-get install uidmap; ",
		ids ? "" : "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 (and the user's name)");
}

/* ---- what it says meanwhile ---- */

struct listener {
	const struct image_build *build;
	const struct image_limits *limits;
	struct process *process;
	FILE *log;
	char line[LINE_BYTES], failure[LINE_BYTES]; /* the line that comes; what went wrong */
	size_t length;
};

/* Not what only concerns mmdebstrap itself. */
static bool worth_saying(const char *line)
{
	static const char *const dull[] = { "automatically chosen", "chroot architecture", "finding correct", "using /",
		"removing tempdir", "creating tarball", "success in", "done" };

	for (unsigned i = 0; i < ARRAY_SIZE(dull); i++)
		if (strncmp(line, dull[i], strlen(dull[i])) == 0)
			return false;
	return true;
}

static void take_line(struct listener *l)
{
	l->line[l->length] = '\0';
	l->length = 0;
	if (l->log)
		fprintf(l->log, "%s\n", l->line);
	if (strncmp(l->line, "I: ", 3) == 0 && worth_saying(l->line + 3))
		image_progress(l->build, strncmp(l->line + 3, "running --customize", 19) ? l->line + 3 :
											"making a guest of it");
	else if (strncmp(l->line, "E: ", 3) == 0 && strcmp(l->line + 3, "mmdebstrap failed to run"))
		snprintf(l->failure, sizeof(l->failure), "%s", l->line + 3);
}

static void take_output(struct listener *l, const char *bytes, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		if (bytes[i] == '\n' || l->length == sizeof(l->line) - 1)
			take_line(l);
		if (bytes[i] != '\n')
			l->line[l->length++] = bytes[i];
	}
}

/* Until mmdebstrap closes its stderr. */
static void *listen_thread(void *opaque)
{
	struct listener *l = opaque;
	struct pollfd wait = { .fd = l->process->errors, .events = POLLIN };
	bool stopped = false;
	char bytes[4096];

	for (;;) {
		const int ready = poll(&wait, 1, POLL_MS);
		if (!stopped && image_stop(l->limits)) {
			stopped = true;
			kill(l->process->pid, SIGTERM);
		}
		if (ready <= 0)
			continue;
		ssize_t got = read(wait.fd, bytes, sizeof(bytes));
		if (got == 0 || (got < 0 && errno != EINTR))
			break;
		if (got > 0)
			take_output(l, bytes, (size_t)got);
	}
	if (l->length)
		take_line(l);
	return NULL;
}

/* ---- the call ---- */

static bool names_packages(const char *list)
{
	for (; *list; list++)
		if (!isalnum((unsigned char)*list) && !strchr(",+-.:/=~?()", *list))
			return false;
	return true;
}

static int check(const struct image_build *build, struct error *err)
{
	for (const char *c = build->debian_suite; *c; c++)
		if (!isalnum((unsigned char)*c) && *c != '-')
			return error_set(err, EINVAL, "'%s' is no suite of Debian", build->debian_suite);
	if (build->include && !names_packages(build->include))
		return error_set(err, EINVAL, "'%s' is no list of packages, with commas between them", build->include);
	if (build->mirror && strncmp(build->mirror, "http://", 7) && strncmp(build->mirror, "https://", 8) &&
		strncmp(build->mirror, "file:/", 6))
		return error_set(err, EINVAL, "'%s' is no mirror: give an address such as http://deb.debian.org/debian",
			build->mirror);
	if (access(KEYRING, R_OK) < 0)
		return error_set(err, ENOENT, "no keys of Debian here: apt-get install debian-archive-keyring");
	return 0;
}

struct words {
	char *hook, *include, *mode;
};

static void words_free(struct words *w)
{
	free(w->hook);
	free(w->include);
	free(w->mode);
}

static int make_words(struct words *w, const struct image_build *build, const char *fs_uuid, struct error *err)
{
	const char *mode;
	int status = choose_mode(&mode, err);

	if (status < 0)
		return status;
	if (asprintf(&w->mode, "--mode=%s", mode) < 0)
		w->mode = NULL;
	if (asprintf(&w->include, "--include=%s%s%s%s", packages, build->cloud_init ? ",cloud-init" : "",
		    build->include && *build->include ? "," : "", build->include ? build->include : "") < 0)
		w->include = NULL;
	if (asprintf(&w->hook,
		    "--customize-hook=chroot \"$1\" /bin/sh -s <<'LODGE-SETUP-END'\n"
		    "root_login=%s cloud_init=%s root_uuid=%s\n%sLODGE-SETUP-END\n",
		    build->autologin ? "auto" : "password", build->cloud_init ? "yes" : "no", fs_uuid,
		    image_debian_setup) < 0)
		w->hook = NULL;
	return w->mode && w->include && w->hook ? 0 : error_set(err, ENOMEM, "no memory");
}

static int start(struct process *ret_process, const struct image_build *build, const struct words *w, struct error *err)
{
	const char *argv[ARGUMENTS] = { "mmdebstrap", "--variant=minbase", "--format=tar", "--architectures=amd64", w->mode,
		w->include, w->hook, build->debian_suite, "-" };

	for (unsigned i = 0; build->mirror && i < ARGUMENTS; i++)
		if (!argv[i]) {
			argv[i] = build->mirror;
			break;
		}
	return process_start(ret_process, argv, -1, true, "mmdebstrap", err);
}

/* The failure of mmdebstrap is the cause if both it and the unpacking failed. */
static int conclude(struct listener *l, int unpacked, const char *log_path, struct error *err)
{
	struct error own = { 0 };
	const char *why = *l->failure ? l->failure : "it does not say why";

	if (image_stop(l->limits)) {
		if (process_wait(l->process, "mmdebstrap", why, NULL) < 0)
			unpacked = -EINTR;
		return error_set(err, EINTR, "interrupted");
	}
	if (unpacked < 0 && unpacked != -EBADMSG) /* ours: it must not write on */
		kill(l->process->pid, SIGTERM);
	int status = process_wait(l->process, "mmdebstrap", why, &own);
	if (unpacked < 0 && (unpacked != -EBADMSG || status == 0))
		return unpacked;
	return status < 0 ? error_set(err, EIO, "%s; %s has all it said", own.text, log_path) : 0;
}

/* The archive ends before the stream does: what pads it must be taken, or tar is ended by a signal. */
static void skip_rest(int fd)
{
	char rest[4096];
	ssize_t got;

	do
		got = read(fd, rest, sizeof(rest));
	while (got > 0 || (got < 0 && errno == EINTR));
}

static int fill(struct listener *l, struct image_fs *fs, const char *log_path, struct error *err)
{
	pthread_t thread;
	int code = pthread_create(&thread, NULL, listen_thread, l);

	if (code) {
		kill(l->process->pid, SIGTERM);
		if (process_wait(l->process, "mmdebstrap", "", NULL) < 0)
			code = code ? code : EIO;
		return error_set_errno(err, code, "can't start a thread");
	}
	int status = image_archive_unpack(fs, l->process->output, false, l->limits, "mmdebstrap", err);
	if (status == 0)
		skip_rest(l->process->output);
	close(l->process->output); /* if it still writes, it must not wait for us */
	l->process->output = -1;
	pthread_join(thread, NULL);
	return conclude(l, status, log_path, err);
}

int image_debian_fill(struct image_fs *fs, const struct image_build *build, const char *fs_uuid, const char *log_path,
	const struct image_limits *limits, struct error *err)
{
	struct process process;
	struct words words = { 0 };
	struct listener l = { .build = build, .limits = limits, .process = &process };

	int status = check(build, err);
	if (status == 0)
		status = make_words(&words, build, fs_uuid, err);
	if (status == 0)
		status = start(&process, build, &words, err);
	words_free(&words);
	if (status < 0)
		return status;
	l.log = fopen(log_path, "we");
	status = fill(&l, fs, log_path, err);
	if (l.log)
		fclose(l.log);
	return status;
}
