/*
 * Firmware, 4 KiB below 4 GiB, with 16 KiB of flash below it. Byte 0x100 there says which life this is: ff, fe and fc; the
 * first two end in a reset, the last one with status 42. Any other status is the number of what did not hold.
 */
#define FLASH 0xffffb000
#define LIFE (FLASH + 0x100)
#define DATA (FLASH + 0x3000)

	.macro MUST number
	mov $\number, %dl
	jne failed
	.endm

	.text
	.globl _start
_start:
	.code16
real:	cli
	lgdtl %cs:(gdt_pointer - _start + 0xf000)
	mov %cr0, %eax
	or $1, %al
	mov %eax, %cr0
	ljmpl $8, $protected

	.code32
protected:
	mov $16, %ax
	mov %ax, %ds
	mov %ax, %es

	/* After power-on and reset it reads as memory. */
	cmpl $0x4856465f, FLASH + 40 /* _FVH */
	MUST 1
	/* Tell it from ROM and RAM. */
	movb $0x50, FLASH
	movb $0x70, FLASH
	cmpl $0, FLASH
	MUST 2
	mov $0xff, %al
	xchg %al, FLASH /* a locked write is a command, too */
	cmp $0, %al
	MUST 3
	cmpl $0x4856465f, FLASH + 40
	MUST 4
	/* The image is ROM. */
	movb $0, rom
	cmpb $0x5a, rom
	MUST 5
	lock addl $1, rom
	cmpb $0x5a, rom
	MUST 6

	movb LIFE, %al
	cmp $0xfc, %al
	je last
	/* The next life; bits only go from 1 to 0. The array is not read again before the reset. */
	movb $0x10, LIFE
	shl $1, %al
	mov %al, LIFE
	cmpb $0x80, FLASH + 0x2000
	MUST 7
	mov $0xcf9, %dx
	mov $6, %al
	out %al, %dx
1:	hlt
	jmp 1b

last:	movb $0x20, DATA
	movb $0xd0, DATA
	/* As a string: e8, count, 8 bytes, d0. */
	movb $0xe8, DATA
	movb $7, DATA
	mov $text, %esi
	mov $DATA + 4, %edi
	mov $8, %ecx
	rep movsb
	movb $0xd0, DATA
	cmpb $0x80, DATA
	MUST 8
	movb $0xff, DATA
	cmpl $-1, DATA
	MUST 9
	cmpl $0x7473616c, DATA + 4
	MUST 10
	mov $42, %dl
failed:	mov %dl, %al
	out %al, $0xf4
1:	hlt
	jmp 1b

rom:	.long 0x5a
text:	.ascii "lasting!"
	.align 8
gdt:	.quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
	.word 23
	.long gdt

	.org 0xff0
	.code16
	jmp real
	.org 0x1000
