/*
 * Numbers and sizes that people write: see number.h.
 */
#include "base/number.h"
#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* Digits from the start of text; *ret_rest is what follows them. */
static int parse_digits(const char *text, uint64_t *ret_number, const char **ret_rest)
{
	char *end;

	if (!isdigit((unsigned char)text[0]))
		return -EINVAL;
	errno = 0;
	unsigned long long number = strtoull(text, &end, 10);
	if (errno)
		return -errno;
	*ret_number = number;
	*ret_rest = end;
	return 0;
}

int size_parse(const char *text, uint64_t *ret_bytes)
{
	static const char suffixes[] = "KMGT";
	const char *rest;
	unsigned shift = 20;
	uint64_t number;
	int status = parse_digits(text, &number, &rest);

	if (status < 0)
		return status;
	if (*rest) {
		const char *suffix = strchr(suffixes, toupper((unsigned char)*rest));
		/* 512M, 512MB and 512MiB are the same. */
		if (!suffix || (rest[1] && strcasecmp(rest + 1, "b") && strcasecmp(rest + 1, "ib")))
			return -EINVAL;
		shift = 10 * (unsigned)(suffix - suffixes + 1);
	}
	if (number > UINT64_MAX >> shift)
		return -ERANGE;
	*ret_bytes = number << shift;
	return 0;
}

int number_parse(const char *text, uint64_t min, uint64_t max, uint64_t *ret_number)
{
	const char *rest;
	uint64_t number;
	int status = parse_digits(text, &number, &rest);

	if (status < 0)
		return status;
	if (*rest)
		return -EINVAL;
	if (number < min || number > max)
		return -ERANGE;
	*ret_number = number;
	return 0;
}
