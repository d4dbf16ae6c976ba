/*
 * The real-time clock: see rtc.h.
 */
#include "device/timer/rtc.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include <errno.h>
#include <stdlib.h>
#include <time.h>

enum reg {
	SECONDS,
	SECONDS_ALARM,
	MINUTES,
	MINUTES_ALARM,
	HOURS,
	HOURS_ALARM,
	WEEKDAY,
	DAY,
	MONTH,
	YEAR,
	REG_A,
	REG_B,
	REG_C,
	REG_D,
	CENTURY = 0x32
};

#define A_UIP	     0x80
#define A_RATE	     0x0f
#define B_SET	     0x80
#define B_INTERRUPTS 0x70 /* periodic, alarm, update: the same bits as in C */
#define B_PERIODIC   0x40
#define B_ALARM	     0x20
#define B_UPDATE     0x10
#define B_BINARY     0x04
#define B_24H	     0x02
#define C_IRQF	     0x80
#define D_VALID	     0x80
#define UIP_NS	     244000u /* the update is announced this long before the second turns */
#define OFFSET_MAX_S (INT64_C(200) * 366 * 86400)

struct rtc {
	struct rtc_config config;
	struct rtc_state s;
	struct device_timer *second_timer, *periodic_timer;
	uint64_t periodic_next_ns; /* 0: off */
	int64_t last_second;	   /* of which the update was seen */
};

/* ---- the time ---- */

static uint64_t host_realtime_ns(const struct rtc *rtc)
{
	return timer_realtime_ns(rtc->config.time);
}

static int64_t guest_seconds(const struct rtc *rtc)
{
	return (int64_t)(host_realtime_ns(rtc) / NS_PER_SEC) + rtc->s.offset_s;
}

static uint8_t encode(const struct rtc *rtc, unsigned v)
{
	return (uint8_t)(rtc->s.cmos[REG_B] & B_BINARY ? v : v / 10 << 4 | v % 10);
}

static unsigned decode(const struct rtc *rtc, uint8_t v)
{
	return rtc->s.cmos[REG_B] & B_BINARY ? v : (v >> 4) * 10u + (v & 15);
}

static uint8_t encode_hour(const struct rtc *rtc, unsigned hour)
{
	if (rtc->s.cmos[REG_B] & B_24H)
		return encode(rtc, hour);
	return encode(rtc, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? 0x80 : 0);
}

static unsigned decode_hour(const struct rtc *rtc, uint8_t v)
{
	if (rtc->s.cmos[REG_B] & B_24H)
		return decode(rtc, v);
	return decode(rtc, v & 0x7f) % 12 + (v & 0x80 ? 12 : 0);
}

/* Fill the clock registers from the time, unless the guest holds them (SET). */
static void refresh(struct rtc *rtc)
{
	uint8_t *cmos = rtc->s.cmos;
	time_t now = guest_seconds(rtc);
	struct tm tm;

	if ((cmos[REG_B] & B_SET) || !gmtime_r(&now, &tm))
		return;
	cmos[SECONDS] = encode(rtc, (unsigned)tm.tm_sec);
	cmos[MINUTES] = encode(rtc, (unsigned)tm.tm_min);
	cmos[HOURS] = encode_hour(rtc, (unsigned)tm.tm_hour);
	cmos[WEEKDAY] = encode(rtc, (unsigned)tm.tm_wday + 1);
	cmos[DAY] = encode(rtc, (unsigned)tm.tm_mday);
	cmos[MONTH] = encode(rtc, (unsigned)tm.tm_mon + 1);
	cmos[YEAR] = encode(rtc, (unsigned)(tm.tm_year + 1900) % 100);
	cmos[CENTURY] = encode(rtc, (unsigned)(tm.tm_year + 1900) / 100);
}

/* The guest wrote the clock: the offset follows. Nonsense is normalised by timegm. */
static void adopt(struct rtc *rtc)
{
	const uint8_t *cmos = rtc->s.cmos;
	struct tm tm = {
		.tm_sec = (int)decode(rtc, cmos[SECONDS]),
		.tm_min = (int)decode(rtc, cmos[MINUTES]),
		.tm_hour = (int)decode_hour(rtc, cmos[HOURS]),
		.tm_mday = (int)decode(rtc, cmos[DAY]),
		.tm_mon = (int)decode(rtc, cmos[MONTH]) - 1,
		.tm_year = (int)(decode(rtc, cmos[CENTURY]) * 100 + decode(rtc, cmos[YEAR])) - 1900,
	};
	int64_t offset = timegm(&tm) - (int64_t)(host_realtime_ns(rtc) / NS_PER_SEC);

	if (offset > -OFFSET_MAX_S && offset < OFFSET_MAX_S)
		rtc->s.offset_s = offset;
}

/* ---- interrupts ---- */

static void update_line(struct rtc *rtc)
{
	uint8_t *cmos = rtc->s.cmos;
	bool level = cmos[REG_C] & cmos[REG_B] & B_INTERRUPTS;

	cmos[REG_C] = (uint8_t)((cmos[REG_C] & ~C_IRQF) | (level ? C_IRQF : 0));
	if (level == rtc->s.line)
		return;
	rtc->s.line = level;
	irq_line_set(&rtc->config.irq, level);
}

static uint64_t period_ns(const struct rtc *rtc)
{
	unsigned rate = rtc->s.cmos[REG_A] & A_RATE;

	if (!rate || !(rtc->s.cmos[REG_B] & B_PERIODIC))
		return 0;
	if (rate < 3)
		rate += 7; /* 1 and 2 are 256 and 128 Hz */
	return NS_PER_SEC * (1u << (rate - 1)) / 32768;
}

static void arm_periodic(struct rtc *rtc)
{
	uint64_t period = period_ns(rtc), now = timer_now_ns(rtc->config.time);

	if (!period) {
		rtc->periodic_next_ns = 0;
		timer_cancel_in(rtc->config.time, rtc->periodic_timer);
		return;
	}
	/* The divider runs freely: no register write shifts the ticks. */
	rtc->periodic_next_ns = (now / period + 1) * period;
	timer_arm_in(rtc->config.time, rtc->periodic_timer, rtc->periodic_next_ns);
}

static void periodic_fired(void *opaque)
{
	struct rtc *rtc = opaque;
	AUTO_LOCK(rtc->config.lock);

	if (!rtc->periodic_next_ns || timer_now_ns(rtc->config.time) < rtc->periodic_next_ns)
		return;
	rtc->s.cmos[REG_C] |= B_PERIODIC;
	update_line(rtc);
	arm_periodic(rtc);
}

/* The second's timer runs only while somebody waits for it. */
static void arm_second(struct rtc *rtc)
{
	uint64_t into = host_realtime_ns(rtc) % NS_PER_SEC;

	if (!(rtc->s.cmos[REG_B] & (B_ALARM | B_UPDATE)) || (rtc->s.cmos[REG_B] & B_SET)) {
		timer_cancel_in(rtc->config.time, rtc->second_timer);
		return;
	}
	timer_arm_in(rtc->config.time, rtc->second_timer,
		timer_now_ns(rtc->config.time) + NS_PER_SEC - into);
}

static bool alarm_field_matches(uint8_t alarm, uint8_t now)
{
	return (alarm & 0xc0) == 0xc0 || alarm == now; /* 11xxxxxx: any */
}

static bool alarm_matches(const struct rtc *rtc)
{
	const uint8_t *cmos = rtc->s.cmos;

	return alarm_field_matches(cmos[SECONDS_ALARM], cmos[SECONDS]) &&
	       alarm_field_matches(cmos[MINUTES_ALARM], cmos[MINUTES]) &&
	       alarm_field_matches(cmos[HOURS_ALARM], cmos[HOURS]);
}

/* Note the seconds that have passed since the last look. */
static void note_update(struct rtc *rtc)
{
	int64_t now = guest_seconds(rtc);

	if ((rtc->s.cmos[REG_B] & B_SET) || now == rtc->last_second)
		return;
	rtc->last_second = now;
	refresh(rtc);
	rtc->s.cmos[REG_C] |= B_UPDATE;
	if (alarm_matches(rtc))
		rtc->s.cmos[REG_C] |= B_ALARM;
}

static void second_fired(void *opaque)
{
	struct rtc *rtc = opaque;
	AUTO_LOCK(rtc->config.lock);

	note_update(rtc);
	update_line(rtc);
	arm_second(rtc);
}

/* ---- registers ---- */

static bool is_clock_register(unsigned index)
{
	return index <= HOURS || (index >= WEEKDAY && index <= YEAR) || index == CENTURY;
}

static bool is_alarm_register(unsigned index)
{
	return index == SECONDS_ALARM || index == MINUTES_ALARM || index == HOURS_ALARM;
}

static uint8_t register_read(struct rtc *rtc, unsigned index)
{
	uint8_t *cmos = rtc->s.cmos, value;

	switch (index) {
	case REG_A:
		value = cmos[REG_A] & (uint8_t)~A_UIP;
		if (!(cmos[REG_B] & B_SET) &&
			NS_PER_SEC - host_realtime_ns(rtc) % NS_PER_SEC <= UIP_NS)
			value |= A_UIP;
		return value;
	case REG_C:
		note_update(rtc);
		value = cmos[REG_C];
		cmos[REG_C] = 0;
		update_line(rtc);
		return value;
	case REG_D: return D_VALID;
	default:
		if (is_clock_register(index))
			refresh(rtc);
		return cmos[index];
	}
}

static void control_b_write(struct rtc *rtc, uint8_t value)
{
	uint8_t before = rtc->s.cmos[REG_B];

	refresh(rtc); /* before SET holds the registers, or their format changes */
	if ((before & B_SET) && !(value & B_SET))
		adopt(rtc); /* in the format they were written in, unless this write changes it */
	rtc->s.cmos[REG_B] = value & B_SET ? value & (uint8_t)~B_UPDATE : value;
	update_line(rtc);
	arm_periodic(rtc);
	arm_second(rtc);
}

static void register_write(struct rtc *rtc, unsigned index, uint8_t value)
{
	switch (index) {
	case REG_A:
		rtc->s.cmos[REG_A] = value & (uint8_t)~A_UIP;
		arm_periodic(rtc);
		break;
	case REG_B: control_b_write(rtc, value); break;
	case REG_C:
	case REG_D: break;
	default:
		if (is_clock_register(index) && !is_alarm_register(index)) {
			refresh(rtc);
			rtc->s.cmos[index] = value;
			if (!(rtc->s.cmos[REG_B] & B_SET))
				adopt(rtc);
		} else {
			rtc->s.cmos[index] = value;
		}
		break;
	}
}

static uint64_t rtc_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
	struct rtc *rtc = opaque;

	return offset == 0 ? 0xff : register_read(rtc, rtc->s.index);
}

static void rtc_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct rtc *rtc = opaque;

	if (offset == 0)
		rtc->s.index = value & (RTC_CMOS_BYTES - 1); /* bit 7 masks NMIs on a PC: ignored */
	else
		register_write(rtc, rtc->s.index, (uint8_t)value);
}

int rtc_create(const struct rtc_config *config, struct rtc **ret_rtc)
{
	struct rtc *rtc = calloc(1, sizeof(*rtc));

	if (!rtc)
		return -ENOMEM;
	rtc->config = *config;
	rtc->second_timer = timer_create_in(config->time, second_fired, rtc);
	rtc->periodic_timer = timer_create_in(config->time, periodic_fired, rtc);
	if (!rtc->second_timer || !rtc->periodic_timer) {
		rtc_free(rtc);
		return -ENOMEM;
	}
	rtc->s.cmos[REG_A] = 0x26; /* 32768 Hz, 1024 Hz rate */
	rtc->s.cmos[REG_B] = B_24H;
	rtc->last_second = guest_seconds(rtc);
	refresh(rtc);
	*ret_rtc = rtc;
	return 0;
}

void rtc_free(struct rtc *rtc)
{
	if (!rtc)
		return;
	timer_free_in(rtc->config.time, rtc->second_timer);
	timer_free_in(rtc->config.time, rtc->periodic_timer);
	free(rtc);
}

int rtc_attach(struct rtc *rtc, struct bus *bus)
{
	static const struct bus_ops ops = {
		.read = rtc_read, .write = rtc_write, .access_max_bytes = 1};

	return bus_add(bus, BUS_PIO, RTC_PORT, 2, "rtc", &ops, rtc, rtc->config.lock);
}

void rtc_set_cmos(struct rtc *rtc, unsigned index, uint8_t value)
{
	AUTO_LOCK(rtc->config.lock);
	if (index > REG_D && index < RTC_CMOS_BYTES)
		rtc->s.cmos[index] = value;
}

void rtc_save(struct rtc *rtc, struct rtc_state *ret_state)
{
	AUTO_LOCK(rtc->config.lock);
	*ret_state = rtc->s;
}

int rtc_load(struct rtc *rtc, const struct rtc_state *state)
{
	AUTO_LOCK(rtc->config.lock);
	if (state->index >= RTC_CMOS_BYTES || state->offset_s <= -OFFSET_MAX_S ||
		state->offset_s >= OFFSET_MAX_S)
		return -EINVAL;
	rtc->s = *state;
	rtc->last_second = guest_seconds(rtc);
	rtc->s.cmos[REG_D] = D_VALID;
	update_line(rtc);
	irq_line_set(&rtc->config.irq, rtc->s.line);
	arm_periodic(rtc);
	arm_second(rtc);
	return 0;
}
