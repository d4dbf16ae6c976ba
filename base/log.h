/*
 * The log: one line on stderr for each message, "lodge: component: text".
 *
 * Libraries log debug only; whoever handles an error logs it once. What a guest can trigger goes
 * through a log_limit that lives in the machine's or the device's own state. A message below the
 * level costs one predicted branch and does not evaluate its arguments.
 *
 * The level is the one thing global here, set once by the program before threads start.
 */
#ifndef LODGE_BASE_LOG_H
#define LODGE_BASE_LOG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/util.h"

enum log_level {
	LOG_LEVEL_ERROR,
	LOG_LEVEL_WARN,
	LOG_LEVEL_INFO,
	LOG_LEVEL_DEBUG,
};

extern enum log_level log_level_now;

/* Sets the level; the default is LOG_LEVEL_WARN. */
void log_level_set(enum log_level level);
/* Reads "error", "warn", "info" or "debug". Returns 0 or -EINVAL. */
MUST_CHECK int log_level_parse(const char *name, enum log_level *ret_level);

/* Writes one line at once, so that lines of several threads do not mix. Use the macros below. */
void log_write(enum log_level level, const char *component, const char *fmt, ...) PRINTF_LIKE(3, 4);

#define log_at(level, component, ...)                             \
	do {                                                      \
		if (unlikely((level) <= log_level_now))           \
			log_write(level, component, __VA_ARGS__); \
	} while (0)

#define log_error(component, ...) log_at(LOG_LEVEL_ERROR, component, __VA_ARGS__)
#define log_warn(component, ...)  log_at(LOG_LEVEL_WARN, component, __VA_ARGS__)
#define log_info(component, ...)  log_at(LOG_LEVEL_INFO, component, __VA_ARGS__)
#define log_debug(component, ...) log_at(LOG_LEVEL_DEBUG, component, __VA_ARGS__)

/*
 * At most LOG_LIMIT_BURST messages in LOG_LIMIT_WINDOW_NS for one log_limit; the first one after a
 * gap says how many were dropped. Zero-initialise it. Two threads may race on it: the count is then
 * off by a few, nothing worse.
 */
#define LOG_LIMIT_BURST	    10
#define LOG_LIMIT_WINDOW_NS 5000000000ULL

struct log_limit {
	uint64_t window_start_ns;
	uint32_t passed;  /* in this window */
	uint32_t dropped; /* since the last message that passed */
};

/* True if a message may be written now. now_ns is monotonic. */
bool log_limit_pass(struct log_limit *limit, uint64_t now_ns, uint32_t *ret_dropped);
void log_write_limited(struct log_limit *limit, enum log_level level, const char *component,
	const char *fmt, ...) PRINTF_LIKE(4, 5);

#define log_limited(limit, level, component, ...)                                \
	do {                                                                     \
		if (unlikely((level) <= log_level_now))                          \
			log_write_limited(limit, level, component, __VA_ARGS__); \
	} while (0)

#endif
