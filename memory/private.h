/*
 * What the files of memory/ share.
 */
#ifndef LODGE_MEMORY_PRIVATE_H
#define LODGE_MEMORY_PRIVATE_H

#include "base/util.h"
#include "memory/memory.h"

#define HUGE_PAGE_SIZE MIB(2)

/* memory_file_bytes() of host memory. */
uint8_t *memory_file_host(const struct memory_file *file);
bool memory_file_is_readonly(const struct memory_file *file);

#endif
