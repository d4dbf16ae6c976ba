/* For ever, and at ever new addresses: memory that is not there, ports that nobody has. */
#include "tiny.h"
	mov $0x40000000, %ebx
	mov $0x2000, %edx
1:	mov (%ebx), %eax
	mov %eax, (%ebx)
	in %dx, %eax
	out %al, %dx
	inc %edx
	and $0x2fff, %edx
	or $0x2000, %edx
	add $0x1004, %ebx
	cmp $0xe0000000, %ebx
	jb 1b
	sub $0xa0000000, %ebx
	jmp 1b
