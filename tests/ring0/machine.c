/*
 * One engine with a vCPU and the memory of the ring-0 test, through engine_ops alone. No board: ports and
 * physical addresses without RAM read as ones, whatever is written to them is lost.
 *
 * A timer kicks the vCPU when a case has run too long; after that, and after an error, the vCPU is made anew.
 */
#include "ring0.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/util.h"
#include "device/bus.h"
#include "engine/kvm/private.h"
#include "memory/memory.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

#define TICK_MS 20

struct r0_machine {
	const struct engine_ops *ops;
	struct x86_cpuid_model given, seen;
	struct guest_memory *memory;
	struct bus *bus;
	uint8_t *ram;
	struct engine_vm *vm;
	struct engine_vcpu *vcpu;
	uint8_t cr8;
	bool mmio;  /* it used an address that is not RAM */
	bool ended; /* the guest wrote to END_PORT */
	_Atomic bool late;
};

/* What the timer's signal is to kick, after how many ticks. */
static struct {
	struct r0_machine *_Atomic machine;
	_Atomic unsigned ticks_left;
} watch;

static void on_tick(int number)
{
	struct r0_machine *m = watch.machine;

	if (!m || !watch.ticks_left || --watch.ticks_left)
		return;
	m->late = true;
	m->ops->kick(m->vcpu);
}

static void start_ticks(void)
{
	const struct itimerval every = {{0, TICK_MS * 1000}, {0, TICK_MS * 1000}};
	const struct sigaction action = {.sa_handler = on_tick, .sa_flags = SA_RESTART};

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &every, NULL);
}

/* ---- the port, and hooks ---- */

static uint64_t end_read(void *device, uint64_t offset, unsigned size)
{
	return ~0ull;
}

static void end_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct r0_machine *m = device;

	m->ended = true;
	m->ops->kick(m->vcpu);
}

static uint64_t space_read(void *device, uint64_t offset, unsigned size)
{
	((struct r0_machine *)device)->mmio = true;
	return ~0ull;
}

static void space_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	((struct r0_machine *)device)->mmio = true;
}

/* All addresses without RAM. */
static const struct bus_ops space_device = {.read = space_read, .write = space_write};
static const struct bus_ops end_device = {.read = end_read, .write = end_write};

static int no_interrupt(void *opaque)
{
	return -1;
}

static bool no_msr_read(void *opaque, uint32_t index, uint64_t *ret_value)
{
	return false;
}

static bool no_msr_write(void *opaque, uint32_t index, uint64_t value)
{
	return false;
}

static uint8_t cr8_read(void *opaque)
{
	return ((struct r0_machine *)opaque)->cr8;
}

static void cr8_write(void *opaque, uint8_t value)
{
	((struct r0_machine *)opaque)->cr8 = value;
}

static uint64_t tsc(void *opaque)
{
	return clock_monotonic_ns();
}

static void adjust_tsc(void *opaque, uint64_t delta) {}

static uint64_t hypercall(void *opaque, uint64_t number, const uint64_t args[4])
{
	return (uint64_t)-1000;
}

static const struct engine_hooks hooks = {
	.interrupt_ack = no_interrupt,
	.msr_read = no_msr_read,
	.msr_write = no_msr_write,
	.cr8_read = cr8_read,
	.cr8_write = cr8_write,
	.tsc = tsc,
	.adjust_tsc = adjust_tsc,
	.hypercall = hypercall,
};

/* ---- life ---- */

static void stop_engine(struct r0_machine *m)
{
	watch.machine = NULL;
	if (m->vcpu)
		m->ops->vcpu_free(m->vcpu);
	if (m->vm)
		m->ops->vm_free(m->vm);
	m->vcpu = NULL;
	m->vm = NULL;
}

static int start_engine(struct r0_machine *m, struct error *err)
{
	const struct engine_vm_config vm = {.memory = m->memory,
		.bus = m->bus,
		.hooks = &hooks,
		.cpuid = &m->given,
		.cpus_max = 1,
		.tuning.precise = true}; /* flags that nobody reads are compared, too */
	const struct engine_vcpu_config vcpu = {.opaque = m};
	int status = m->ops->vm_create(&m->vm, &vm, err);

	if (status == 0)
		status = m->ops->vcpu_create(&m->vcpu, m->vm, &vcpu, err);
	if (status == 0)
		m->seen = m->ops == &engine_kvm_ops ? m->vcpu->cpuid : m->given;
	return status;
}

int r0_machine_create(struct r0_machine **ret_machine, const struct engine_ops *ops,
	const struct x86_cpuid_model *model, struct error *err)
{
	struct r0_machine *m = calloc(1, sizeof(*m));

	if (!m)
		return error_set(err, ENOMEM, "no memory");
	m->ops = ops;
	m->given = *model;
	int status = memory_create(&m->memory);
	if (status == 0)
		status = memory_add_ram(m->memory, 0, R0_RAM_BYTES, 0, "ram", err);
	if (status == 0)
		status = bus_create(&m->bus);
	if (status == 0)
		status = bus_add(m->bus, BUS_PIO, R0_END_PORT, 1, "end", &end_device, m, NULL);
	if (status == 0)
		status = bus_add(
			m->bus, BUS_MMIO, R0_RAM_BYTES, BIT(40), "space", &space_device, m, NULL);
	if (status == 0)
		status = start_engine(m, err);
	if (status < 0) {
		r0_machine_free(m);
		return status;
	}
	m->ram = memory_host(m->memory, 0, R0_RAM_BYTES, true);
	start_ticks();
	*ret_machine = m;
	return 0;
}

void r0_machine_free(struct r0_machine *m)
{
	if (!m)
		return;
	stop_engine(m);
	bus_free(m->bus);
	memory_free(m->memory);
	free(m);
}

const struct x86_cpuid_model *r0_machine_model(const struct r0_machine *m)
{
	return &m->seen;
}

/* ---- running ---- */

/* By memory_write(), so that an engine that keeps code learns of it; most pages are as they were. */
static void put(struct r0_machine *m, uint32_t gpa, const uint8_t *bytes, uint32_t count)
{
	if (memcmp(m->ram + gpa, bytes, count) != 0)
		memory_write(m->memory, gpa, bytes, count);
}

static void place(struct r0_machine *m, const uint8_t *image, const struct r0_case *c)
{
	for (uint32_t gpa = 0; gpa < R0_RAM_BYTES; gpa += GUEST_PAGE_SIZE)
		put(m, gpa, image + gpa, GUEST_PAGE_SIZE);
	put(m, c->code_gpa, c->code, c->code_bytes);
	for (unsigned i = 0; i < c->patch_count; i++)
		put(m, c->patch[i].gpa, c->patch[i].bytes, c->patch[i].size_bytes);
}

static enum r0_end run(struct r0_machine *m, unsigned limit_ms, struct error *err)
{
	enum engine_exit exit;

	m->ended = m->mmio = false;
	m->late = false;
	watch.machine = m;
	watch.ticks_left = limit_ms / TICK_MS + 2;
	do
		exit = m->ops->run(m->vcpu, err);
	while (exit == ENGINE_EXIT_KICKED && !m->ended && !m->late);
	watch.ticks_left = 0;
	switch (exit) {
	case ENGINE_EXIT_KICKED: return m->ended ? R0_END_OUT : R0_END_LATE;
	case ENGINE_EXIT_HALTED: return R0_END_HALTED;
	case ENGINE_EXIT_SHUTDOWN: return R0_END_SHUTDOWN;
	case ENGINE_EXIT_RESET: return R0_END_RESET;
	default: return R0_END_ERROR;
	}
}

int r0_machine_run(struct r0_machine *m, const uint8_t *image, const struct r0_case *c,
	unsigned limit_ms, struct r0_result *ret_result)
{
	struct engine_counters before, after;
	struct error err = {0};

	place(m, image, c);
	m->cr8 = (uint8_t)c->in.cr8;
	int status = m->ops->set_state(m->vcpu, &c->in);
	if (status < 0)
		return status;
	m->ops->counters(m->vcpu, &before);
	ret_result->end = run(m, limit_ms, &err);
	m->ops->counters(m->vcpu, &after);
	ret_result->emulated = after.emulated != before.emulated;
	ret_result->ram = m->ram;
	ret_result->mmio = m->mmio;
	snprintf(ret_result->error, sizeof(ret_result->error), "%s", err.text);
	status = m->ops->get_state(m->vcpu, &ret_result->out);
	if (status == 0 && (ret_result->end == R0_END_LATE || ret_result->end == R0_END_ERROR)) {
		stop_engine(m);
		status = start_engine(m, &err);
	}
	return status;
}
