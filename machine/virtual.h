/*
 * Virtual time: a machine whose clocks count the instructions of its one processor (machine_virtual_time in
 * machine.h). Runs of it can be repeated, and two machines on two engines compared.
 *
 * A machine lives in turns of a tick and a slice. The tick sets the time to the processor's count, lets the
 * timers fire that are due, and offers an interrupt if the processor would take one at this place. In the slice
 * time stands still and nothing else is offered. So a guest sees nothing that depends on where an engine has its
 * block boundaries, if only its ticks come at the same counts. A halted processor does not wait: the tick goes on
 * to the next timer, until one wakes it.
 *
 * machine_start() gives the turns their thread. Who leaves it out calls the two functions, on one thread at a
 * time, until a tick says that the machine has ended; machine_wait() then tells how.
 *
 * Not repeatable: input from outside (the console's, the power button), unless it comes at fixed counts.
 */
#ifndef LODGE_MACHINE_VIRTUAL_H
#define LODGE_MACHINE_VIRTUAL_H

#include "device/irq/lapic.h"
#include "machine/machine.h"

/* What machine_start()'s thread gives a slice: the finest time that a guest can see, in instructions. */
#define MACHINE_VIRTUAL_SLICE 1000

enum machine_tick {
	MACHINE_READY,	/* for a slice */
	MACHINE_ASLEEP, /* halted, and no timer will wake it */
	MACHINE_ENDED,	/* it has a result */
};

enum machine_tick machine_virtual_tick(struct machine *machine);

/* Run on in the present slice until at least so many instructions have been completed (engine_ops.set_budget) or
 * the processor halts. Returns how many were. */
uint64_t machine_virtual_run(struct machine *machine, uint64_t instructions);

/* Its processor's count. */
uint64_t machine_virtual_count(struct machine *machine);

/* ---- for the machine ---- */

struct machine_vcpu;

/* One vCPU, an engine that counts. */
MUST_CHECK int virtual_check(const struct machine_config *config, struct error *err);
void virtual_defaults(struct machine_config *config);
/* What the local APIC tells; kept for the next tick. */
void virtual_notify(struct machine_vcpu *vcpu, enum lapic_signal signal);
/* The engine asks for an interrupt: was one offered? Once only. */
bool virtual_take_offer(struct machine_vcpu *vcpu);

#endif
