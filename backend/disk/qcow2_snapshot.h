/*
 * The snapshot table of a qcow2 image.
 */
#ifndef LODGE_BACKEND_DISK_QCOW2_SNAPSHOT_H
#define LODGE_BACKEND_DISK_QCOW2_SNAPSHOT_H

#include "backend/disk/qcow2.h"

struct qcow2_record {
	uint8_t *raw; /* as in the file, padding included */
	uint32_t bytes;
	uint64_t l1_offset;
	uint32_t l1_entries;
	uint64_t size_bytes; /* of the disk; version 2: as now */
	uint64_t vm_state_bytes;
	char *id, *name;
};

struct qcow2_snapshots {
	struct qcow2_record *record;
	unsigned count;
	uint64_t bytes;
};

/* Every offset, size and length is checked. */
int qcow2_snapshots_load(struct qcow2 *q, struct qcow2_snapshots *list, struct error *err);
void qcow2_snapshots_done(struct qcow2_snapshots *list);

#endif
