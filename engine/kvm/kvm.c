/*
 * The KVM engine: guest code runs on the processor's virtualization extensions; interrupt controllers are
 * the kernel's. Linux's Documentation/virt/kvm/api.rst.
 * This file makes VMs and vCPUs and keeps the dirty log; run.c runs them, irq.c brings them interrupts,
 * state.c and msr.c move their state.
 */
#include "base/cleanup.h"
#include "base/util.h"
#include "engine/kvm/private.h"
#include "memory/memory.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define TSS_GPA	     0xfeffd000ul /* three pages that Intel's hosts use, in the hole, below the largest firmware */
#define IDENTITY_GPA 0xfeffc000ull

int kvm_ioctl(int fd, unsigned long request, void *arg)
{
	int result;

	do
		result = ioctl(fd, request, arg);
	while (result < 0 && errno == EINTR);
	return result < 0 ? -errno : result;
}

/* ---- the VM ---- */

static int add_slots(struct engine_vm *vm, bool log, struct error *err)
{
	const struct guest_memory *memory = vm->config.memory;

	for (unsigned i = 0; i < memory->region_count; i++) {
		const struct memory_region *r = &memory->region[i];
		struct kvm_userspace_memory_region slot = {
			.slot = i,
			.flags = (log ? KVM_MEM_LOG_DIRTY_PAGES : 0) |
				 (r->flags & MEMORY_READONLY ? KVM_MEM_READONLY : 0),
			.guest_phys_addr = r->base,
			.memory_size = r->size_bytes,
			.userspace_addr = (uintptr_t)r->host,
		};
		int status = kvm_ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &slot);
		if (status < 0)
			return error_set_errno(
				err, -status, "KVM refuses guest memory '%s'", r->name);
	}
	return 0;
}

static int list_msrs(struct engine_vm *vm)
{
	struct kvm_msr_list probe = {0};

	kvm_ioctl(vm->kvm_fd, KVM_GET_MSR_INDEX_LIST, &probe); /* E2BIG, and the count */
	AUTO_FREE struct kvm_msr_list *list =
		calloc(1, sizeof(probe) + probe.nmsrs * sizeof(probe.indices[0]));
	if (!list)
		return -ENOMEM;
	list->nmsrs = probe.nmsrs;
	int status = kvm_ioctl(vm->kvm_fd, KVM_GET_MSR_INDEX_LIST, list);
	if (status == 0)
		kvm_msrs_find(vm, list);
	return status;
}

static int capability(struct engine_vm *vm, long cap)
{
	return kvm_ioctl(vm->kvm_fd, KVM_CHECK_EXTENSION, (void *)cap);
}

static bool has_cap(struct engine_vm *vm, long cap)
{
	return capability(vm, cap) > 0;
}

static void find_caps(struct engine_vm *vm)
{
	vm->has_xcrs = has_cap(vm, KVM_CAP_XCRS);
	vm->has_debugregs = has_cap(vm, KVM_CAP_DEBUGREGS);
	vm->has_tsc_deadline = has_cap(vm, KVM_CAP_TSC_DEADLINE_TIMER);
	vm->has_sregs2 = has_cap(vm, KVM_CAP_SREGS2);
	vm->has_tsc_control = has_cap(vm, KVM_CAP_TSC_CONTROL);
}

static int make_irqchip(struct engine_vm *vm, struct error *err)
{
	uint64_t identity = IDENTITY_GPA;

	/* AMD hosts need neither and may refuse. */
	kvm_ioctl(vm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity);
	kvm_ioctl(vm->fd, KVM_SET_TSS_ADDR, (void *)TSS_GPA);
	int status = kvm_ioctl(vm->fd, KVM_CREATE_IRQCHIP, NULL);
	if (status < 0)
		return error_set_errno(err, -status, "KVM makes no interrupt controllers");
	status = kvm_irq_routes(vm);
	if (status < 0)
		return error_set_errno(err, -status, "KVM does not take the interrupt routes");
	return 0;
}

static int set_up(struct engine_vm *vm, struct error *err)
{
	int status, cpus_max = capability(vm, KVM_CAP_MAX_VCPUS);

	if (cpus_max > 0 && vm->config.cpus_max > (unsigned)cpus_max)
		return error_set(err, EINVAL, "KVM runs at most %d vCPUs here, not %u", cpus_max,
			vm->config.cpus_max);
	find_caps(vm);
	/* Where KVM's emulator fails a program's instruction, let us do it: no #UD. Older kernels can't. */
	struct kvm_enable_cap fail = {.cap = KVM_CAP_EXIT_ON_EMULATION_FAILURE, .args = {1}};
	kvm_ioctl(vm->fd, KVM_ENABLE_CAP, &fail);
	status = make_irqchip(vm, err);
	if (status < 0)
		return status;
	status = list_msrs(vm);
	if (status < 0)
		return error_set_errno(err, -status, "KVM does not list its MSRs");
	status = kvm_cpuid_filter(vm, err);
	if (status < 0)
		return status;
	int run_bytes = kvm_ioctl(vm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, NULL);
	if (run_bytes < (int)sizeof(struct kvm_run))
		return error_set(err, EIO, "KVM gives no shared page for its vCPUs");
	vm->run_bytes = (size_t)run_bytes;
	return add_slots(vm, false, err);
}

static void kvm_vm_free(struct engine_vm *vm)
{
	if (!vm)
		return;
	if (vm->fd >= 0)
		close(vm->fd);
	if (vm->kvm_fd >= 0)
		close(vm->kvm_fd);
	free(vm);
}

static int open_vm(struct engine_vm *vm, struct error *err)
{
	vm->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vm->kvm_fd < 0)
		return error_set_errno(err, errno, "can't open /dev/kvm (see: lodge doctor)");
	int version = kvm_ioctl(vm->kvm_fd, KVM_GET_API_VERSION, NULL);
	if (version != KVM_API_VERSION)
		return error_set(err, ENOTSUP, "/dev/kvm speaks version %d, not %d", version,
			KVM_API_VERSION);
	vm->fd = kvm_ioctl(vm->kvm_fd, KVM_CREATE_VM, NULL);
	if (vm->fd < 0)
		return error_set_errno(err, -vm->fd, "KVM makes no virtual machine");
	return set_up(vm, err);
}

static int kvm_vm_create(
	struct engine_vm **ret_vm, const struct engine_vm_config *config, struct error *err)
{
	struct engine_vm *vm = calloc(1, sizeof(*vm));

	if (!vm)
		return error_set(err, ENOMEM, "no memory for the virtual machine");
	vm->config = *config;
	vm->kvm_fd = vm->fd = -1;
	kvm_kick_init();
	int status = open_vm(vm, err);
	if (status < 0) {
		kvm_vm_free(vm);
		return status;
	}
	*ret_vm = vm;
	return 0;
}

/* ---- vCPUs ---- */

static void kvm_vcpu_free(struct engine_vcpu *vcpu)
{
	if (!vcpu)
		return;
	for (struct engine_vcpu **at = &vcpu->vm->vcpus; *at; at = &(*at)->next) {
		if (*at == vcpu) {
			*at = vcpu->next;
			break;
		}
	}
	kvm_emulator_free(vcpu);
	if (vcpu->run)
		munmap(vcpu->run, vcpu->vm->run_bytes);
	if (vcpu->fd >= 0)
		close(vcpu->fd);
	free(vcpu);
}

static int open_vcpu(struct engine_vcpu *vcpu, struct error *err)
{
	vcpu->fd =
		kvm_ioctl(vcpu->vm->fd, KVM_CREATE_VCPU, (void *)(uintptr_t)vcpu->config.apic_id);
	if (vcpu->fd < 0)
		return error_set_errno(err, -vcpu->fd, "KVM makes no vCPU %u", vcpu->config.index);
	void *run =
		mmap(NULL, vcpu->vm->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (run == MAP_FAILED)
		return error_set_errno(err, errno, "can't map vCPU %u", vcpu->config.index);
	vcpu->run = run;
	/* Features that the CPU model does not name are refused. Older kernels can't. */
	struct kvm_enable_cap enforce = {.cap = KVM_CAP_ENFORCE_PV_FEATURE_CPUID, .args = {1}};
	kvm_ioctl(vcpu->fd, KVM_ENABLE_CAP, &enforce);
	return kvm_cpuid_set(vcpu, err);
}

static int kvm_vcpu_create(struct engine_vcpu **ret_vcpu, struct engine_vm *vm,
	const struct engine_vcpu_config *config, struct error *err)
{
	struct engine_vcpu *vcpu = calloc(1, sizeof(*vcpu));

	if (!vcpu)
		return error_set(err, ENOMEM, "no memory for vCPU %u", config->index);
	vcpu->vm = vm;
	vcpu->config = *config;
	vcpu->fd = -1;
	int status = open_vcpu(vcpu, err);
	if (status < 0) {
		kvm_vcpu_free(vcpu);
		return status;
	}
	vcpu->next = vm->vcpus;
	vm->vcpus = vcpu;
	*ret_vcpu = vcpu;
	return 0;
}

static void kvm_interrupt(struct engine_vcpu *vcpu)
{
	/* The kernel's interrupt controllers deliver by themselves. */
}

static void kvm_counters(struct engine_vcpu *vcpu, struct engine_counters *ret_counters)
{
	*ret_counters = vcpu->counters;
}

/* ---- dirty log ---- */

static int kvm_dirty_start(struct engine_vm *vm)
{
	return add_slots(vm, true, NULL);
}

static int kvm_dirty_stop(struct engine_vm *vm)
{
	return add_slots(vm, false, NULL);
}

static int sync_region(struct engine_vm *vm, unsigned index)
{
	const struct memory_region *r = &vm->config.memory->region[index];
	uint64_t pages = r->size_bytes >> GUEST_PAGE_SHIFT;
	AUTO_FREE uint64_t *bits = calloc((pages + 63) / 64, sizeof(*bits));
	struct kvm_dirty_log log = {.slot = index, .dirty_bitmap = bits};

	if (!bits)
		return -ENOMEM;
	int status = kvm_ioctl(vm->fd, KVM_GET_DIRTY_LOG, &log);
	for (uint64_t word = 0; status == 0 && word < (pages + 63) / 64; word++)
		for (uint64_t left = bits[word]; left; left &= left - 1)
			memory_mark_dirty(r,
				r->base + ((word * 64 + (unsigned)__builtin_ctzll(left))
						  << GUEST_PAGE_SHIFT),
				GUEST_PAGE_SIZE);
	return status;
}

static int kvm_dirty_sync(struct engine_vm *vm)
{
	int status = 0;

	for (unsigned i = 0; status == 0 && i < vm->config.memory->region_count; i++)
		status = sync_region(vm, i);
	return status;
}

/* Processors count instructions where hosts let them, and not to the one. */
static int kvm_set_budget(struct engine_vcpu *vcpu, uint64_t instructions)
{
	return instructions == UINT64_MAX ? 0 : -ENOTSUP;
}

const struct engine_ops engine_kvm_ops = {
	.name = "kvm",
	.caps = ENGINE_CAP_IRQCHIP | ENGINE_CAP_HARDWARE,
	.probe = kvm_probe,
	.cpuid_limit = kvm_cpuid_limit,
	.vm_create = kvm_vm_create,
	.vm_free = kvm_vm_free,
	.vcpu_create = kvm_vcpu_create,
	.vcpu_free = kvm_vcpu_free,
	.run = kvm_run,
	.kick = kvm_kick,
	.interrupt = kvm_interrupt,
	.nmi = kvm_nmi,
	.get_state = kvm_state_get,
	.set_state = kvm_state_set,
	.hold = kvm_hold,
	.release = kvm_release,
	.counters = kvm_counters,
	.dirty_start = kvm_dirty_start,
	.dirty_sync = kvm_dirty_sync,
	.dirty_stop = kvm_dirty_stop,
	.irq_line = kvm_irq_line,
	.msi = kvm_msi,
	.irqfd = kvm_irqfd,
	.ioeventfd = kvm_ioeventfd,
	.set_budget = kvm_set_budget,
};
