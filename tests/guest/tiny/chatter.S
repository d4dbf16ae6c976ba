/* Prints the letter a on the first serial port for ever. */
#include "tiny.h"
	mov $0x3f8, %dx
	mov $'a', %al
1:	out %al, %dx
	jmp 1b
