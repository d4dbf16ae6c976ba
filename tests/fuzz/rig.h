/*
 * The board of a machine without the machine: every device on a bus, wired as machine/board.c does it,
 * on a clock that only moves when told to. What a guest does to it is therefore the same in every run.
 *
 * One thread only.
 */
#ifndef LODGE_TESTS_FUZZ_RIG_H
#define LODGE_TESTS_FUZZ_RIG_H

#include "tests/device/fake.h"

#include "device/acpi_pm.h"
#include "device/char/debug_exit.h"
#include "device/char/i8042.h"
#include "device/char/pvpanic.h"
#include "device/char/uart16550.h"
#include "device/irq/ioapic.h"
#include "device/irq/lapic.h"
#include "device/irq/pic.h"
#include "device/timer/pit.h"
#include "device/timer/rtc.h"
#include "engine/engine.h"
#include "memory/memory.h"

#include <stdio.h>
#include <unistd.h>

#define RIG_CPUS	 2
#define RIG_MEMORY_BYTES MIB(16)

struct rig;

struct rig_cpu {
	struct rig *rig;
	unsigned index;
	struct lapic *lapic;
	bool intr, nmi, init, sipi;
	uint8_t sipi_vector;
	uint64_t tsc_offset;
};

struct rig {
	struct fake_time time;
	struct guest_memory *memory;
	struct bus *bus;
	pthread_mutex_t device_lock, pic_lock;
	struct lapic_bus *lapics;
	struct rig_cpu cpu[RIG_CPUS];
	unsigned current; /* the processor that accesses the bus */
	struct ioapic *ioapic;
	struct pic *pic;
	struct pit *pit;
	struct rtc *rtc;
	struct uart *uart;
	struct acpi_pm pm;
	struct i8042 i8042;
	struct debug_exit debug_exit;
	struct pvpanic pvpanic;
	uint64_t output_bytes;
	bool ended; /* power off, reset or exit was asked for */
	struct x86_cpuid_model cpuid;
	uint64_t dirty[(RIG_MEMORY_BYTES >> GUEST_PAGE_SHIFT) / 64];
};

#define MUST(condition)                                                                            \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			fprintf(stderr, "%s:%d: must hold: %s\n", __FILE__, __LINE__, #condition); \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

/* Everything in its power-up state; memory is zero. */
void rig_init(struct rig *rig);
void rig_done(struct rig *rig);
/* Make all memory zero again, by the dirty log. */
void rig_wipe(struct rig *rig);

/* What an engine asks; opaque is a rig_cpu. */
extern const struct engine_hooks rig_hooks;

/* A random source of the tests' own: the same everywhere. */
static inline uint64_t rig_random(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

/* Input bytes, taken from the front; zeroes when there are no more. */
struct rig_input {
	const uint8_t *data;
	size_t left;
};

uint64_t rig_take(struct rig_input *in, unsigned bytes);
void rig_take_bytes(struct rig_input *in, void *to, size_t bytes);

/* The next descriptor to be had: as before a target's turn, unless it leaves one open. */
static inline int rig_lowest_fd(void)
{
	int fd = dup(0);

	close(fd);
	return fd;
}

/* ---- a target, for libFuzzer or for main.c ---- */

/* One input. What must hold is the target's business: it aborts where something does not. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/* An input of a target's own kind, which main.c makes at random; `size` is the room. Without it: any bytes. */
size_t rig_make(uint8_t *buf, size_t size, uint64_t *seed);
/* main.c has replayed this one, before it makes its own. Without it: nothing. */
void rig_replayed(const uint8_t *data, size_t size);

#endif
