/*
 * A vCPU's thread: runs its engine, waits while the processor is halted or waits for its SIPI, and does
 * what other processors ask of it (INIT, SIPI: SDM 3A 9.4 "Multiple-Processor Initialization").
 */
#include "base/cleanup.h"
#include "base/clock.h"
#include "device/irq/lapic.h"
#include "machine/private.h"
#include "machine/virtual.h"
#include <stdio.h>

static _Thread_local struct machine_vcpu *current;

struct machine_vcpu *machine_current_vcpu(void)
{
	return current;
}

void vcpu_post(struct machine_vcpu *vcpu, unsigned event)
{
	pthread_mutex_lock(&vcpu->lock);
	if (event == VCPU_INIT)
		vcpu->events &= ~(unsigned)VCPU_SIPI; /* it came before and is for nothing now */
	vcpu->events |= event;
	pthread_mutex_unlock(&vcpu->lock);
	/* Not before: it would wake to find the lock taken. */
	pthread_cond_signal(&vcpu->wake);
}

static unsigned take_events(struct machine_vcpu *vcpu, uint8_t *ret_sipi_vector)
{
	AUTO_LOCK(&vcpu->lock);
	unsigned events = vcpu->events;

	vcpu->events = 0;
	*ret_sipi_vector = vcpu->sipi_vector;
	return events;
}

static bool has_event(void *opaque)
{
	const struct machine_vcpu *vcpu = opaque;

	return vcpu->events || vcpu->machine->stopping || vcpu->machine->paused;
}

static void sleep_for_event(struct machine_vcpu *vcpu)
{
	AUTO_LOCK(&vcpu->lock);
	vcpu->machine->asleep++;
	while (!has_event(vcpu))
		pthread_cond_wait(&vcpu->wake, &vcpu->lock);
	vcpu->machine->asleep--;
}

/* A processor has to be left for those who bring the event. */
static bool may_look(const struct machine *m)
{
	return m->vcpu_count - m->asleep < m->host_cpus;
}

static void wait_for_event(struct machine_vcpu *vcpu)
{
	const uint64_t start_ns = clock_monotonic_ns();

	if (may_look(vcpu->machine) && brief_wait(&vcpu->wait, has_event, vcpu))
		return;
	sleep_for_event(vcpu);
	brief_learn(&vcpu->wait, clock_monotonic_ns() - start_ns);
}

/* INIT puts the processor into wait-for-SIPI (the boot processor restarts at the reset vector); a SIPI
 * is heard only there, and leaves any other processor's state untouched. */
static void apply_init_sipi(struct machine_vcpu *vcpu, unsigned events, uint8_t sipi_vector)
{
	const struct engine_ops *ops = vcpu->machine->config.engine;
	struct x86_state state;

	if (!(events & (VCPU_INIT | VCPU_SIPI)) || ops->get_state(vcpu->engine, &state) < 0)
		return;
	if (events & VCPU_INIT) {
		if (vcpu->lapic)
			lapic_init(vcpu->lapic);
		x86_state_init(&state);
	} else if (state.activity != X86_WAIT_FOR_SIPI) {
		return;
	}
	if ((events & VCPU_SIPI) && state.activity == X86_WAIT_FOR_SIPI)
		x86_state_sipi(&state, sipi_vector);
	ops->set_state(vcpu->engine, &state);
}

void vcpu_obey(struct machine_vcpu *vcpu)
{
	uint8_t sipi_vector;
	unsigned events = take_events(vcpu, &sipi_vector);

	apply_init_sipi(vcpu, events, sipi_vector);
}

/* Wait out a pause. False: the machine ends. */
static bool gate(struct machine_vcpu *vcpu)
{
	struct machine *m = vcpu->machine;

	if (likely(!m->paused && !m->stopping))
		return true;
	AUTO_LOCK(&m->lock);
	vcpu->parked = true;
	pthread_cond_broadcast(&m->changed);
	while (m->paused && !m->stopping)
		pthread_cond_wait(&m->changed, &m->lock);
	vcpu->parked = m->stopping;
	return !m->stopping;
}

static void crashed(struct machine_vcpu *vcpu)
{
	struct x86_state s;

	if (vcpu->machine->config.engine->get_state(vcpu->engine, &s) < 0)
		s = (struct x86_state){ 0 };
	machine_end(vcpu->machine, MACHINE_CRASHED, 0,
		"the guest crashed: triple fault on vCPU %u at %04x:%016llx (cr0 %llx cr2 %llx cr3 %llx "
		"cr4 %llx)",
		vcpu->index, s.seg[X86_CS].selector, (unsigned long long)s.reg[X86_RIP],
		(unsigned long long)s.cr0, (unsigned long long)s.cr2, (unsigned long long)s.cr3,
		(unsigned long long)s.cr4);
}

void vcpu_finish_run(struct machine_vcpu *vcpu, enum engine_exit exit, const struct error *err)
{
	struct machine *m = vcpu->machine;

	switch (exit) {
	case ENGINE_EXIT_KICKED:
	case ENGINE_EXIT_BUDGET:
	case ENGINE_EXIT_HALTED: break;
	case ENGINE_EXIT_SHUTDOWN: crashed(vcpu); break;
	case ENGINE_EXIT_RESET:
		machine_end(m, MACHINE_RESET, 0, "the guest reset the machine");
		break;
	case ENGINE_EXIT_ERROR:
		machine_end(m, MACHINE_FAILED, 0, "vCPU %u: %s", vcpu->index, err->text);
		break;
	}
}

static void run_once(struct machine_vcpu *vcpu)
{
	struct error err = { 0 };
	enum engine_exit exit;

	vcpu_obey(vcpu);
	exit = vcpu->machine->config.engine->run(vcpu->engine, &err);
	vcpu_finish_run(vcpu, exit, &err);
	if (exit == ENGINE_EXIT_HALTED)
		wait_for_event(vcpu);
}

static void run_once_virtual(struct machine_vcpu *vcpu)
{
	struct machine *m = vcpu->machine;

	if (machine_virtual_tick(m) == MACHINE_ASLEEP)
		wait_for_event(vcpu);
	else
		machine_virtual_run(m, MACHINE_VIRTUAL_SLICE);
}

void vcpu_enter(struct machine_vcpu *vcpu)
{
	current = vcpu;
}

void *vcpu_thread(void *opaque)
{
	struct machine_vcpu *vcpu = opaque;
	char name[16];

	vcpu_enter(vcpu);
	snprintf(name, sizeof(name), "vcpu%u", vcpu->index);
	pthread_setname_np(pthread_self(), name);
	while (gate(vcpu)) {
		if (vcpu->machine->config.virtual_time.on)
			run_once_virtual(vcpu);
		else
			run_once(vcpu);
	}
	return NULL;
}
