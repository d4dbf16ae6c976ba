/* Sleeps for ever with interrupts off. */
#include "tiny.h"
1:	hlt
	jmp 1b
