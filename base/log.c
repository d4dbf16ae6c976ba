/*
 * The log. See log.h.
 */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

enum log_level log_level_now = LOG_LEVEL_WARN;

static const char *const level_names[] = {
	[LOG_LEVEL_ERROR] = "error",
	[LOG_LEVEL_WARN] = "warn",
	[LOG_LEVEL_INFO] = "info",
	[LOG_LEVEL_DEBUG] = "debug",
};

void log_level_set(enum log_level level)
{
	log_level_now = level;
}

int log_level_parse(const char *name, enum log_level *ret_level)
{
	for (size_t i = 0; i < ARRAY_SIZE(level_names); i++) {
		if (strcmp(name, level_names[i]) == 0) {
			*ret_level = (enum log_level)i;
			return 0;
		}
	}
	return -EINVAL;
}

static void log_emit(const char *component, uint32_t dropped, const char *fmt, va_list args)
{
	char line[1024];
	size_t room = sizeof(line) - 1; /* the newline */
	int head = snprintf(line, room, "lodge: %s: ", component);
	size_t len = MIN((size_t)MAX(head, 0), room - 1);
	size_t start = len;
	int body = vsnprintf(line + len, room - len, fmt, args);

	len = MIN(len + (size_t)MAX(body, 0), room - 1);
	if (dropped) {
		int tail = snprintf(line + len, room - len, " (%u more not shown)", dropped);

		len = MIN(len + (size_t)MAX(tail, 0), room - 1);
	}
	/* A guest's bytes may be in the text: keep them from driving the terminal. */
	for (size_t i = start; i < len; i++) {
		if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
			line[i] = '?';
	}
	line[len++] = '\n';
	if (write(STDERR_FILENO, line, len) < 0)
		return; /* nowhere left to say so */
}

void log_write(enum log_level level, const char *component, const char *fmt, ...)
{
	int saved = errno;
	va_list args;

	if (level > log_level_now)
		return;
	va_start(args, fmt);
	log_emit(component, 0, fmt, args);
	va_end(args);
	errno = saved;
}

bool log_limit_pass(struct log_limit *limit, uint64_t now_ns, uint32_t *ret_dropped)
{
	*ret_dropped = 0;
	if (limit->passed == 0 || now_ns - limit->window_start_ns >= LOG_LIMIT_WINDOW_NS) {
		limit->window_start_ns = now_ns;
		limit->passed = 0;
	}
	if (limit->passed >= LOG_LIMIT_BURST) {
		if (limit->dropped < UINT32_MAX)
			limit->dropped++;
		return false;
	}
	limit->passed++;
	*ret_dropped = limit->dropped;
	limit->dropped = 0;
	return true;
}

void log_write_limited(
	struct log_limit *limit, enum log_level level, const char *component, const char *fmt, ...)
{
	int saved = errno;
	uint32_t dropped;
	va_list args;

	if (level > log_level_now || !log_limit_pass(limit, clock_monotonic_ns(), &dropped))
		return;
	va_start(args, fmt);
	log_emit(component, dropped, fmt, args);
	va_end(args);
	errno = saved;
}
