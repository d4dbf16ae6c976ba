/*
 * Is there a KVM here, may it be used, and does it run guest ring 0 on the processor? Some hosts offer a
 * /dev/kvm that emulates ring 0 in software, some hundred times slower; a short loop tells.
 */
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/util.h"
#include "engine/kvm/private.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define LOOPS	    2000u
#define RUNS	    3
#define CODE_GPA    0x1000u
#define EMULATED_NS 50.0 /* an instruction: hardware is below 2, emulation was seen at 600 */

/* mov ecx, LOOPS; 1: dec ecx; jnz 1b; hlt. The last one leaves KVM_RUN, as there is no irqchip. */
static const uint8_t loop_code[] = {0xb9, LOOPS & 0xff, LOOPS >> 8, 0, 0, 0x49, 0x75, 0xfd, 0xf4};

struct trial {
	int kvm_fd, vm_fd, vcpu_fd;
	size_t run_bytes;
	uint8_t *page;
	struct kvm_run *run;
};

static void trial_done(struct trial *t)
{
	if (t->run)
		munmap(t->run, t->run_bytes);
	if (t->page)
		munmap(t->page, GUEST_PAGE_SIZE);
	if (t->vcpu_fd >= 0)
		close(t->vcpu_fd);
	if (t->vm_fd >= 0)
		close(t->vm_fd);
}

static int trial_memory(struct trial *t)
{
	void *page = mmap(
		NULL, GUEST_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region slot = {.guest_phys_addr = CODE_GPA,
		.memory_size = GUEST_PAGE_SIZE,
		.userspace_addr = (uintptr_t)page};

	if (page == MAP_FAILED)
		return -ENOMEM;
	t->page = page;
	memcpy(page, loop_code, sizeof(loop_code));
	return kvm_ioctl(t->vm_fd, KVM_SET_USER_MEMORY_REGION, &slot);
}

/* Flat 32-bit protected mode, ring 0: what every host's hardware runs directly. */
static int trial_state(struct trial *t)
{
	struct kvm_regs regs = {.rip = CODE_GPA, .rflags = 2};
	struct kvm_sregs s;
	int status = kvm_ioctl(t->vcpu_fd, KVM_GET_SREGS, &s);

	if (status < 0)
		return status;
	s.cs = (struct kvm_segment){
		.limit = ~0u, .selector = 8, .type = 11, .present = 1, .db = 1, .s = 1, .g = 1};
	s.ds = s.es = s.fs = s.gs = s.ss = (struct kvm_segment){
		.limit = ~0u, .selector = 16, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1};
	s.cr0 |= 1;
	status = kvm_ioctl(t->vcpu_fd, KVM_SET_SREGS, &s);
	return status < 0 ? status : kvm_ioctl(t->vcpu_fd, KVM_SET_REGS, &regs);
}

static int trial_open(struct trial *t)
{
	unsigned long tss = 0xfffbd000ul;

	t->vm_fd = kvm_ioctl(t->kvm_fd, KVM_CREATE_VM, NULL);
	if (t->vm_fd < 0)
		return t->vm_fd;
	kvm_ioctl(t->vm_fd, KVM_SET_TSS_ADDR, (void *)tss);
	int status = trial_memory(t);
	if (status < 0)
		return status;
	t->vcpu_fd = kvm_ioctl(t->vm_fd, KVM_CREATE_VCPU, NULL);
	int bytes = kvm_ioctl(t->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, NULL);
	if (t->vcpu_fd < 0 || bytes <= 0)
		return t->vcpu_fd < 0 ? t->vcpu_fd : -EIO;
	t->run_bytes = (size_t)bytes;
	void *run = mmap(NULL, t->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, t->vcpu_fd, 0);
	if (run == MAP_FAILED)
		return -errno;
	t->run = run;
	return 0;
}

/* Nanoseconds an instruction, the best of a few runs; negative errno in *ret_status. */
static double trial_measure(struct trial *t, int *ret_status)
{
	uint64_t best = UINT64_MAX;

	for (unsigned i = 0; i < RUNS; i++) {
		*ret_status = trial_state(t);
		if (*ret_status < 0)
			return 0;
		uint64_t start = clock_monotonic_ns();
		*ret_status = kvm_ioctl(t->vcpu_fd, KVM_RUN, NULL);
		best = MIN(best, clock_monotonic_ns() - start);
		if (*ret_status == 0 && t->run->exit_reason != KVM_EXIT_HLT)
			*ret_status = -EIO;
		if (*ret_status < 0)
			return 0;
	}
	return (double)best / (2.0 * LOOPS);
}

static void probe_ring0(int kvm_fd, struct engine_probe *probe)
{
	struct trial trial = {.kvm_fd = kvm_fd, .vm_fd = -1, .vcpu_fd = -1};
	int status = trial_open(&trial);

	if (status == 0)
		probe->ring0_ns = trial_measure(&trial, &status);
	trial_done(&trial);
	probe->usable = status == 0;
	probe->ring0_emulated = probe->ring0_ns > EMULATED_NS;
	if (status < 0)
		snprintf(probe->reason, sizeof(probe->reason),
			"/dev/kvm opens, but runs no guest (%s): is virtualization on in the host's "
			"firmware?",
			strerror(-status));
	else if (probe->ring0_emulated)
		snprintf(probe->reason, sizeof(probe->reason),
			"/dev/kvm emulates guest ring 0 in software (%.0f ns an instruction)",
			probe->ring0_ns);
}

static void no_device(int code, struct engine_probe *probe)
{
	const char *remedy =
		"load the module: modprobe kvm_intel or kvm_amd; in a virtual machine, turn "
		"on nested virtualization";

	if (code == EACCES || code == EPERM)
		remedy = "join its group: usermod -aG kvm USER, then log in again; or run as root";
	snprintf(probe->reason, sizeof(probe->reason), "/dev/kvm can't be opened (%s): %s",
		strerror(code), remedy);
}

void kvm_probe(struct engine_probe *ret_probe)
{
	*ret_probe = (struct engine_probe){.hardware = true};
	AUTO_CLOSE int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		no_device(errno, ret_probe);
	else if (kvm_ioctl(fd, KVM_GET_API_VERSION, NULL) != KVM_API_VERSION)
		snprintf(ret_probe->reason, sizeof(ret_probe->reason),
			"/dev/kvm speaks another version of its interface");
	else
		probe_ring0(fd, ret_probe);
}
