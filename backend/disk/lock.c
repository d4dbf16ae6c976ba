/*
 * Image locks: open file description locks on single bytes, in the scheme of QEMU, so that its programs and ours
 * respect each other.
 *
 * What somebody does with the image is a read lock on byte 100 + n, what others must not do meanwhile one on byte
 * 200 + n, with n 0: read consistent data, 1: write, 2: write what changes nothing, 3: resize. Everybody first takes
 * the locks, then looks whether a byte that contradicts is locked by another. So two that come at the same time may
 * both be refused, but never both be let in.
 *
 * A writer does 0, 1 and 3 and lets others do nothing but 2; a reader does 0 and lets others read too.
 */
#include "backend/disk/lock.h"
#include "base/cleanup.h"
#include "base/log.h"

#include <ctype.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

enum {
	MAY_READ = 1,
	MAY_WRITE = 2,
	MAY_RESIZE = 8,
};

#define LOCK_USES    100
#define LOCK_DENIES  200
#define LOCK_BITS    4
#define PROCESSES_OF 65536 /* descriptors looked at, to say who holds a lock */

static int lock_byte(int fd, int command, short type, off_t byte, struct flock *ret_flock)
{
	*ret_flock =
		(struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
	return fcntl(fd, command, ret_flock) < 0 ? -errno : 0;
}

static int lock_bytes(int fd, off_t base, unsigned bits)
{
	struct flock flock;
	int r = 0;

	for (unsigned i = 0; i < LOCK_BITS && r == 0; i++) {
		if (bits & 1u << i)
			r = lock_byte(fd, F_OFD_SETLK, F_RDLCK, base + (off_t)i, &flock);
	}
	return r;
}

/* Is one of the bytes locked by another? */
static int lock_test(int fd, off_t base, unsigned bits)
{
	struct flock flock;
	int r = 0;

	for (unsigned i = 0; i < LOCK_BITS && r == 0; i++) {
		if (!(bits & 1u << i))
			continue;
		r = lock_byte(fd, F_OFD_GETLK, F_WRLCK, base + (off_t)i, &flock);
		if (r == 0 && flock.l_type != F_UNLCK)
			r = -EAGAIN;
	}
	return r;
}

/* Does this descriptor of another process hold a lock? Says /proc/PID/fdinfo/FD. */
static bool holds_lock(const char *pid, const char *number)
{
	char path[PATH_MAX], line[256];
	AUTO_FCLOSE FILE *file = NULL;

	snprintf(path, sizeof(path), "/proc/%s/fdinfo/%s", pid, number);
	file = fopen(path, "re");
	while (file && fgets(line, sizeof(line), file)) {
		if (strncmp(line, "lock:", 5) == 0)
			return true;
	}
	return false;
}

static bool process_holds(const char *pid, const struct stat *image, int own_fd, unsigned *budget)
{
	char path[PATH_MAX];
	AUTO_CLOSEDIR DIR *fds = NULL;
	const struct dirent *entry;
	struct stat st;

	snprintf(path, sizeof(path), "/proc/%s/fd", pid);
	fds = opendir(path);
	while (fds && (entry = readdir(fds)) && *budget) {
		--*budget;
		if (!isdigit((unsigned char)entry->d_name[0]) ||
			fstatat(dirfd(fds), entry->d_name, &st, 0) < 0 ||
			st.st_dev != image->st_dev || st.st_ino != image->st_ino)
			continue;
		if (atoi(pid) == getpid() && atoi(entry->d_name) == own_fd)
			continue;
		if (holds_lock(pid, entry->d_name))
			return true;
	}
	return false;
}

/* "process 123 (lodge)", or "another process" if it is not one that we may look at. True: it is this one. */
static bool lock_holder(int fd, char *text, size_t size)
{
	AUTO_CLOSEDIR DIR *processes = opendir("/proc");
	unsigned budget = PROCESSES_OF;
	const struct dirent *entry;
	struct stat image;

	snprintf(text, size, "another process");
	if (!processes || fstat(fd, &image) < 0)
		return false;
	while ((entry = readdir(processes)) && budget) {
		char path[PATH_MAX], name[64] = "?";
		AUTO_FCLOSE FILE *file = NULL;

		if (!isdigit((unsigned char)entry->d_name[0]) ||
			!process_holds(entry->d_name, &image, fd, &budget))
			continue;
		snprintf(path, sizeof(path), "/proc/%s/comm", entry->d_name);
		file = fopen(path, "re");
		if (file && fgets(name, sizeof(name), file))
			name[strcspn(name, "\n")] = '\0';
		snprintf(text, size, "process %d (%s)", atoi(entry->d_name), name);
		return atoi(entry->d_name) == getpid();
	}
	return false;
}

int disk_lock_take(int fd, bool readonly, const char *name, struct error *err)
{
	unsigned uses = readonly ? MAY_READ : MAY_READ | MAY_WRITE | MAY_RESIZE;
	unsigned denies = readonly ? MAY_WRITE | MAY_RESIZE : MAY_READ | MAY_WRITE | MAY_RESIZE;
	char holder[128];
	int r = lock_bytes(fd, LOCK_USES, uses);

	if (r == 0)
		r = lock_bytes(fd, LOCK_DENIES, denies);
	if (r == 0)
		r = lock_test(fd, LOCK_DENIES, uses);
	if (r == 0)
		r = lock_test(fd, LOCK_USES, denies);
	if (r == 0)
		return 0;
	if (r != -EAGAIN && r != -EACCES) {
		log_debug("disk", "no locks on %s: %s", name, strerror(-r));
		return 0;
	}
	if (lock_holder(fd, holder, sizeof(holder)))
		return error_set(err, EAGAIN, "%s is named twice: it is in use here already, as a disk or as another's backing file",
			name);
	return error_set(err, EAGAIN, "%s is in use by %s", name, holder);
}
