/* For ever new code: writes and calls functions that it never wrote before, all over 10 MiB. */
#include "tiny.h"
	mov $0x300000, %esp
2:	mov $0x400000, %edi
1:	inc %eax
	movb $0xb8, (%edi)
	mov %eax, 1(%edi)
	movb $0xc3, 5(%edi)
	call *%edi
	add $16, %edi
	cmp $0xe00000, %edi
	jb 1b
	jmp 2b
