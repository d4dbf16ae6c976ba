/* Runs the bytes that the test puts behind it. */
#include "tiny.h"
	mov $0x200000, %esp
	.incbin NOISE
