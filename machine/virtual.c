/*
 * Ticks and slices: see virtual.h.
 *
 * Invariant: whether an interrupt or an NMI is delivered is decided in the tick, from the state, and the engine
 * takes it before it executes anything. So delivery never depends on when an engine looks.
 */
#include "machine/virtual.h"
#include "machine/private.h"
#include <errno.h>
#include <inttypes.h>

int virtual_check(const struct machine_config *config, struct error *err)
{
	if (config->cpus != 1)
		return error_set(err, EINVAL, "virtual time is for machines with one vCPU, not %u",
			config->cpus);
	if (config->engine->caps & ENGINE_CAP_IRQCHIP)
		return error_set(err, EINVAL,
			"the engine %s does not count instructions: no virtual time",
			config->engine->name);
	return 0;
}

void virtual_defaults(struct machine_config *config)
{
	if (!config->virtual_time.ns_per_kiloinstruction)
		config->virtual_time.ns_per_kiloinstruction = 1000;
	config->tuning.count = true;
	if (!config->tuning.random_seed)
		config->tuning.random_seed = 1;
}

void virtual_notify(struct machine_vcpu *vcpu, enum lapic_signal signal)
{
	switch (signal) {
	case LAPIC_SIGNAL_NMI: vcpu->nmi_asked = true; break;
	case LAPIC_SIGNAL_INIT: vcpu_post(vcpu, VCPU_INIT); return;
	case LAPIC_SIGNAL_SIPI: /* the boot processor never waits for one */
	case LAPIC_SIGNAL_SMI: return;
	case LAPIC_SIGNAL_INTR: /* the tick asks by itself */
	case LAPIC_SIGNAL_EXTINT: break;
	}
	vcpu_post(vcpu, VCPU_WAKE);
}

bool virtual_take_offer(struct machine_vcpu *vcpu)
{
	bool offered = vcpu->intr_offered;

	vcpu->intr_offered = false;
	return offered;
}

uint64_t machine_virtual_count(struct machine *m)
{
	struct engine_counters counters;

	m->config.engine->counters(m->vcpu[0].engine, &counters);
	return counters.instructions;
}

static uint64_t time_of(const struct machine *m, uint64_t count)
{
	uint64_t rate = m->config.virtual_time.ns_per_kiloinstruction;

	return m->skipped_ns + count / 1000 * rate + count % 1000 * rate / 1000;
}

/* Would the processor take an interrupt or an NMI at this place, if there is one? */
static bool takes_intr(const struct x86_state *s)
{
	return (s->rflags & X86_IF) && !s->interrupt_shadow && !s->mov_ss_shadow &&
	       s->activity <= X86_HALTED;
}

static bool takes_nmi(const struct x86_state *s)
{
	return !s->nmi_blocked && !s->mov_ss_shadow && s->activity <= X86_HALTED;
}

/* True: something will be delivered first. */
static bool offer(struct machine_vcpu *vcpu, const struct x86_state *state)
{
	struct machine *m = vcpu->machine;

	if (unlikely(vcpu->nmi_asked) && takes_nmi(state)) {
		vcpu->nmi_asked = false;
		m->config.engine->nmi(vcpu->engine);
		return true;
	}
	if (!takes_intr(state) || !board_interrupt_pending(m->board, vcpu->index))
		return false;
	vcpu->intr_offered = true;
	m->config.engine->interrupt(vcpu->engine);
	return true;
}

/* Let time pass to the next timer. False: there is none, or it would be of no use. */
static bool skip(struct machine *m, const struct x86_state *state, uint64_t count)
{
	uint64_t now_ns = time_of(m, count), next_ns = machine_clock_next(m->clock);

	if (state->activity != X86_HALTED || !takes_intr(state) || next_ns == UINT64_MAX)
		return false;
	m->skipped_ns += next_ns > now_ns ? next_ns - now_ns : 0;
	machine_clock_advance(m->clock, time_of(m, count));
	return true;
}

enum machine_tick machine_virtual_tick(struct machine *m)
{
	struct machine_vcpu *vcpu = &m->vcpu[0];
	uint64_t count = machine_virtual_count(m);
	struct x86_state state;

	machine_clock_advance(m->clock, time_of(m, count));
	if (m->stopping)
		return MACHINE_ENDED;
	vcpu_enter(vcpu);
	vcpu_obey(vcpu);
	if (m->config.engine->get_state(vcpu->engine, &state) < 0)
		return MACHINE_ENDED;
	while (!offer(vcpu, &state) && state.activity != X86_RUNNING)
		if (m->stopping || !skip(m, &state, count))
			return m->stopping ? MACHINE_ENDED : MACHINE_ASLEEP;
	return MACHINE_READY;
}

uint64_t machine_virtual_run(struct machine *m, uint64_t instructions)
{
	struct machine_vcpu *vcpu = &m->vcpu[0];
	const struct engine_ops *ops = m->config.engine;
	uint64_t before = machine_virtual_count(m);
	struct error err = {0};
	int status = ops->set_budget(vcpu->engine, instructions);

	if (status < 0) {
		machine_end(
			m, MACHINE_FAILED, 0, "the engine %s cannot count instructions", ops->name);
		return 0;
	}
	vcpu_enter(vcpu);
	vcpu_finish_run(vcpu, ops->run(vcpu->engine, &err), &err);
	if (vcpu->intr_offered)
		machine_end(m, MACHINE_FAILED, 0,
			"the engine %s did not ask for an interrupt that it was told of",
			ops->name);
	return machine_virtual_count(m) - before;
}
