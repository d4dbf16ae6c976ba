/*
 * See base64.h.
 */
#include "base/base64.h"

#include "base/cleanup.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

char *base64_encode(const uint8_t *bytes, size_t count)
{
	char *text = malloc((count + 2) / 3 * 4 + 1), *to = text;

	for (size_t i = 0; text && i < count; i += 3) {
		const size_t left = count - i;
		const uint32_t word = (uint32_t)bytes[i] << 16 |
				      (left > 1 ? (uint32_t)bytes[i + 1] << 8 : 0) |
				      (left > 2 ? bytes[i + 2] : 0u);

		*to++ = digits[word >> 18];
		*to++ = digits[word >> 12 & 63];
		*to++ = left > 1 ? digits[word >> 6 & 63] : '=';
		*to++ = left > 2 ? digits[word & 63] : '=';
	}
	if (text)
		*to = 0;
	return text;
}

int base64_decode(const char *text, uint8_t **ret_bytes, size_t *ret_count)
{
	const size_t length = strlen(text),
		     padding = !length ? 0
				       : (text[length - 1] == '=') +
						 (length > 1 && text[length - 2] == '=');
	AUTO_FREE uint8_t *bytes = malloc(length / 4 * 3 + 1);
	uint8_t *to = bytes;
	uint32_t word = 0;

	if (!bytes)
		return -ENOMEM;
	if (length % 4)
		return -EINVAL;
	for (size_t i = 0; i < length; i++) {
		const char *digit = i >= length - padding ? digits : strchr(digits, text[i]);

		if (!digit)
			return -EINVAL;
		word = word << 6 | (uint32_t)(digit - digits);
		if (i % 4 != 3)
			continue;
		*to++ = (uint8_t)(word >> 16);
		*to++ = (uint8_t)(word >> 8);
		*to++ = (uint8_t)word;
	}
	*ret_count = (size_t)(to - bytes) - padding;
	*ret_bytes = take_ptr(&bytes);
	return 0;
}
