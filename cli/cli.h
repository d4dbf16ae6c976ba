/*
 * What the verbs share.
 */
#ifndef LODGE_CLI_CLI_H
#define LODGE_CLI_CLI_H

#include "base/util.h"
#include <stdbool.h>
#include <stdint.h>

#define EXIT_USAGE 2

struct engine_ops;
struct error;
struct image_build;
struct vmm_shares;
struct x86_cpu_choice;

int verb_run(int argc, char **argv);
int verb_image(int argc, char **argv);
int verb_machine(int argc, char **argv);
int verb_disk(int argc, char **argv);
int verb_doctor(int argc, char **argv);

/* What --cpu can be, and what each model gives on this host with this engine. Returns an exit status. */
int cli_cpu_help(const struct engine_ops *engine, bool json);

/* Can this model be given here? 0, or negative after a line on stderr. */
int cli_cpu_check(const struct engine_ops *engine, const struct x86_cpu_choice *choice);

/* From here on Ctrl-C and the like are only noted. */
void cli_catch_stop(void);
bool cli_stop_asked(void);

/* Build an image, say on stderr how it goes, and stop at Ctrl-C. Returns an exit status. */
int cli_image_build(struct image_build *build);

/* Does it ask for help? */
bool cli_is_help(const char *word);

/* One line on stderr. Returns an exit status. */
int cli_complain(const struct error *err);
/* The same of what was asked for; control characters in it, which may be a file's name, become '?'. Returns -EINVAL. */
int cli_refuse(const char *fmt, ...) PRINTF_LIKE(1, 2);
/* Where that is the verb's end: returns an exit status. */
#define cli_misuse(...) (cli_refuse(__VA_ARGS__), EXIT_USAGE)

/* Print text as a JSON string. What is no UTF-8 in it becomes U+FFFD. */
void cli_print_json_string(const char *text);

/* One more --share. 0, or an error with a line for people. cli_shares_done() frees what they hold. */
int cli_parse_share(struct vmm_shares *shares, const char *value, struct error *err);
void cli_shares_done(struct vmm_shares *shares);

/* What --virtio says. 0 or -EINVAL. */
struct virtio_options {
	bool mmio;
	uint64_t features_off;
};
int cli_parse_virtio(const char *text, struct virtio_options *ret_options);

#endif
