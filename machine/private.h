/*
 * What the files of the machine share.
 */
#ifndef LODGE_MACHINE_PRIVATE_H
#define LODGE_MACHINE_PRIVATE_H

#include "base/brief.h"
#include "base/error.h"
#include "base/log.h"
#include "machine/board.h"
#include "machine/clock.h"
#include "machine/devices.h"
#include "machine/machine.h"
#include <pthread.h>
#include <stdatomic.h>

enum vcpu_event {
	VCPU_WAKE = 1, /* look again: an interrupt, an NMI, a stop */
	VCPU_INIT = 2,
	VCPU_SIPI = 4,
};

struct machine_vcpu {
	struct machine *machine;
	unsigned index;
	struct engine_vcpu *engine;
	struct lapic *lapic; /* NULL with an engine that has its own */
	pthread_t thread;
	bool started;

	pthread_mutex_t lock; /* innermost: nothing is taken under it */
	pthread_cond_t wake;
	_Atomic unsigned events; /* enum vcpu_event; changed under the lock */
	uint8_t sipi_vector;
	struct brief_wait wait; /* the vCPU's thread only */
	/* Virtual time (virtual.h); the vCPU's thread only. */
	bool nmi_asked;	 /* an NMI waits for the next tick */
	bool intr_offered; /* interrupt_ack may give a vector */

	bool parked; /* holds no guest state in the engine: paused or ended */

	_Atomic uint64_t tsc_offset; /* this vCPU's TSC - the machine's */
	uint64_t kvm_system_time;    /* MSR_KVM_SYSTEM_TIME_NEW */
	uint64_t kvm_wall_clock;
	struct log_limit msr_limit;
};

struct machine {
	struct machine_config config;
	struct guest_memory *memory;
	struct machine_clock *clock;
	struct bus *bus;
	struct flash *flash; /* NULL: none */
	struct board *board;
	struct devices *devices; /* NULL: none */
	struct watchdog *watchdog; /* NULL: none */
	struct irqfds *irqfds; /* made when first asked for, under `lock` */
	struct x86_cpuid_model cpuid;
	struct engine_vm *vm;
	unsigned vcpu_count;
	struct machine_vcpu *vcpu; /* vcpu_count of them */
	unsigned host_cpus; /* that this process may use */
	_Atomic unsigned asleep; /* vCPUs */

	pthread_mutex_t lock; /* below the devices' locks, above vcpu.lock */
	pthread_cond_t changed;
	_Atomic bool stopping;
	_Atomic unsigned paused; /* enum machine_pause; changed under `lock` */
	bool held; /* the engine's time, under `lock` */
	uint64_t skipped_ns; /* virtual time: what halted processors did not wait for */
	bool has_result;
	struct machine_result result;
};

extern const struct engine_hooks machine_hooks;

/* The vCPU whose thread this is; NULL on other threads. */
struct machine_vcpu *machine_current_vcpu(void);

/* The machine ends so; the first call counts. Any thread, any device lock held. */
void machine_end(struct machine *machine, enum machine_end end, uint8_t status, const char *fmt, ...)
	PRINTF_LIKE(4, 5);

/* Tell a vCPU that something happened. Any thread, any device lock held. */
void vcpu_post(struct machine_vcpu *vcpu, unsigned event);
void *vcpu_thread(void *vcpu);
/* On the vCPU's thread: become the current one (NULL: none is), do what other processors asked, act on what the
 * engine's run returned. A halted one does not wait here. */
void vcpu_enter(struct machine_vcpu *vcpu);
void vcpu_obey(struct machine_vcpu *vcpu);
void vcpu_finish_run(struct machine_vcpu *vcpu, enum engine_exit exit, const struct error *err);

#endif
