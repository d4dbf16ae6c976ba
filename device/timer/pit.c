/*
 * The 8254 timer: see pit.h.
 */
#include "device/timer/pit.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include <errno.h>
#include <stdlib.h>

struct pit {
	struct pit_config config;
	struct pit_state s;
	struct device_timer *timer;
	uint64_t next_ns; /* of the timer; 0: none */
};

/* ---- time ---- */

static uint64_t ticks_to_ns(uint64_t ticks)
{
	/* Rounded up, so that a timer that fires finds its edge in the past. */
	return (uint64_t)(((unsigned __int128)ticks * NS_PER_SEC + PIT_HZ - 1) / PIT_HZ);
}

static uint64_t elapsed_ticks(const struct pit *pit, const struct pit_channel *ch)
{
	uint64_t end_ns = ch->gate ? timer_now_ns(pit->config.time) : ch->held_ns;
	uint64_t ns = end_ns - ch->start_ns;

	return (uint64_t)((unsigned __int128)ns * PIT_HZ / NS_PER_SEC);
}

static bool periodic(const struct pit_channel *ch)
{
	return ch->mode == 2 || ch->mode == 3;
}

/* The counter's present value, 0..65535. */
static uint16_t current_count(const struct pit *pit, const struct pit_channel *ch)
{
	uint64_t ticks = elapsed_ticks(pit, ch);

	if (ch->null_count)
		return 0;
	if (ch->mode == 3) /* counts down by two, twice a period */
		return (uint16_t)(ch->count - ticks * 2 % ch->count);
	if (ch->mode == 2)
		return (uint16_t)(ch->count - ticks % ch->count);
	return (uint16_t)(ch->count - ticks); /* the others wrap and go on */
}

static bool output(const struct pit *pit, const struct pit_channel *ch)
{
	uint64_t ticks = elapsed_ticks(pit, ch);

	switch (ch->mode) {
	case 0: return !ch->null_count && ticks >= ch->count;
	case 1: return ch->null_count || ticks >= ch->count;
	case 2: return ch->null_count || ticks % ch->count != ch->count - 1;
	case 3: return ch->null_count || ticks % ch->count < (ch->count + 1) / 2;
	default: return ch->null_count || ticks != ch->count;
	}
}

/* ---- channel 0's interrupt ---- */

#define EDGE_MIN_TICKS 60u /* 50 us */

/* When the output of channel 0 rises next, in ticks after start; false: never. */
static bool next_edge(const struct pit *pit, uint64_t *ret_ticks)
{
	const struct pit_channel *ch = &pit->s.channel[0];
	uint64_t ticks = elapsed_ticks(pit, ch);

	if (ch->null_count)
		return false;
	if (periodic(ch))
		*ret_ticks = (ticks / ch->count + MAX(EDGE_MIN_TICKS / ch->count, 1u)) * ch->count;
	else if (ticks < ch->count)
		*ret_ticks = ch->count;
	else
		return false;
	return true;
}

static void arm(struct pit *pit)
{
	uint64_t ticks;

	if (!next_edge(pit, &ticks)) {
		pit->next_ns = 0;
		timer_cancel_in(pit->config.time, pit->timer);
		return;
	}
	pit->next_ns = pit->s.channel[0].start_ns + ticks_to_ns(ticks);
	timer_arm_in(pit->config.time, pit->timer, pit->next_ns);
}

static void pulse(struct pit *pit)
{
	irq_line_set(&pit->config.irq, false);
	irq_line_set(&pit->config.irq, true);
}

static void timer_fired(void *opaque)
{
	struct pit *pit = opaque;
	AUTO_LOCK(pit->config.lock);

	if (!pit->next_ns || timer_now_ns(pit->config.time) < pit->next_ns)
		return; /* re-armed meanwhile */
	pulse(pit);
	arm(pit);
}

/* ---- registers ---- */

static uint32_t from_bcd(uint16_t v)
{
	return (v >> 12) % 10 * 1000 + (v >> 8 & 15) % 10 * 100 + (v >> 4 & 15) % 10 * 10 +
	       (v & 15) % 10;
}

static uint16_t to_bcd(uint16_t v)
{
	v %= 10000;
	return (uint16_t)(v / 1000 << 12 | v / 100 % 10 << 8 | v / 10 % 10 << 4 | v % 10);
}

static void restart(struct pit *pit, struct pit_channel *ch)
{
	ch->start_ns = ch->held_ns = timer_now_ns(pit->config.time);
	if (ch != &pit->s.channel[0])
		return;
	/* Mode 0 goes low with the count and rises at its end; the others idle high. */
	irq_line_set(&pit->config.irq, false);
	arm(pit);
}

static void load_count(struct pit *pit, struct pit_channel *ch, uint16_t value)
{
	uint32_t whole = ch->bcd ? 10000 : 65536, count = ch->bcd ? from_bcd(value) : value;

	ch->count = count ? count : whole;
	/* Mode 3 halves an odd or tiny count strangely; a count of one is not allowed in 2 and 3. */
	if (periodic(ch) && ch->count < 2)
		ch->count = 2;
	ch->null_count = false;
	restart(pit, ch);
}

static void count_write(struct pit *pit, struct pit_channel *ch, uint8_t byte)
{
	if (ch->access == 1) {
		load_count(pit, ch, byte);
	} else if (ch->access == 2) {
		load_count(pit, ch, (uint16_t)(byte << 8));
	} else if (!ch->write_high) {
		ch->write_low = byte;
		ch->write_high = true;
	} else {
		ch->write_high = false;
		load_count(pit, ch, (uint16_t)(byte << 8 | ch->write_low));
	}
}

static uint8_t count_read(struct pit *pit, struct pit_channel *ch)
{
	uint16_t value = ch->latched ? ch->latch : current_count(pit, ch);
	bool high = ch->access == 2 || (ch->access == 3 && ch->read_high);

	if (ch->status_latched) {
		ch->status_latched = false;
		return ch->status;
	}
	if (ch->bcd && !ch->latched)
		value = to_bcd(value);
	if (ch->access == 3)
		ch->read_high = !ch->read_high;
	if (high || ch->access == 1)
		ch->latched = false;
	return (uint8_t)(high ? value >> 8 : value);
}

static void latch_count(struct pit *pit, struct pit_channel *ch)
{
	if (ch->latched)
		return;
	ch->latch = current_count(pit, ch);
	if (ch->bcd)
		ch->latch = to_bcd(ch->latch);
	ch->latched = true;
	ch->read_high = false;
}

static void latch_status(struct pit *pit, struct pit_channel *ch)
{
	if (ch->status_latched)
		return;
	ch->status = (uint8_t)(output(pit, ch) << 7 | ch->null_count << 6 | ch->access << 4 |
			       ch->mode << 1 | ch->bcd);
	ch->status_latched = true;
}

static void read_back(struct pit *pit, uint8_t byte)
{
	for (unsigned i = 0; i < PIT_CHANNELS; i++) {
		if (!(byte & 2u << i))
			continue;
		if (!(byte & 0x20))
			latch_count(pit, &pit->s.channel[i]);
		if (!(byte & 0x10))
			latch_status(pit, &pit->s.channel[i]);
	}
}

static void control_write(struct pit *pit, uint8_t byte)
{
	unsigned select = byte >> 6;

	if (select == 3) {
		read_back(pit, byte);
		return;
	}
	struct pit_channel *ch = &pit->s.channel[select];
	if (!(byte >> 4 & 3)) {
		latch_count(pit, ch);
		return;
	}
	*ch = (struct pit_channel){.access = byte >> 4 & 3,
		.bcd = byte & 1,
		.gate = ch->gate,
		.mode = byte >> 1 & 7,
		.null_count = true,
		.count = 65536};
	if (ch->mode > 5)
		ch->mode -= 4; /* 6 and 7 are 2 and 3 */
	if (select == 0) {
		/* Mode 0's output starts low, the others' high: both end an interrupt's edge. */
		irq_line_set(&pit->config.irq, false);
		arm(pit);
	}
}

static uint64_t pit_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
	struct pit *pit = opaque;

	return offset < PIT_CHANNELS ? count_read(pit, &pit->s.channel[offset]) : 0xff;
}

static void pit_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct pit *pit = opaque;

	if (offset < PIT_CHANNELS)
		count_write(pit, &pit->s.channel[offset], (uint8_t)value);
	else
		control_write(pit, (uint8_t)value);
}

/* Port 0x61: bit 0 gate of channel 2, 1 speaker, 4 refresh toggle, 5 output of channel 2. */
static uint64_t speaker_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
	struct pit *pit = opaque;
	uint64_t refresh = timer_now_ns(pit->config.time) / 15085 & 1;

	return pit->s.channel[2].gate | pit->s.speaker << 1 | refresh << 4 |
	       (uint64_t)output(pit, &pit->s.channel[2]) << 5;
}

static void speaker_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct pit *pit = opaque;
	struct pit_channel *ch = &pit->s.channel[2];
	bool gate = value & 1;

	pit->s.speaker = value & 2;
	if (gate == ch->gate)
		return;
	/* A low gate holds the count. When it rises, modes 0 and 4 go on and the others start anew. */
	if (!gate)
		ch->held_ns = timer_now_ns(pit->config.time);
	else if (ch->mode == 0 || ch->mode == 4)
		ch->start_ns += timer_now_ns(pit->config.time) - ch->held_ns;
	else
		restart(pit, ch);
	ch->gate = gate;
}

int pit_create(const struct pit_config *config, struct pit **ret_pit)
{
	AUTO_FREE struct pit *pit = calloc(1, sizeof(*pit));

	if (!pit)
		return -ENOMEM;
	pit->config = *config;
	pit->timer = timer_create_in(config->time, timer_fired, pit);
	if (!pit->timer)
		return -ENOMEM;
	for (unsigned i = 0; i < PIT_CHANNELS; i++)
		pit->s.channel[i] = (struct pit_channel){
			.count = 65536, .mode = 3, .access = 3, .null_count = true, .gate = i != 2};
	*ret_pit = take_ptr(&pit);
	return 0;
}

void pit_free(struct pit *pit)
{
	if (!pit)
		return;
	timer_free_in(pit->config.time, pit->timer);
	free(pit);
}

int pit_attach(struct pit *pit, struct bus *bus)
{
	static const struct bus_ops ops = {
		.read = pit_read, .write = pit_write, .access_max_bytes = 1};
	static const struct bus_ops speaker_ops = {.read = speaker_read, .write = speaker_write};
	int status = bus_add(bus, BUS_PIO, PIT_PORT, 4, "pit", &ops, pit, pit->config.lock);

	if (status < 0)
		return status;
	return bus_add(bus, BUS_PIO, PIT_SPEAKER_PORT, 1, "pit-speaker", &speaker_ops, pit,
		pit->config.lock);
}

void pit_save(struct pit *pit, struct pit_state *ret_state)
{
	AUTO_LOCK(pit->config.lock);
	*ret_state = pit->s;
}

static bool channel_valid(const struct pit_channel *ch, uint64_t now_ns, bool has_gate)
{
	if (ch->start_ns > now_ns || (!ch->gate && !has_gate))
		return false;
	if (!ch->gate && (ch->held_ns < ch->start_ns || ch->held_ns > now_ns))
		return false;
	return ch->count >= 1 && ch->count <= 65536 && !(periodic(ch) && ch->count < 2) &&
	       ch->mode <= 5 && ch->access >= 1 && ch->access <= 3;
}

int pit_load(struct pit *pit, const struct pit_state *state)
{
	AUTO_LOCK(pit->config.lock);
	for (unsigned i = 0; i < PIT_CHANNELS; i++)
		if (!channel_valid(&state->channel[i], timer_now_ns(pit->config.time), i == 2))
			return -EINVAL;
	pit->s = *state;
	arm(pit);
	return 0;
}
