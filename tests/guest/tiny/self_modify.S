/* Rewrites an instruction a few bytes ahead, and one on another page, many times. Status 42 if each change was seen. */
#include "tiny.h"
	xor %ebx, %ebx
again:	mov %bl, near_value + 1
near_value:
	mov $0xff, %al
	cmp %bl, %al
	jne wrong
	mov %bl, far_code + 1
	call far_code
	cmp %bl, %al
	jne wrong
	inc %ebx
	cmp $100000, %ebx
	jne again
	DONE 42
wrong:	DONE 1
	.align 4096
far_code:
	mov $0xff, %al
	ret
