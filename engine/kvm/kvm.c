/*
 * The KVM engine: guest code runs on the processor's virtualization extensions; interrupt controllers are
 * the kernel's. Linux's Documentation/virt/kvm/api.rst.
 *
 * Kicks: a flag, kvm_run.immediate_exit and a signal whose handler does nothing; whichever the vCPU's
 * thread sees first makes KVM_RUN return.
 */
#include "base/cleanup.h"
#include "base/util.h"
#include "device/bus.h"
#include "engine/kvm/private.h"
#include "memory/memory.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define KICK_SIGNAL	(SIGRTMIN + 1)
#define TSS_GPA		0xfffbd000ul /* three pages that Intel's hosts use, in the hole */
#define IDENTITY_GPA	0xfffbc000ull
#define MMIO_BYTES_MAX	8

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
			return error_set_errno(err, -status, "KVM refuses guest memory '%s'", r->name);
	}
	return 0;
}

static int list_msrs(struct engine_vm *vm)
{
	struct kvm_msr_list probe = { 0 };

	kvm_ioctl(vm->kvm_fd, KVM_GET_MSR_INDEX_LIST, &probe); /* E2BIG, and the count */
	vm->msrs = calloc(1, sizeof(probe) + probe.nmsrs * sizeof(probe.indices[0]));
	if (!vm->msrs)
		return -ENOMEM;
	vm->msrs->nmsrs = probe.nmsrs;
	return kvm_ioctl(vm->kvm_fd, KVM_GET_MSR_INDEX_LIST, vm->msrs);
}

static bool has_cap(struct engine_vm *vm, long cap)
{
	return kvm_ioctl(vm->kvm_fd, KVM_CHECK_EXTENSION, (void *)cap) > 0;
}

static int set_up(struct engine_vm *vm, struct error *err)
{
	uint64_t identity = IDENTITY_GPA;
	int status;

	/* AMD hosts need neither and may refuse. */
	kvm_ioctl(vm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity);
	kvm_ioctl(vm->fd, KVM_SET_TSS_ADDR, (void *)TSS_GPA);
	status = kvm_ioctl(vm->fd, KVM_CREATE_IRQCHIP, NULL);
	if (status < 0)
		return error_set_errno(err, -status, "KVM makes no interrupt controllers");
	vm->has_xcrs = has_cap(vm, KVM_CAP_XCRS);
	vm->has_debugregs = has_cap(vm, KVM_CAP_DEBUGREGS);
	vm->has_tsc_deadline = has_cap(vm, KVM_CAP_TSC_DEADLINE_TIMER);
	status = list_msrs(vm);
	if (status < 0)
		return error_set_errno(err, -status, "KVM does not list its MSRs");
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
	free(vm->msrs);
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

static void on_kick(int number)
{
}

static int kvm_vm_create(struct engine_vm **ret_vm, const struct engine_vm_config *config,
	struct error *err)
{
	struct engine_vm *vm = calloc(1, sizeof(*vm));
	/* Without SA_RESTART: the signal's one purpose is to interrupt KVM_RUN. */
	const struct sigaction action = { .sa_handler = on_kick };

	if (!vm)
		return error_set(err, ENOMEM, "no memory for the virtual machine");
	vm->config = *config;
	vm->kvm_fd = vm->fd = -1;
	sigaction(KICK_SIGNAL, &action, NULL);
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
	kvm_emulator_free(vcpu);
	if (vcpu->run)
		munmap(vcpu->run, vcpu->vm->run_bytes);
	if (vcpu->fd >= 0)
		close(vcpu->fd);
	free(vcpu);
}

static int open_vcpu(struct engine_vcpu *vcpu, struct error *err)
{
	vcpu->fd = kvm_ioctl(vcpu->vm->fd, KVM_CREATE_VCPU, (void *)(uintptr_t)vcpu->config.apic_id);
	if (vcpu->fd < 0)
		return error_set_errno(err, -vcpu->fd, "KVM makes no vCPU %u", vcpu->config.index);
	void *run = mmap(NULL, vcpu->vm->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (run == MAP_FAILED)
		return error_set_errno(err, errno, "can't map vCPU %u", vcpu->config.index);
	vcpu->run = run;
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
	*ret_vcpu = vcpu;
	return 0;
}

/* ---- exits ---- */

/* A string of port accesses; KVM keeps its data in the shared page. */
static int exit_io(struct engine_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	struct bus *bus = vcpu->vm->config.bus;
	unsigned size = run->io.size;
	uint64_t end = run->io.data_offset + (uint64_t)size * run->io.count;

	if ((size != 1 && size != 2 && size != 4) || end > vcpu->vm->run_bytes)
		return -EIO;
	for (unsigned i = 0; i < run->io.count; i++) {
		uint8_t *at = (uint8_t *)run + run->io.data_offset + (size_t)i * size;
		uint32_t value = 0;

		if (run->io.direction == KVM_EXIT_IO_OUT) {
			memcpy(&value, at, size);
			bus_write(bus, BUS_PIO, run->io.port, size, value);
		} else {
			value = (uint32_t)bus_read(bus, BUS_PIO, run->io.port, size);
			memcpy(at, &value, size);
		}
	}
	vcpu->counters.pio++;
	return 0;
}

/* Accesses of an odd length (a part of one that crosses a page) go byte by byte. */
static int exit_mmio(struct engine_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	struct bus *bus = vcpu->vm->config.bus;
	unsigned length = run->mmio.len;
	unsigned step = length == 1 || length == 2 || length == 4 || length == 8 ? length : 1;

	if (!length || length > MMIO_BYTES_MAX)
		return -EIO;
	for (unsigned i = 0; i < length; i += step) {
		uint64_t value = 0;

		if (run->mmio.is_write) {
			memcpy(&value, run->mmio.data + i, step);
			bus_write(bus, BUS_MMIO, run->mmio.phys_addr + i, step, value);
		} else {
			value = bus_read(bus, BUS_MMIO, run->mmio.phys_addr + i, step);
			memcpy(run->mmio.data + i, &value, step);
		}
	}
	vcpu->counters.mmio++;
	return 0;
}

static enum engine_exit exit_error(struct engine_vcpu *vcpu, struct error *err)
{
	struct kvm_run *run = vcpu->run;

	switch (run->exit_reason) {
	case KVM_EXIT_FAIL_ENTRY:
		error_set(err, EIO, "KVM cannot enter the guest: hardware reason %#llx",
			(unsigned long long)run->fail_entry.hardware_entry_failure_reason);
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		error_set(err, EIO, "KVM internal error %u", run->internal.suberror);
		break;
	default: error_set(err, EIO, "KVM stopped for a reason unknown here: %u", run->exit_reason);
	}
	return ENGINE_EXIT_ERROR;
}

/* Goes on (ENGINE_EXIT_HALTED stands for that here, KVM never returns it) or leaves. */
static enum engine_exit handle_exit(struct engine_vcpu *vcpu, struct error *err)
{
	struct kvm_run *run = vcpu->run;
	int status = 0;

	vcpu->counters.exits++;
	switch (run->exit_reason) {
	case KVM_EXIT_IO: status = exit_io(vcpu); break;
	case KVM_EXIT_MMIO: status = exit_mmio(vcpu); break;
	case KVM_EXIT_INTR:
	case KVM_EXIT_IRQ_WINDOW_OPEN:
	case KVM_EXIT_HLT: break;
	case KVM_EXIT_SHUTDOWN: return ENGINE_EXIT_SHUTDOWN;
	case KVM_EXIT_SYSTEM_EVENT: return ENGINE_EXIT_RESET;
	case KVM_EXIT_INTERNAL_ERROR:
		if (run->internal.suberror != KVM_INTERNAL_ERROR_EMULATION)
			return exit_error(vcpu, err);
		status = kvm_emulate(vcpu, err);
		if (status == -ESHUTDOWN)
			return ENGINE_EXIT_SHUTDOWN;
		return status < 0 ? ENGINE_EXIT_ERROR : ENGINE_EXIT_HALTED;
	default: return exit_error(vcpu, err);
	}
	if (status < 0) {
		error_set(err, EIO, "KVM describes an access wrongly (exit %u)", run->exit_reason);
		return ENGINE_EXIT_ERROR;
	}
	return ENGINE_EXIT_HALTED;
}

/* KVM finishes an I/O instruction at the next KVM_RUN: with immediate_exit it does just that, so that the
 * state is whole when the vCPU leaves run. */
static void finish_io(struct engine_vcpu *vcpu)
{
	vcpu->run->immediate_exit = 1;
	ioctl(vcpu->fd, KVM_RUN, NULL);
	vcpu->run->immediate_exit = 0;
}

static enum engine_exit run_until_exit(struct engine_vcpu *vcpu, struct error *err)
{
	for (;;) {
		if (vcpu->kicked)
			return ENGINE_EXIT_KICKED;
		int result = ioctl(vcpu->fd, KVM_RUN, NULL);
		if (result < 0 && (errno == EINTR || errno == EAGAIN)) {
			/* A signal that meant nothing, or a SIPI that is not there yet. */
			vcpu->run->immediate_exit = 0;
			continue;
		}
		if (result < 0) {
			error_set_errno(err, errno, "KVM cannot run the vCPU");
			return ENGINE_EXIT_ERROR;
		}
		enum engine_exit exit = handle_exit(vcpu, err);
		if (exit != ENGINE_EXIT_HALTED)
			return exit;
	}
}

static enum engine_exit kvm_run(struct engine_vcpu *vcpu, struct error *err)
{
	vcpu->thread = pthread_self();
	vcpu->in_run = true;
	enum engine_exit exit = run_until_exit(vcpu, err);
	vcpu->in_run = false;
	if (exit == ENGINE_EXIT_KICKED) {
		finish_io(vcpu);
		vcpu->kicked = false;
	}
	return exit;
}

static void kvm_kick(struct engine_vcpu *vcpu)
{
	vcpu->kicked = true;
	vcpu->run->immediate_exit = 1;
	if (vcpu->in_run)
		pthread_kill(vcpu->thread, KICK_SIGNAL);
}

static void kvm_interrupt(struct engine_vcpu *vcpu)
{
	/* The kernel's interrupt controllers deliver by themselves. */
}

static void kvm_nmi(struct engine_vcpu *vcpu)
{
	kvm_ioctl(vcpu->fd, KVM_NMI, NULL);
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
	struct kvm_dirty_log log = { .slot = index, .dirty_bitmap = bits };

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

/* ---- interrupts from the board ---- */

static int kvm_irq_line(struct engine_vm *vm, unsigned gsi, bool level)
{
	struct kvm_irq_level line = { .irq = gsi, .level = level };

	return kvm_ioctl(vm->fd, KVM_IRQ_LINE, &line);
}

static int kvm_msi(struct engine_vm *vm, uint64_t address, uint32_t data)
{
	struct kvm_msi msi = { .address_lo = (uint32_t)address, .address_hi = (uint32_t)(address >> 32),
		.data = data };

	return kvm_ioctl(vm->fd, KVM_SIGNAL_MSI, &msi);
}

const struct engine_ops engine_kvm_ops = {
	.name = "kvm",
	.caps = ENGINE_CAP_IRQCHIP | ENGINE_CAP_HARDWARE,
	.probe = kvm_probe,
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
	.counters = kvm_counters,
	.dirty_start = kvm_dirty_start,
	.dirty_sync = kvm_dirty_sync,
	.dirty_stop = kvm_dirty_stop,
	.irq_line = kvm_irq_line,
	.msi = kvm_msi,
};
