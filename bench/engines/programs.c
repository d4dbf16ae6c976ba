/*
 * Two whole programs, each run being a process: zlib compresses a text into a file and unpacks it again,
 * and SQLite builds a database, asks it and changes it. Both libraries are Debian's.
 */
#include <fcntl.h>
#include <limits.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "bench/engines/bench.h"

enum { STATUS_WRONG = 10, STATUS_NO_TEXT, STATUS_NO_FILE, STATUS_ZLIB, STATUS_SQLITE };

/* The whole file, or NULL. Never freed: the process ends. */
static uint8_t *read_file(const char *path, size_t *ret_bytes)
{
	struct stat info;
	uint8_t *bytes = NULL;
	FILE *file = fopen(path, "rb");

	if (file && fstat(fileno(file), &info) == 0 && info.st_size > 0)
		bytes = malloc((size_t)info.st_size);
	if (bytes)
		*ret_bytes = fread(bytes, 1, (size_t)info.st_size, file);
	if (file)
		fclose(file);
	return bytes;
}

static int write_file(const char *path, const uint8_t *bytes, size_t count)
{
	FILE *file = fopen(path, "wb");
	int ok = file && fwrite(bytes, 1, count, file) == count;

	return file && fclose(file) == 0 && ok ? 0 : -1;
}

static int deflate_main(const char *text, const char *folder)
{
	char path[PATH_MAX];
	size_t length = 0, packed_length = 0;
	uint8_t *bytes = read_file(text, &length), *packed, *back;
	uLongf room;

	if (!bytes || length == 0)
		return STATUS_NO_TEXT;
	snprintf(path, sizeof(path), "%s/bench-packed-%d", folder, (int)getpid());
	room = compressBound(length);
	packed = malloc(room);
	back = malloc(length);
	if (!packed || !back || compress2(packed, &room, bytes, length, 6) != Z_OK)
		return STATUS_ZLIB;
	if (write_file(path, packed, room))
		return STATUS_NO_FILE;
	packed = read_file(path, &packed_length);
	unlink(path);
	room = length;
	if (!packed || uncompress(back, &room, packed, packed_length) != Z_OK)
		return STATUS_ZLIB;
	return room == length && memcmp(bytes, back, length) == 0 ? 0 : STATUS_WRONG;
}

static const char sqlite_make[] =
	"CREATE TABLE part(id INTEGER PRIMARY KEY, maker INTEGER, name TEXT, price REAL);"
	"CREATE TABLE maker(id INTEGER PRIMARY KEY, name TEXT);"
	"BEGIN;"
	"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50)"
	" INSERT INTO maker SELECT i, 'maker ' || i FROM n;"
	"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000)"
	" INSERT INTO part SELECT i, i * 7919 % 50 + 1, printf('part %05d', i * 31 % 4001), i * 0.25 FROM n;"
	"COMMIT;"
	"CREATE INDEX part_name ON part(name);"
	"UPDATE part SET price = price + 1 WHERE name LIKE 'part 01%';"
	"DELETE FROM part WHERE id % 10 = 3;";

struct sqlite_query {
	const char *text, *wanted;
};

static const struct sqlite_query sqlite_queries[] = {
	{"SELECT count(*) || ' ' || total(price) FROM part", "3600 1801600.0"},
	{"SELECT group_concat(name) FROM (SELECT maker.name, sum(price) AS s FROM part JOIN maker ON"
	 " maker.id = part.maker GROUP BY maker.id ORDER BY s DESC LIMIT 3)",
		"maker 1,maker 32,maker 13"},
	{"SELECT id FROM part WHERE name = 'part 00062'", "2"},
	{"PRAGMA integrity_check", "ok"},
};

/* Does the query's one value have the text that is wanted? */
static int sqlite_ask(sqlite3 *db, const struct sqlite_query *query)
{
	sqlite3_stmt *statement;
	const char *value = NULL;
	int right;

	if (sqlite3_prepare_v2(db, query->text, -1, &statement, NULL) != SQLITE_OK)
		return 0;
	if (sqlite3_step(statement) == SQLITE_ROW)
		value = (const char *)sqlite3_column_text(statement, 0);
	right = value && strcmp(value, query->wanted) == 0;
	if (!right)
		fprintf(stderr, "sqlite: %s\nis %s\n", query->text, value ? value : "nothing");
	sqlite3_finalize(statement);
	return right;
}

static int sqlite_main(const char *folder)
{
	char path[PATH_MAX];
	sqlite3 *db;
	int status = 0;

	snprintf(path, sizeof(path), "%s/bench-database-%d", folder, (int)getpid());
	unlink(path);
	if (sqlite3_open(path, &db) != SQLITE_OK ||
		sqlite3_exec(db, sqlite_make, NULL, NULL, NULL) != SQLITE_OK)
		status = STATUS_SQLITE;
	for (size_t i = 0; !status && i < sizeof(sqlite_queries) / sizeof(sqlite_queries[0]); i++)
		if (!sqlite_ask(db, &sqlite_queries[i]))
			status = STATUS_WRONG;
	sqlite3_close(db);
	unlink(path);
	return status;
}

int bench_program_main(const char *option, const char *argument, const char *other)
{
	if (strcmp(option, "--deflate") == 0)
		return deflate_main(argument, other);
	if (strcmp(option, "--sqlite") == 0)
		return sqlite_main(other);
	return strcmp(option, "--nothing") == 0 ? 0 : 2;
}

static void *start(const struct bench_env *env)
{
	return (void *)env;
}

/* The answers are exit statuses. */
static uint64_t deflate_text(void *state)
{
	const struct bench_env *env = state;

	return (uint64_t)bench_run_self("--deflate", env->text, env->folder);
}

static uint64_t sqlite_database(void *state)
{
	const struct bench_env *env = state;

	return (uint64_t)bench_run_self("--sqlite", "-", env->folder);
}

const struct bench_work bench_programs[] = {
	{"program_deflate", 1, 0, start, deflate_text, 1, NULL},
	{"program_sqlite", 1, 0, start, sqlite_database, 1, NULL},
	{0},
};
