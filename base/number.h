/*
 * Numbers and sizes that people write.
 */
#ifndef LODGE_BASE_NUMBER_H
#define LODGE_BASE_NUMBER_H

#include "base/util.h"

#include <stdint.h>

/* A size such as 512M, 2G, 65536K; a number alone counts MiB. 0 or -EINVAL, -ERANGE. */
int size_parse(const char *text, uint64_t *ret_bytes);
/* A whole number from min to max. 0 or -EINVAL, -ERANGE. */
int number_parse(const char *text, uint64_t min, uint64_t max, uint64_t *ret_number);

#endif
