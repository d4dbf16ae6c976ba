/*
 * The MC146818 real-time clock and its CMOS memory, at ports 0x70 and 0x71, interrupt 8 (Motorola
 * MC146818A data sheet; the PC/AT adds the century in register 0x32).
 *
 * Time is the host's wall clock plus an offset that the guest sets by writing the clock. Left out:
 * daylight saving, the square wave, the divider's test bits (any divider but "reset" counts).
 */
#ifndef LODGE_DEVICE_TIMER_RTC_H
#define LODGE_DEVICE_TIMER_RTC_H

#include "base/util.h"
#include "device/bus.h"
#include "device/irq_line.h"
#include "device/timer_source.h"

#define RTC_PORT       0x70
#define RTC_CMOS_BYTES 128

struct rtc_state {
	uint8_t index;
	uint8_t cmos
		[RTC_CMOS_BYTES]; /* 0..13 are the clock's registers; the time itself is not kept here */
	int64_t offset_s;	  /* guest wall clock - host wall clock */
	bool line;
};

struct rtc_config {
	pthread_mutex_t *lock;
	struct irq_line irq;
	struct timer_source *time;
};

struct rtc;

/* Errors: -ENOMEM. */
int rtc_create(const struct rtc_config *config, struct rtc **ret_rtc);
void rtc_free(struct rtc *rtc);
/* Registers ports 0x70 and 0x71. Errors: as bus_add(). */
int rtc_attach(struct rtc *rtc, struct bus *bus);
/* For firmware: memory size and the like. index 14..127. */
void rtc_set_cmos(struct rtc *rtc, unsigned index, uint8_t value);

void rtc_save(struct rtc *rtc, struct rtc_state *ret_state);
/* Errors: -EINVAL, and nothing was changed. */
MUST_CHECK int rtc_load(struct rtc *rtc, const struct rtc_state *state);

#endif
