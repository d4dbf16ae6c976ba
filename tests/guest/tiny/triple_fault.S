/* An exception with no IDT to deliver it. */
#include "tiny.h"
	lidt empty
	ud2
empty:	.word 0
	.long 0
