/*
 * The host fails: the Nth call of something that can fail does so, once or from then on, for each N until a
 * whole run of a machine meets no failure any more. Each time there is an error that says something, and
 * nothing is left behind: memory, mappings, descriptors, threads.
 *
 * The linker's --wrap (see meson.build) puts the functions here in place of those that the library calls.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "base/util.h"
#include "machine/machine.h"
#include "vmm/run.h"

#define TRIES_MAX 3000
#define STATUS	  42 /* the guest's exit status */

/* ---- the calls that fail ---- */

static _Atomic int64_t countdown = INT64_MAX; /* the call at which it reaches 0 fails */
static _Atomic bool go_on_failing;
static const char *_Atomic failed; /* the first that did */
static _Atomic int64_t blocks, mapped_bytes;

static bool fails(const char *name)
{
	int64_t left = atomic_fetch_sub(&countdown, 1);

	if (left > 1 || (left < 1 && !go_on_failing))
		return false;
	if (left == 1)
		failed = name;
	return true;
}

static void *counted(void *block)
{
	blocks += block != NULL;
	return block;
}

#define WRAP(type, name, ...)            \
	type __real_##name(__VA_ARGS__); \
	type __wrap_##name(__VA_ARGS__); \
	type __wrap_##name(__VA_ARGS__)
#define FAIL(name, value, code) \
	if (fails(name)) {      \
		errno = code;   \
		return value;   \
	}

WRAP(void *, malloc, size_t size)
{
	FAIL("malloc", NULL, ENOMEM)
	return counted(__real_malloc(size));
}

WRAP(void *, calloc, size_t count, size_t size)
{
	FAIL("calloc", NULL, ENOMEM)
	return counted(__real_calloc(count, size));
}

WRAP(void *, aligned_alloc, size_t alignment, size_t size)
{
	FAIL("aligned_alloc", NULL, ENOMEM)
	return counted(__real_aligned_alloc(alignment, size));
}

WRAP(void *, realloc, void *block, size_t size)
{
	FAIL("realloc", NULL, ENOMEM)
	void *grown = __real_realloc(block, size);
	blocks += !block && grown;
	return grown;
}

WRAP(void *, reallocarray, void *block, size_t count, size_t size)
{
	FAIL("reallocarray", NULL, ENOMEM)
	void *grown = __real_reallocarray(block, count, size);
	blocks += !block && grown;
	return grown;
}

/* libc's own calls of malloc() do not come by here, and what it gives is freed by us. */
WRAP(int, asprintf, char **ret_text, const char *format, ...)
{
	va_list args;

	FAIL("asprintf", -1, ENOMEM)
	va_start(args, format);
	int length = vasprintf(ret_text, format, args);
	va_end(args);
	blocks += length >= 0;
	return length;
}

WRAP(void, free, void *block)
{
	blocks -= block != NULL;
	__real_free(block);
}

WRAP(void *, mmap64, void *at, size_t size, int protection, int flags, int fd, off_t offset)
{
	FAIL("mmap", MAP_FAILED, ENOMEM)
	void *map = __real_mmap64(at, size, protection, flags, fd, offset);
	if (map != MAP_FAILED)
		mapped_bytes += (int64_t)size;
	return map;
}

/* Only to map something a second time. */
WRAP(void *, mremap, void *at, size_t size, size_t new_size, int flags)
{
	FAIL("mremap", MAP_FAILED, ENOMEM)
	void *map = __real_mremap(at, size, new_size, flags);
	if (map != MAP_FAILED)
		mapped_bytes += (int64_t)(new_size - size);
	return map;
}

WRAP(int, munmap, void *at, size_t size)
{
	mapped_bytes -= (int64_t)((size + 4095) & ~4095ul);
	return __real_munmap(at, size);
}

WRAP(int, mprotect, void *at, size_t size, int protection)
{
	FAIL("mprotect", -1, ENOMEM)
	return __real_mprotect(at, size, protection);
}

WRAP(int, memfd_create, const char *name, unsigned flags)
{
	FAIL("memfd_create", -1, EMFILE)
	return __real_memfd_create(name, flags);
}

WRAP(int, ftruncate64, int fd, off_t size)
{
	FAIL("ftruncate", -1, ENOSPC)
	return __real_ftruncate64(fd, size);
}

WRAP(int, eventfd, unsigned value, int flags)
{
	FAIL("eventfd", -1, EMFILE)
	return __real_eventfd(value, flags);
}

WRAP(ssize_t, pread64, int fd, void *buf, size_t size, off_t offset)
{
	FAIL("pread", -1, EIO)
	return __real_pread64(fd, buf, size, offset);
}

WRAP(int, pthread_create, pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *),
	void *opaque)
{
	if (fails("pthread_create"))
		return EAGAIN;
	return __real_pthread_create(thread, attr, start, opaque);
}

int __real_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...)
{
	FAIL("open", -1, EMFILE)
	return __real_open64(path, flags, 0600);
}

int __real_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...)
{
	va_list args;
	va_start(args, request);
	void *arg = va_arg(args, void *);
	va_end(args);
	FAIL("ioctl", -1, EFAULT)
	return __real_ioctl(fd, request, arg);
}

/* ---- what is left behind ---- */

static unsigned entries(const char *path)
{
	DIR *dir = opendir(path);
	unsigned count = 0;

	assert_non_null(dir);
	while (readdir(dir))
		count++;
	closedir(dir);
	return count;
}

struct residue {
	int64_t blocks, mapped_bytes;
	unsigned fds, threads;
};

static struct residue residue(void)
{
	return (struct residue){
		blocks, mapped_bytes, entries("/proc/self/fd"), entries("/proc/self/task")};
}

static void check_residue(const struct residue *before)
{
	struct residue now = residue();

	/* A thread that was joined may take a moment to leave /proc. */
	for (unsigned i = 0; i < 1000 && now.threads > before->threads; i++) {
		usleep(1000);
		now = residue();
	}
	if (memcmp(before, &now, sizeof(now)))
		fail_msg(
			"after a failing %s: %+lld blocks, %+lld bytes mapped, %+d fds, %+d threads",
			(const char *)failed, (long long)(now.blocks - before->blocks),
			(long long)(now.mapped_bytes - before->mapped_bytes),
			(int)(now.fds - before->fds), (int)(now.threads - before->threads));
}

/* ---- a machine ---- */

/* mov al, STATUS; out 0xf4, al; hlt; in 32-bit mode, by multiboot. */
static int kernel_fd(void)
{
	const uint32_t at = 0x100000, magic = 0x1badb002, flags = 0x10000;
	const uint32_t header[8] = {magic, flags, -(magic + flags), at, at, at + 64, 0, at + 32};
	const uint8_t code[32] = {0xb0, STATUS, 0xe6, 0xf4, 0xf4};
	int fd = __real_memfd_create("guest", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, header, sizeof(header)), sizeof(header));
	assert_int_equal(write(fd, code, sizeof(code)), sizeof(code));
	return fd;
}

static void discard(void *opaque, const uint8_t *bytes, size_t count) {}

static struct machine_config config_of(const struct engine_ops *engine, int fd)
{
	return (struct machine_config){.name = "fault",
		.engine = engine,
		.cpus = 2,
		.memory_bytes = MIB(16),
		.boot = {.protocol = BOOT_MULTIBOOT,
			.cmdline = "a b",
			.kernel = {.path = "guest", .fd = fd}},
		.console_output = discard};
}

static void check_error(const struct error *err)
{
	if (!err->text[0] || strchr(err->text, '\n'))
		fail_msg("a failing %s has the error text '%s'", (const char *)failed, err->text);
	assert_true(err->code > 0);
}

/* True: it ran to its end. */
static bool run_machine(const struct machine_config *config)
{
	struct machine_result result = {0};
	struct machine *machine = NULL;
	struct error err = {0};

	if (machine_create(&machine, config, &err) < 0) {
		check_error(&err);
		assert_null(machine);
		return false;
	}
	bool good = machine_start(machine, &err) == 0;
	if (!good)
		check_error(&err);
	else
		machine_wait(machine, &result);
	machine_free(machine);
	if (good && result.end == MACHINE_FAILED) {
		assert_true(result.text[0]);
		return false;
	}
	if (good)
		assert_true(result.end == MACHINE_EXITED && result.status == STATUS);
	return good;
}

static void arm(int64_t n, bool on)
{
	failed = NULL;
	go_on_failing = on;
	countdown = n;
}

static void disarm(void)
{
	go_on_failing = false;
	countdown = INT64_MAX;
}

static void fail_each(const struct engine_ops *engine, bool on)
{
	int fd = kernel_fd();
	struct machine_config config = config_of(engine, fd);
	unsigned survived = 0;

	/* Once whole: whatever is made at first use is there. */
	assert_true(run_machine(&config));
	struct residue before = residue();
	for (int64_t n = 1;; n++) {
		assert_true(n < TRIES_MAX);
		arm(n, on);
		bool good = run_machine(&config);
		disarm();
		check_residue(&before);
		if (!failed) {
			assert_true(good);
			printf("%s, %s: %lld calls that can fail, %u of them without consequence\n",
				engine->name, on ? "from then on" : "once", (long long)n - 1,
				survived);
			break;
		}
		survived += good;
	}
	close(fd);
}

static void test_interp(void **state)
{
	fail_each(&engine_interp_ops, false);
	fail_each(&engine_interp_ops, true);
}

static void test_kvm(void **state)
{
	struct engine_probe probe = {0};

	engine_kvm_ops.probe(&probe);
	if (!probe.usable) {
		printf("NOT CHECKED: failures under KVM: %s\n", probe.reason);
		skip();
	}
	fail_each(&engine_kvm_ops, false);
	fail_each(&engine_kvm_ops, true);
}

/* ---- the whole of `lodge run`, with its console ---- */

static FILE *errors;

/* What was said on stderr: one line that begins like all of Lodge's. */
static void check_complaint(void)
{
	char text[1024];

	rewind(errors);
	size_t size = fread(text, 1, sizeof(text) - 1, errors);
	text[size] = 0;
	if (strncmp(text, "lodge: ", 7) || strchr(text, '\n') != text + size - 1)
		fail_msg("a failing %s makes lodge say '%s'", (const char *)failed, text);
}

static int run_vmm(const struct vmm_config *config)
{
	int kept = dup(STDERR_FILENO);

	assert_int_equal(__real_ftruncate64(fileno(errors), 0), 0);
	rewind(errors);
	fflush(stderr);
	dup2(fileno(errors), STDERR_FILENO);
	int status = vmm_run(config);
	fflush(stderr);
	dup2(kept, STDERR_FILENO);
	close(kept);
	return status;
}

static void test_vmm(void **state)
{
	int fd = kernel_fd();
	struct vmm_config config = {.machine = config_of(&engine_interp_ops, fd)};
	int null = open("/dev/null", O_RDWR);

	dup2(null, STDIN_FILENO);
	close(null);
	errors = tmpfile();
	assert_non_null(errors);
	assert_int_equal(run_vmm(&config), STATUS);
	struct residue before = residue();
	for (int64_t n = 1;; n++) {
		assert_true(n < TRIES_MAX);
		arm(n, false);
		int status = run_vmm(&config);
		disarm();
		check_residue(&before);
		if (!failed)
			break;
		if (status != STATUS)
			check_complaint();
	}
	fclose(errors);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_interp),
		cmocka_unit_test(test_kvm),
		cmocka_unit_test(test_vmm),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
