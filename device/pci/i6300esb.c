/*
 * The 6300ESB's watchdog timer: see i6300esb.h.
 *
 * The counter has 35 bits and counts down at 33 MHz; a preload of 20 bits is its upper bits, or with the fine prescaler
 * those ten places lower. Registers in memory are written after 0x80 and 0x86 went to the reload register, one
 * register a time.
 *
 * Invariant: `deadline_ns` is when the stage under way ends, and the timer is armed for it, while the watchdog is
 * enabled; else it is UINT64_MAX.
 */
#include "device/pci/i6300esb.h"

#include "base/bytes.h"
#include "base/cleanup.h"
#include "device/timer_source.h"

#include <errno.h>
#include <stdlib.h>

#define BAR_BYTES    16
#define CLOCK_HZ     33000000ull
#define PRELOAD_MASK 0xfffffu
#define STAGE_MIN_NS 50000ull /* so that no guest keeps the host busy with it */

#define CONFIG_REG    0x60 /* two bytes */
#define CONFIG_FINE   0x04
#define CONFIG_SILENT 0x20 /* the output is off */
#define CONFIG_BITS   0x27
#define LOCK_REG      0x68
#define LOCK_LOCKED   0x01
#define LOCK_ENABLE   0x02
#define LOCK_FREE_RUN 0x04
#define LOCK_BITS     0x07

enum memory_register { REG_PRELOAD1 = 0, REG_PRELOAD2 = 4, REG_INTERRUPT = 8, REG_RELOAD = 12 };

#define RELOAD_NOW     0x100u
#define RELOAD_TIMEOUT 0x200u
#define UNLOCK_FIRST   0x80u
#define UNLOCK_SECOND  0x86u

struct i6300esb {
	struct i6300esb_config config;
	struct pci_device *pci;
	struct device_timer *timer;
	uint32_t preload[2];
	unsigned unlocked; /* how much of the sequence has been written: 2 is all */
	unsigned stage;
	bool timed_out;
	uint8_t lock; /* LOCK_REG, as it was taken */
	uint64_t deadline_ns;
};

static uint64_t stage_ns(const struct i6300esb *dog)
{
	const bool fine = pci_device_config_space(dog->pci)[CONFIG_REG] & CONFIG_FINE;
	const uint64_t cycles = (uint64_t)(dog->preload[dog->stage] + 1) << (fine ? 5 : 15);

	return MAX(cycles * 1000000000ull / CLOCK_HZ, STAGE_MIN_NS);
}

static void begin_stage(struct i6300esb *dog, unsigned stage)
{
	dog->stage = stage;
	dog->deadline_ns = timer_now_ns(dog->config.time) + stage_ns(dog);
	timer_arm_in(dog->config.time, dog->timer, dog->deadline_ns);
}

static void restart(struct i6300esb *dog)
{
	if (dog->lock & LOCK_ENABLE) {
		begin_stage(dog, dog->lock & LOCK_FREE_RUN ? 1 : 0);
		return;
	}
	dog->deadline_ns = UINT64_MAX;
	timer_cancel_in(dog->config.time, dog->timer);
}

static void fire(void *opaque)
{
	struct i6300esb *dog = opaque;
	AUTO_LOCK(dog->config.lock);

	if (timer_now_ns(dog->config.time) < dog->deadline_ns)
		return;
	if (dog->stage == 0) {
		begin_stage(dog, 1);
		return;
	}
	dog->timed_out = true;
	if (!(pci_device_config_space(dog->pci)[CONFIG_REG] & CONFIG_SILENT))
		dog->config.bark(dog->config.opaque);
	/* The output stays where it is until a reset; only the free-running one goes on. */
	if (dog->lock & LOCK_FREE_RUN)
		begin_stage(dog, 1);
	else
		dog->deadline_ns = UINT64_MAX;
}

/* ---- registers ---- */

/* Once locked it can't be stopped. */
static void write_lock(struct i6300esb *dog, uint8_t *reg)
{
	const bool was_enabled = dog->lock & LOCK_ENABLE;

	if (dog->lock & LOCK_LOCKED) {
		*reg = dog->lock;
		return;
	}
	dog->lock = *reg & LOCK_BITS;
	if (!was_enabled || !(dog->lock & LOCK_ENABLE))
		restart(dog);
}

static void config_written(void *opaque, unsigned offset, unsigned size_bytes)
{
	struct i6300esb *dog = opaque;

	if (offset <= LOCK_REG && LOCK_REG < offset + size_bytes)
		write_lock(dog, pci_device_config_space(dog->pci) + LOCK_REG);
}

static uint64_t dog_read(void *device, uint64_t offset, unsigned size_bytes)
{
	const struct i6300esb *dog = device;
	const uint32_t value =
		(offset & ~3ull) == REG_RELOAD && dog->timed_out ? RELOAD_TIMEOUT : 0;

	return value >> 8 * (offset & 3) &
	       (size_bytes == 4 ? UINT32_MAX : (1u << 8 * size_bytes) - 1);
}

static void write_reload(struct i6300esb *dog, uint32_t value)
{
	if (value == UNLOCK_FIRST) {
		dog->unlocked = 1;
		return;
	}
	if (value == UNLOCK_SECOND && dog->unlocked == 1) {
		dog->unlocked = 2;
		return;
	}
	if (dog->unlocked == 2) {
		if (value & RELOAD_TIMEOUT)
			dog->timed_out = false;
		if (value & RELOAD_NOW && dog->deadline_ns != UINT64_MAX)
			restart(dog);
	}
	dog->unlocked = 0;
}

static void dog_write(void *device, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct i6300esb *dog = device;

	switch (offset) {
	case REG_PRELOAD1:
	case REG_PRELOAD2:
		if (dog->unlocked == 2 && size_bytes == 4)
			dog->preload[offset / 4] = (uint32_t)value & PRELOAD_MASK;
		dog->unlocked = 0;
		break;
	case REG_RELOAD: write_reload(dog, (uint32_t)value); break;
	default: break; /* no interrupt is ever pending */
	}
}

static const struct bus_ops dog_ops = {
	.read = dog_read,
	.write = dog_write,
	.access_max_bytes = 4,
};

/* ---- life ---- */

struct pci_device *i6300esb_function(struct i6300esb *dog)
{
	return dog->pci;
}

void i6300esb_free(struct i6300esb *dog)
{
	if (!dog)
		return;
	timer_free_in(dog->config.time, dog->timer);
	pci_device_free(dog->pci);
	free(dog);
}

static int create_function(struct i6300esb *dog)
{
	const struct pci_device_config config = {
		.name = "watchdog",
		.vendor = 0x8086,
		.device = 0x25ab,
		.class_code = 0x088000,
		.bus = dog->config.bus,
		.lock = dog->config.lock,
		.conventional = true,
		.config_written = config_written,
		.opaque = dog,
	};
	int status = pci_device_create(&config, &dog->pci);

	if (status < 0)
		return status;
	pci_device_set_writable(dog->pci, CONFIG_REG, CONFIG_BITS);
	pci_device_set_writable(dog->pci, LOCK_REG, LOCK_BITS);
	return pci_device_add_bar(dog->pci, 0, PCI_BAR_MEM32, false, BAR_BYTES, &dog_ops, dog);
}

int i6300esb_create(const struct i6300esb_config *config, struct i6300esb **ret_dog)
{
	struct i6300esb *dog = calloc(1, sizeof(*dog));

	if (!dog)
		return -ENOMEM;
	*dog = (struct i6300esb){.config = *config,
		.preload = {PRELOAD_MASK, PRELOAD_MASK},
		.deadline_ns = UINT64_MAX};
	dog->timer = timer_create_in(config->time, fire, dog);
	int status = dog->timer ? create_function(dog) : -ENOMEM;
	if (status < 0) {
		i6300esb_free(dog);
		return status;
	}
	*ret_dog = dog;
	return 0;
}
