/*
 * The state in which the first processor enters a kernel, and the GDT and page tables it stands on.
 * All take the state after x86_state_reset() and change what the protocol says.
 */
#ifndef LODGE_BOOT_ENTRY_H
#define LODGE_BOOT_ENTRY_H

#include "base/types.h"
#include "base/util.h"

struct guest_memory;
struct x86_state;

/* Write the GDT, in long mode the identity map of the first 4 GiB, the BIOS data area's two words, and real-mode
 * interrupt vectors that refuse what is asked of a BIOS.
 * Errors: -EFAULT without RAM in low memory. */
MUST_CHECK int boot_entry_tables(struct guest_memory *memory, bool long_mode);

/* Protected mode, no paging, flat 4 GiB segments, interrupts off. */
void boot_entry_flat32(struct x86_state *state, gpa_t rip);

/* Long mode, paging by the identity map, interrupts off. */
void boot_entry_long64(struct x86_state *state, gpa_t rip);

#endif
