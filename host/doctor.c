/*
 * What this host offers: see doctor.h. Each probe tries the thing itself and not a version number.
 */
#include "host/doctor.h"
#include "base/cleanup.h"
#include "base/util.h"
#include "engine/engine.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <unistd.h>

static struct doctor_finding *add(struct doctor_report *report, const char *name,
	enum doctor_verdict verdict)
{
	struct doctor_finding *f = &report->finding[report->count++];

	*f = (struct doctor_finding){ .name = name, .verdict = verdict };
	return f;
}

PRINTF_LIKE(2, 3)
static void say(struct doctor_finding *f, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(f->text, sizeof(f->text), fmt, args);
	va_end(args);
}

PRINTF_LIKE(2, 3)
static void advise(struct doctor_finding *f, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(f->remedy, sizeof(f->remedy), fmt, args);
	va_end(args);
}

/* ---- processor ---- */

static void examine_cpu(struct doctor_report *report)
{
	static const struct {
		const char *name;
		unsigned feature;
	} wanted[] = {
		{ "sse4.2", X86_F_SSE42 }, { "avx", X86_F_AVX }, { "avx2", X86_F_AVX2 },
		{ "fma", X86_F_FMA }, { "bmi2", X86_F_BMI2 }, { "aes", X86_F_AES },
		{ "sha", X86_F_SHA }, { "xsave", X86_F_XSAVE }, { "rdrand", X86_F_RDRAND },
		{ "fsgsbase", X86_F_FSGSBASE }, { "invpcid", X86_F_INVPCID },
	};
	struct doctor_finding *f = add(report, "cpu", DOCTOR_OK);
	struct x86_cpuid_model model;
	char have[160] = "", lack[160] = "";

	x86_cpuid_default(&model, 1, 1000000000);
	for (unsigned i = 0; i < ARRAY_SIZE(wanted); i++) {
		char *list = x86_has(&model.features, wanted[i].feature) ? have : lack;
		size_t length = strlen(list);
		snprintf(list + length, sizeof(have) - length, " %s", wanted[i].name);
	}
	say(f, "%d processors; guests get%s%s%s", get_nprocs(), have, *lack ? "; not" : "", lack);
	if (*lack)
		f->verdict = DOCTOR_LIMITED;
}

/* ---- KVM ---- */

static void examine_kvm(struct doctor_report *report)
{
	struct engine_probe probe;
	const struct engine_ops *chosen = engine_choose(&probe);
	struct doctor_finding *f = add(report, "kvm", DOCTOR_OK);
	char *colon = strstr(probe.reason, "): ");

	report->engine = chosen->name;
	if (probe.usable && !probe.ring0_emulated) {
		say(f, "native: %.1f ns an instruction in guest ring 0", probe.ring0_ns);
		return;
	}
	if (probe.usable) {
		f->verdict = DOCTOR_LIMITED;
		say(f, "emulated: %s", probe.reason);
		advise(f, "nothing to do: auto takes %s, which is faster", chosen->name);
		return;
	}
	f->verdict = DOCTOR_MISSING;
	if (colon) { /* "what (why): remedy" */
		say(f, "%.*s", (int)(colon + 1 - probe.reason), probe.reason);
		advise(f, "%s", colon + 3);
	} else {
		say(f, "%s", probe.reason);
	}
}

/* ---- kernel services ---- */

static void examine_userfaultfd(struct doctor_report *report)
{
	AUTO_CLOSE int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	int code = errno;
	struct doctor_finding *f = add(report, "userfaultfd", fd >= 0 ? DOCTOR_OK : DOCTOR_MISSING);

	if (fd >= 0) {
		say(f, "available");
		return;
	}
	say(f, "refused (%s): no restore on demand, no post-copy migration", strerror(code));
	advise(f, code == ENOSYS ? "use a kernel built with CONFIG_USERFAULTFD" :
				   "allow the system call in this container's seccomp profile");
}

static void examine_io_uring(struct doctor_report *report)
{
	struct io_uring_params params = { 0 };
	AUTO_CLOSE int fd = (int)syscall(SYS_io_uring_setup, 1, &params);
	int code = errno;
	struct doctor_finding *f = add(report, "io_uring", fd >= 0 ? DOCTOR_OK : DOCTOR_MISSING);

	if (fd >= 0) {
		say(f, "available");
		return;
	}
	say(f, "refused (%s): disks use plain reads and writes", strerror(code));
	advise(f, code == ENOSYS ? "use Linux 5.1 or newer with CONFIG_IO_URING" :
				   "sysctl kernel.io_uring_disabled=0, and allow it in the container's "
				   "seccomp profile");
}

/* In a child: a namespace once entered is not left. */
static int try_unshare(int flags)
{
	int status;
	pid_t child = fork();

	if (child < 0)
		return errno;
	if (child == 0)
		_exit(unshare(flags) < 0 ? errno & 0xff : 0);
	if (waitpid(child, &status, 0) < 0)
		return errno;
	return WIFEXITED(status) ? WEXITSTATUS(status) : EIO;
}

static void examine_namespaces(struct doctor_report *report)
{
	int code = try_unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET |
			       CLONE_NEWUTS | CLONE_NEWIPC);
	struct doctor_finding *f = add(report, "namespaces", code ? DOCTOR_MISSING : DOCTOR_OK);

	if (!code) {
		say(f, "user, mount, pid, net, uts and ipc namespaces can be made");
		return;
	}
	say(f, "no user namespaces (%s): lodge image build debian needs root", strerror(code));
	advise(f, "sysctl user.max_user_namespaces=10000; on Debian and Ubuntu also "
		  "kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0");
}

static void examine_tun(struct doctor_report *report)
{
	AUTO_CLOSE int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	int code = errno;
	struct doctor_finding *f = add(report, "tun", fd >= 0 ? DOCTOR_OK : DOCTOR_MISSING);

	if (fd >= 0) {
		say(f, "/dev/net/tun opens");
		return;
	}
	say(f, "/dev/net/tun can't be opened (%s): no tap devices", strerror(code));
	advise(f, code == ENOENT ? "modprobe tun; in a container, pass /dev/net/tun in" :
				   "allow this user to open it, or run as root");
}

static void examine_memory(struct doctor_report *report)
{
	struct sysinfo info;
	struct doctor_finding *f = add(report, "memory", DOCTOR_OK);

	if (sysinfo(&info) < 0)
		return;
	say(f, "%llu MiB in all, %llu MiB free",
		(unsigned long long)info.totalram * info.mem_unit >> 20,
		(unsigned long long)info.freeram * info.mem_unit >> 20);
}

void doctor_examine(struct doctor_report *ret_report)
{
	*ret_report = (struct doctor_report){ 0 };
	examine_kvm(ret_report);
	examine_cpu(ret_report);
	examine_memory(ret_report);
	examine_userfaultfd(ret_report);
	examine_io_uring(ret_report);
	examine_namespaces(ret_report);
	examine_tun(ret_report);
}
