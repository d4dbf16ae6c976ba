/*
 * Direct boot: load a kernel and what it wants to know into guest memory, and say in which state its
 * first processor enters it. There is no firmware in between.
 *
 *	bzImage    Linux boot protocol 2.10 or newer (boot/bzimage.c). By default its payload is
 *		   unpacked here and entered as an ELF, since a guest that runs under an interpreter is
 *		   slow to unpack itself (boot/unpack.c)
 *	PVH	   ELF with Xen's PHYS32_ENTRY note (boot/pvh.c)
 *	ELF	   ELF32 in flat 32-bit mode, ELF64 in long mode; both get Linux's zero page in ESI/RSI
 *	multiboot  version 1 (boot/multiboot.c)
 *
 * Any of them may be compressed with gzip as a whole.
 *
 * Everything a kernel or initrd file says is checked before it is used.
 */
#ifndef LODGE_BOOT_BOOT_H
#define LODGE_BOOT_BOOT_H

#include "base/types.h"
#include "base/util.h"
#include "boot/file.h"
#include "boot/space.h"

struct error;
struct guest_memory;
struct x86_state;

enum boot_protocol {
	BOOT_AUTO, /* the file's own: bzImage, PVH note, multiboot header, plain ELF; in this order */
	BOOT_LINUX,
	BOOT_PVH,
	BOOT_ELF,
	BOOT_MULTIBOOT,
};

#define BOOT_INITRDS_MAX 16

struct boot_config {
	struct boot_file kernel;
	/* Linux: concatenated into one initramfs. PVH and multiboot: one module each. */
	const struct boot_file *initrd;
	unsigned initrd_count;
	const char *cmdline; /* NULL = empty */
	enum boot_protocol protocol;
	/* Let a bzImage unpack itself, as from a boot loader: slower, and with kernel address space
	 * randomisation, which unpacking on the host takes away (docs/boot.md). */
	bool keep_packed;
	/* Firmware to start in place of a kernel (boot/firmware.h), or a path of NULL. */
	struct boot_file firmware;
	gpa_t rsdp; /* where the ACPI tables start, 0 = none */
	/* What the memory map calls reserved besides the firmware's area: ECAM, for one. */
	const struct boot_map_entry *reserved;
	unsigned reserved_count;
};

/* "auto", "linux", "pvh", "elf", "multiboot". Returns 0 or -EINVAL. */
MUST_CHECK int boot_protocol_parse(const char *name, enum boot_protocol *ret_protocol);

/*
 * Load config->kernel and the initrds into memory; `state` holds the first processor's state after
 * x86_state_reset() and is changed as the protocol says. No vCPU may run. Memory need not be zero, so
 * that a machine can boot again. After an error, memory and state hold leftovers. Errors: negative
 * errno, with one line for people that names the file and the next step.
 */
MUST_CHECK int boot_load(struct guest_memory *memory, const struct boot_config *config,
	struct x86_state *state, struct error *err);

#endif
