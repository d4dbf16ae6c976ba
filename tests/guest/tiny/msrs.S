/* RDMSR and WRMSR on numbers of every kind; an IDT that skips what faults. Status 42 if it lives. */
#include "tiny.h"
	lgdt gdt_ptr
	ljmp $8, $1f
1:	mov $16, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov $stack, %esp
	/* Vector 13, #GP: an interrupt gate to `skip`. */
	mov $skip, %eax
	mov %ax, idt + 13 * 8
	movw $8, idt + 13 * 8 + 2
	movw $0x8e00, idt + 13 * 8 + 4
	shr $16, %eax
	mov %ax, idt + 13 * 8 + 6
	lidt idt_ptr

	mov $bases, %esi
next:	mov (%esi), %ebx
	add $4, %esi
	cmp $-1, %ebx
	je done
	lea 0x400(%ebx), %edi
1:	mov %ebx, %ecx
	rdmsr
	cmp $0x1b, %ebx		/* moving the local APIC away is allowed, and no test */
	je 2f
	mov %ebx, %ecx
	mov $-1, %eax
	mov $-1, %edx
	wrmsr			/* nearly all of these fault */
2:	inc %ebx
	cmp %edi, %ebx
	jne 1b
	jmp next
done:	DONE 42

skip:	add $4, %esp		/* the error code */
	addl $2, (%esp)		/* RDMSR and WRMSR are two bytes */
	iret

	.align 8
gdt:	.quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdt_ptr: .word . - gdt - 1
	.long gdt
idt_ptr: .word 14 * 8 - 1
	.long idt
	.align 4
bases:	.long 0, 0x400, 0x800, 0xc00, 0x40000000, 0x4b564d00, 0xc0000000, 0xc0010000, 0xfffff000, -1
idt:	.fill 14, 8, 0
	.fill 256, 4, 0
stack:
