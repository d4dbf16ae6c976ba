/* Touches every 64 KiB of the address space above 1 GiB, where a small machine has no memory: bytes, words, dwords and one that crosses. Status 42 if it lives. */
#include "tiny.h"
	mov $0x40000000, %ebx
1:	mov (%ebx), %al
	mov 1(%ebx), %ax
	mov 2(%ebx), %eax
	cmp $0xffff0000, %ebx	/* there it would leave the segment: a fault, and rightly */
	je 2f
	mov 0xfffd(%ebx), %eax
	/* The devices' window is only read: a write may well reset something. */
	cmp $0xfe000000, %ebx
	jae 2f
	mov %al, (%ebx)
	mov %eax, 2(%ebx)
	mov %eax, 0xfffd(%ebx)
	lock incl 0x10(%ebx)
2:	add $0x10000, %ebx
	jnz 1b
	DONE 42
