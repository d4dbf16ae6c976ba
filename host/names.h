/*
 * Names of images and machines: letters, digits, '.', '_' and '-', the first a letter or digit, at most 63. So no name is a
 * path, hidden, or an option.
 */
#ifndef LODGE_HOST_NAMES_H
#define LODGE_HOST_NAMES_H

#include <ctype.h>
#include <stdbool.h>
#include <string.h>

#define NAME_MAX_LENGTH 63

static inline bool name_ok(const char *name)
{
	const size_t length = strlen(name);

	if (!length || length > NAME_MAX_LENGTH || !isalnum((unsigned char)name[0]))
		return false;
	for (const char *c = name; *c; c++)
		if (!isalnum((unsigned char)*c) && !strchr("._-", *c))
			return false;
	return true;
}

#endif
