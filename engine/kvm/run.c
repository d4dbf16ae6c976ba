/*
 * Running a KVM vCPU: KVM_RUN, what it returns for, and how other threads get it to return. Linux's
 * Documentation/virt/kvm/api.rst, section 5 "The kvm_run structure".
 *
 * Kicks: a flag says what is wanted; kvm_run.immediate_exit and a signal whose handler does nothing make
 * KVM_RUN return, whichever the vCPU's thread meets first. The flag is set before immediate_exit, and the
 * thread clears immediate_exit before it looks at the flags: a kick is never lost.
 */
#include "base/util.h"
#include "device/bus.h"
#include "engine/kvm/private.h"
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define KICK_SIGNAL    (SIGRTMIN + 1)
#define MMIO_BYTES_MAX 8

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
	case KVM_EXIT_UNKNOWN:
		error_set(err, EIO,
			"KVM does not know why the guest stopped: hardware reason %#llx",
			(unsigned long long)run->hw.hardware_exit_reason);
		break;
	default: error_set(err, EIO, "KVM stopped for a reason unknown here: %u", run->exit_reason);
	}
	return ENGINE_EXIT_ERROR;
}

/* Leaves, or goes on: ENGINE_EXIT_HALTED stands for that in this file, as KVM waits by itself. */
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
	case KVM_EXIT_SHUTDOWN: vcpu->shutdown = true; return ENGINE_EXIT_SHUTDOWN;
	case KVM_EXIT_SYSTEM_EVENT: return ENGINE_EXIT_RESET;
	case KVM_EXIT_INTERNAL_ERROR:
		if (run->internal.suberror != KVM_INTERNAL_ERROR_EMULATION)
			return exit_error(vcpu, err);
		if (kvm_emulate(vcpu, err) < 0)
			return ENGINE_EXIT_ERROR;
		return vcpu->shutdown ? ENGINE_EXIT_SHUTDOWN : ENGINE_EXIT_HALTED;
	default: return exit_error(vcpu, err);
	}
	if (status < 0) {
		error_set(err, EIO, "KVM describes an access wrongly (exit %u)", run->exit_reason);
		return ENGINE_EXIT_ERROR;
	}
	return ENGINE_EXIT_HALTED;
}

static void set_immediate_exit(struct engine_vcpu *vcpu, uint8_t value)
{
	/* Sequentially consistent, as the flags are: see the head of this file. */
	__atomic_store_n(&vcpu->run->immediate_exit, value, __ATOMIC_SEQ_CST);
}

void kvm_take_nmi(struct engine_vcpu *vcpu)
{
	if (vcpu->nmi && atomic_exchange(&vcpu->nmi, false))
		kvm_ioctl(vcpu->fd, KVM_NMI, NULL);
}

static enum engine_exit enter(struct engine_vcpu *vcpu, struct error *err)
{
	if (ioctl(vcpu->fd, KVM_RUN, NULL) == 0)
		return handle_exit(vcpu, err);
	/* EAGAIN: a processor that waits for its SIPI was woken for something else. */
	if (errno == EINTR || errno == EAGAIN)
		return ENGINE_EXIT_KICKED;
	error_set_errno(err, errno, "KVM cannot run the vCPU");
	return ENGINE_EXIT_ERROR;
}

/*
 * KVM finishes an instruction that it left for I/O at the next KVM_RUN; with immediate_exit it does just
 * that, so that the state is whole when the vCPU leaves run. Finishing may need more I/O (an access that
 * crosses a page, a string), hence the loop.
 */
static enum engine_exit finish_io(struct engine_vcpu *vcpu, struct error *err)
{
	enum engine_exit exit;

	do {
		set_immediate_exit(vcpu, 1);
		exit = enter(vcpu, err);
	} while (exit == ENGINE_EXIT_HALTED);
	set_immediate_exit(vcpu, 0);
	return exit;
}

static enum engine_exit run_until_exit(struct engine_vcpu *vcpu, struct error *err)
{
	enum engine_exit exit = ENGINE_EXIT_HALTED;

	while (exit == ENGINE_EXIT_HALTED || exit == ENGINE_EXIT_KICKED) {
		if (exit == ENGINE_EXIT_KICKED)
			set_immediate_exit(vcpu, 0);
		if (vcpu->kicked) {
			exit = finish_io(vcpu, err);
			vcpu->kicked = false;
			break;
		}
		kvm_take_nmi(vcpu);
		exit = enter(vcpu, err);
	}
	return exit;
}

enum engine_exit kvm_run(struct engine_vcpu *vcpu, struct error *err)
{
	if (vcpu->shutdown)
		return ENGINE_EXIT_SHUTDOWN;
	vcpu->thread = gettid();
	enum engine_exit exit = run_until_exit(vcpu, err);
	vcpu->thread = 0;
	return exit;
}

/* ---- from other threads ---- */

static void on_kick(int number) {}

void kvm_kick_init(void)
{
	/* Without SA_RESTART: the signal's one purpose is to interrupt KVM_RUN. */
	const struct sigaction action = {.sa_handler = on_kick};

	sigaction(KICK_SIGNAL, &action, NULL);
}

/* Make KVM_RUN return, or not start. Should the thread have ended meanwhile, nobody is harmed. */
static void interrupt_run(struct engine_vcpu *vcpu)
{
	set_immediate_exit(vcpu, 1);
	pid_t thread = vcpu->thread;
	if (thread && thread != gettid())
		tgkill(getpid(), thread, KICK_SIGNAL);
}

void kvm_kick(struct engine_vcpu *vcpu)
{
	vcpu->kicked = true;
	interrupt_run(vcpu);
}

/* KVM_NMI would wait until the vCPU leaves KVM_RUN, so its own thread does it. */
void kvm_nmi(struct engine_vcpu *vcpu)
{
	vcpu->nmi = true;
	interrupt_run(vcpu);
}
