/*
 * The plain driver of the fuzz targets, which the tests run: no libFuzzer, any compiler.
 *
 *	TARGET FILE...			replay inputs, or all in a directory
 *	TARGET --random N SEED		N inputs made by rig_make() from the seed
 *
 * FUZZ_VERBOSE=1 names the seed of each input, so that "--random 1 SEED" repeats it.
 */
#include "tests/fuzz/rig.h"

#include <dirent.h>
#include <stdio.h>

#define INPUT_MAX 65536

struct replay {
	unsigned inputs;
	bool failed;
};

/* ---- what a target may have otherwise ---- */

__attribute__((weak)) size_t rig_make(uint8_t *buf, size_t size, uint64_t *seed)
{
	const size_t length = MIN(64 + rig_random(seed) % 2000, (uint64_t)size);

	for (size_t i = 0; i < length; i++)
		buf[i] = (uint8_t)(rig_random(seed) >> 16);
	return length;
}

__attribute__((weak)) void rig_replayed(const uint8_t *data, size_t size)
{
}

/* ---- inputs ---- */

/* From an exact copy, so that the sanitizer sees a byte too many. */
static void run(const uint8_t *data, size_t size)
{
	uint8_t *copy = malloc(size ? size : 1);

	MUST(copy);
	memcpy(copy, data, size);
	LLVMFuzzerTestOneInput(copy, size);
	free(copy);
}

static void replay_file(const char *path, struct replay *replay)
{
	static uint8_t buf[INPUT_MAX];
	FILE *file = fopen(path, "rb");

	if (!file) {
		perror(path);
		replay->failed = true;
		return;
	}
	const size_t size = fread(buf, 1, sizeof(buf), file);
	fclose(file);
	printf("%s: %zu bytes\n", path, size);
	fflush(stdout);
	run(buf, size);
	rig_replayed(buf, size);
	replay->inputs++;
}

static void replay(const char *path, struct replay *replay)
{
	DIR *dir = opendir(path);
	struct dirent *entry;

	if (!dir) {
		replay_file(path, replay);
		return;
	}
	while ((entry = readdir(dir))) {
		char name[4096];

		if (entry->d_name[0] == '.')
			continue;
		snprintf(name, sizeof(name), "%s/%s", path, entry->d_name);
		replay_file(name, replay);
	}
	closedir(dir);
}

static void run_random(unsigned long count, uint64_t seed)
{
	static uint8_t buf[INPUT_MAX];

	printf("%lu inputs from seed %llu\n", count, (unsigned long long)seed);
	fflush(stdout);
	for (unsigned long i = 0; i < count; i++) {
		uint64_t state = (seed + i) * 0x9e3779b97f4a7c15ull | 1;
		const size_t size = rig_make(buf, sizeof(buf), &state);

		if (getenv("FUZZ_VERBOSE"))
			fprintf(stderr, "seed %llu\n", (unsigned long long)(seed + i));
		run(buf, size);
	}
}

int main(int argc, char **argv)
{
	struct replay all = {0};

	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--random") == 0 && i + 2 < argc) {
			run_random(strtoul(argv[i + 1], NULL, 0), strtoull(argv[i + 2], NULL, 0));
			i += 2;
			continue;
		}
		const unsigned before = all.inputs;
		replay(argv[i], &all);
		if (all.inputs == before) {
			fprintf(stderr, "%s: no inputs\n", argv[i]);
			all.failed = true;
		}
	}
	return all.failed;
}
