/*
 * The differential harness: what its parts share. A case is a few bytes of ring-3 code with the whole
 * state of a processor and its memory; a result is all of that afterwards, and the exception that
 * ended it. Cases run in the interpreter (interp.c) and on the host's own processor, in a process of
 * its own (native.c, a separate program); compare.c holds the results against each other.
 *
 * The address space is the same for both: two pages of code filled with INT3, so that whatever a case
 * does ends in a trap, and pages of data with nothing around them.
 *
 *	code  RX RX --		data  RW RW -- RO RW --
 *
 * Only software has the code pages a second time, to write: cases that change their own code do it there, and
 * do not run natively.
 *
 * A case is a function of the seed and its number alone.
 */
#ifndef LODGE_TESTS_DIFF_H
#define LODGE_TESTS_DIFF_H

#include "base/types.h"

#include <string.h>

#define DIFF_CODE	 0x10000000u
#define DIFF_CODE_BYTES	 0x2000u
#define DIFF_DATA	 0x10100000u
#define DIFF_ALIAS	 0x10180000u /* of the code */
#define DIFF_DATA_PAGES	 5
#define DIFF_DATA_BYTES	 (DIFF_DATA_PAGES * 0x1000u)
#define DIFF_HOLE	 2 /* the data page that is not there */
#define DIFF_READONLY	 3 /* and the one that is not writable */
#define DIFF_PATTERNS	 8 /* contents that the data pages may have */
#define DIFF_CODE_MAX	 480
#define DIFF_PATCHES	 6
#define DIFF_PATCH_BYTES 64
#define DIFF_CHUNK_BYTES 64
#define DIFF_CHUNKS	 40 /* changes of memory kept for the report; all of them are in the hash */
#define DIFF_BATCH	 128

/* Linux's selectors. */
#define DIFF_CS32     0x23
#define DIFF_CS64     0x33
#define DIFF_DS	      0x2b
#define DIFF_CPU_NODE 0x7b /* its limit is the processor's number */

/* Ends of a case that are no exception. */
enum { DIFF_SYSCALL = 0x100, DIFF_RUNAWAY, DIFF_DIED };

struct diff_state {
	uint64_t reg[16], rip, rflags;
	uint64_t fs_base, gs_base;
	uint16_t seg[6]; /* enum x86_seg_index */
	uint16_t fcw, fsw, fop;
	uint8_t ftw; /* abridged */
	uint32_t mxcsr;
	uint64_t fip, fdp;
	uint8_t st[8][16];
	uint8_t vec[16][32];
};

struct diff_patch {
	uint32_t offset; /* in the data pages */
	uint32_t size_bytes;
	uint8_t bytes[DIFF_PATCH_BYTES];
};

struct diff_case {
	struct diff_state in;
	uint8_t mode; /* 64 or 32 */
	uint8_t pattern;
	uint8_t patch_count;
	bool changes_code; /* runs in software only */
	uint16_t code_bytes;
	uint32_t code_offset; /* where code[] lies in the code pages; may reach past them */
	uint8_t code[DIFF_CODE_MAX];
	struct diff_patch patch[DIFF_PATCHES];
};

struct diff_chunk {
	uint32_t offset;
	uint8_t bytes[DIFF_CHUNK_BYTES];
};

struct diff_result {
	struct diff_state out;
	uint32_t vector; /* that ended it: INT3 if all went well */
	uint32_t error;
	uint64_t cr2;
	uint64_t instructions; /* that a counting engine says it has completed */
	uint64_t memory_hash;
	uint32_t chunk_count;
	struct diff_chunk chunk[DIFF_CHUNKS];
};

/* What the harness shares with the native process. */
struct diff_shared {
	uint32_t go, done; /* futexes: batches begun and finished */
	uint32_t count;
	uint32_t current; /* case that is running */
	uint32_t parent;
	uint32_t cpu_node_limit;
	uint8_t pattern[DIFF_PATTERNS][DIFF_DATA_BYTES];
	struct diff_case cases[DIFF_BATCH];
	struct diff_result results[DIFF_BATCH];
};

/* Put a case's code and memory into place. `memory` already holds the pattern. */
static inline void diff_place(const struct diff_case *c, uint8_t *code, uint8_t *memory)
{
	uint32_t room = DIFF_CODE_BYTES - c->code_offset;

	memcpy(code + c->code_offset, c->code, c->code_bytes < room ? c->code_bytes : room);
	for (unsigned i = 0; i < c->patch_count; i++)
		memcpy(memory + c->patch[i].offset, c->patch[i].bytes, c->patch[i].size_bytes);
}

/* Note what differs from the pattern, and put that back. */
static inline void diff_collect_data(
	const uint8_t *pattern, uint8_t *memory, struct diff_result *result)
{
	uint64_t hash = 0;

	result->chunk_count = 0;
	for (uint32_t at = 0; at < DIFF_DATA_BYTES; at += DIFF_CHUNK_BYTES) {
		uint64_t now[8], was[8], differ = 0;

		memcpy(now, memory + at, DIFF_CHUNK_BYTES);
		memcpy(was, pattern + at, DIFF_CHUNK_BYTES);
		for (unsigned i = 0; i < 8; i++)
			differ |= now[i] ^ was[i];
		if (__builtin_expect(!differ, 1))
			continue;
		for (unsigned i = 0; i < 8; i++)
			hash = (hash ^ now[i] ^ at) * 0x9e3779b97f4a7c15ull + (hash >> 29);
		if (result->chunk_count < DIFF_CHUNKS) {
			struct diff_chunk *chunk = &result->chunk[result->chunk_count++];
			chunk->offset = at;
			memcpy(chunk->bytes, now, DIFF_CHUNK_BYTES);
		}
		memcpy(memory + at, was, DIFF_CHUNK_BYTES);
	}
	result->memory_hash = hash;
}

/* Make what became of the code part of the result. */
static inline void diff_collect_code(const uint8_t *code, struct diff_result *result)
{
	uint64_t now;

	for (uint32_t at = 0; at < DIFF_CODE_BYTES; at += 8) {
		memcpy(&now, code + at, 8);
		result->memory_hash = (result->memory_hash ^ now) * 0x9e3779b97f4a7c15ull;
	}
}

/* Which bytes of the code pages a case may have left there. */
static inline void diff_code_used(
	const struct diff_case *c, uint32_t *ret_offset, uint32_t *ret_size_bytes)
{
	const uint32_t room = DIFF_CODE_BYTES - c->code_offset;

	*ret_offset = c->changes_code ? 0 : c->code_offset;
	*ret_size_bytes = c->changes_code	 ? DIFF_CODE_BYTES
			  : c->code_bytes < room ? c->code_bytes
						 : room;
}

static inline void diff_remove_code(const struct diff_case *c, uint8_t *code)
{
	uint32_t offset, size_bytes;

	diff_code_used(c, &offset, &size_bytes);
	memset(code + offset, 0xcc, size_bytes);
}

#endif
