/*
 * What the verbs share.
 */
#ifndef LODGE_CLI_CLI_H
#define LODGE_CLI_CLI_H

#include <stdint.h>

#define EXIT_USAGE 2

int verb_run(int argc, char **argv);
int verb_doctor(int argc, char **argv);

/* A size such as 512M, 2G, 65536K; a number alone counts MiB. 0 or -EINVAL, -ERANGE. */
int cli_parse_size(const char *text, uint64_t *ret_bytes);
/* A whole number from min to max. 0 or -EINVAL, -ERANGE. */
int cli_parse_number(const char *text, uint64_t min, uint64_t max, uint64_t *ret_number);

#endif
