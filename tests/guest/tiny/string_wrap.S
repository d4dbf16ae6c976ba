/* String instructions of 4 GiB that leave memory, wrap, and use ports that nobody has. Killed by the test, or status 42. */
#include "tiny.h"
	cld
	mov $0xfff00000, %edi
	mov $0x00100000, %ecx
	xor %eax, %eax
	rep lodsb
	mov $0xd0000000, %esi
	mov $0xe0000000, %edi
	mov $0x00100000, %ecx
	rep movsl
	mov $0x1234, %dx
	mov $0xd0000000, %edi
	mov $0x00010000, %ecx
	rep insl
	mov $0xd0000000, %esi
	mov $0x00010000, %ecx
	rep outsl
	DONE 42
