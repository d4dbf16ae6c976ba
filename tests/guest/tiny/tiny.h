/*
 * What every tiny guest begins with: a multiboot header (version 0.6.96) and the entry point, in
 * 32-bit protected mode with flat segments, no paging, no IDT, interrupts off. DONE ends the machine
 * through the debug exit port.
 */
#define EXIT_PORT 0xf4

	.section .text
	.globl _start
	.align 4
	.long 0x1badb002, 0, -0x1badb002

	.macro DONE status
	mov $\status, %al
	out %al, $EXIT_PORT
9:	hlt
	jmp 9b
	.endm

_start:
