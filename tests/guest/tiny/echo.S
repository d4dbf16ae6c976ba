/*
 * Prints the letters typed into the first serial port, up to a full stop, which ends it with status 42.
 * A comma resets the machine.
 */
#include "tiny.h"
	mov $0x3f9, %dx		/* IER and OUT2: only a guest that listens is given input */
	mov $1, %al
	out %al, %dx
	mov $0x3fc, %dx
	mov $8, %al
	out %al, %dx
1:	mov $0x3fd, %dx
	in %dx, %al
	test $1, %al
	jz 1b
	mov $0x3f8, %dx
	in %dx, %al
	out %al, %dx
	cmp $'.', %al
	je 3f
	cmp $',', %al
	jne 1b
	mov $0xfe, %al		/* the keyboard controller's reset */
	out %al, $0x64
2:	hlt
	jmp 2b
3:	DONE 42
