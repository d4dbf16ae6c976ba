/*
 * The translator's switches, as text: "cache=8M,insns=1,nochain,...". docs/jit.md lists them.
 */
#include "engine/jit/options.h"

#include "base/error.h"
#include "base/util.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CODE_DEFAULT MIB(128)
#define META_OF(code) ((code) / 4 * 3) /* that is how blocks come out */

static const struct jit_options defaults = {
	.code_bytes = CODE_DEFAULT,
	.meta_bytes = META_OF(CODE_DEFAULT),
	.insns_max = JIT_BLOCK_INSNS,
	.chain = true,
	.branches = true,
	.spans = true,
};

static bool take_number(const char *word, const char *name, uint64_t *ret_value)
{
	size_t length = strlen(name);
	char *end;

	if (strncmp(word, name, length) != 0 || word[length] != '=')
		return false;
	*ret_value = strtoull(word + length + 1, &end, 10);
	if (end == word + length + 1)
		return false;
	if (*end == 'K' || *end == 'M')
		*ret_value <<= *end == 'K' ? 10 : 20, end++;
	return *end == 0;
}

static int take_word(struct jit_options *options, const char *word, struct error *err)
{
	uint64_t value;

	if (take_number(word, "cache", &value) && value >= KIB(512) && value <= MIB(512)) {
		options->code_bytes = value;
		options->meta_bytes = META_OF(value);
	} else if (take_number(word, "insns", &value) && value >= 1 && value <= JIT_BLOCK_INSNS) {
		options->insns_max = (unsigned)value;
	} else if (take_number(word, "evict", &value) && value <= UINT32_MAX) {
		options->evict = (unsigned)value;
	} else if (!strcmp(word, "nochain")) {
		options->chain = false;
	} else if (!strcmp(word, "nobranch")) {
		options->branches = false;
	} else if (!strcmp(word, "nospan")) {
		options->spans = false;
	} else if (!strcmp(word, "precise")) {
		options->precise = true;
	} else if (!strcmp(word, "count")) {
		options->count = true;
	} else if (!strcmp(word, "slow")) {
		options->slow = true;
	} else if (!strcmp(word, "perf")) {
		options->perf = true;
	} else {
		return error_set(err, EINVAL,
			"\"%s\" is no option of the translator; there are cache=SIZE (512K to 512M), "
			"insns=1..64, evict=N, nochain, nobranch, nospan, precise, count, slow, perf", word);
	}
	return 0;
}

int jit_options_parse(struct jit_options *ret_options, const char *text, struct error *err)
{
	char copy[256], *save, *word;

	*ret_options = defaults;
	if (!text)
		return 0;
	if ((size_t)snprintf(copy, sizeof(copy), "%s", text) >= sizeof(copy))
		return error_set(err, EINVAL, "the translator's options are too long");
	for (word = strtok_r(copy, ",", &save); word; word = strtok_r(NULL, ",", &save)) {
		int status = take_word(ret_options, word, err);
		if (status < 0)
			return status;
	}
	return 0;
}
