/* Reads and writes every I/O port in every width, four values each; not those that end or reset the machine. Status 42 if it lives. */
#include "tiny.h"
	mov $4, %ebp
again:	xor %edx, %edx
port:	cmp $EXIT_PORT - 3, %dx
	jb 1f
	cmp $EXIT_PORT + 3, %dx
	jbe next
1:	cmp $0x61, %dx		/* within reach of 0x64: the keyboard controller's reset */
	jb 1f
	cmp $0x64, %dx
	jbe next
1:	cmp $0x8f, %dx		/* 0x92: fast reset */
	jb 1f
	cmp $0x92, %dx
	jbe next
1:	cmp $0x500, %dx		/* where boards put power management: not part of this test */
	jb 1f
	cmp $0x700, %dx
	jb next
1:	cmp $0xcf5, %dx		/* 0xcf9: reset */
	jb 1f
	cmp $0xcf9, %dx
	jbe next
1:	cmp $0x3f5, %dx		/* the console would print it all */
	jb 1f
	cmp $0x3ff, %dx
	jbe next
1:	in %dx, %al
	in %dx, %ax
	in %dx, %eax
	mov %ebp, %eax
	imul $0x55555555, %eax
	out %al, %dx
	out %ax, %dx
	out %eax, %dx
next:	inc %dx
	jnz port
	dec %ebp
	jnz again
	DONE 42
