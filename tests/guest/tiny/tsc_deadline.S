/*
 * Sets its TSC far ahead, once through each of the two MSRs, and each time waits for a deadline of the
 * local APIC's timer by that TSC (SDM 3B 17.17.3, 3A 11.5.4.1). No interrupt is taken: IRR shows it.
 * Status 42, or which part failed: 1 the TSC is not what was written, 2 the deadline never came, 3 it
 * came before its time.
 */
#include "tiny.h"
#define TSC	     0x10
#define TSC_ADJUST   0x3b
#define TSC_DEADLINE 0x6e0
#define APIC	     0xfee00000
#define TICKS	     (1 << 24)

	mov $1000, %esp
	movl $0x1ff, APIC + 0xf0
	movl $0x40040, APIC + 0x320	/* TSC-deadline, vector 0x40 */
	mov $TSC, %ecx
	mov $0x1000, %edx
	call check
	mov $TSC_ADJUST, %ecx
	mov $0x400000, %edx
	call check
	DONE 42

/* Write edx:0 to MSR ecx. The TSC's high half must then be at least edx. */
check:	mov %edx, %ebx
	xor %eax, %eax
	wrmsr
	rdtsc
	cmp %ebx, %edx
	jb bad_tsc
	add $TICKS, %eax
	adc $0, %edx
	mov %eax, %esi
	mov %edx, %edi
	mov $TSC_DEADLINE, %ecx
	wrmsr
1:	rdtsc
	sub %esi, %eax
	sbb %edi, %edx
	testl $1, APIC + 0x220
	jnz 2f
	cmp $0x10, %edx		/* many seconds late; a negative number is not late */
	jl 1b
	DONE 2
2:	rdtsc
	sub %esi, %eax
	sbb %edi, %edx
	js bad_early
	movl $0, APIC + 0xf0	/* off and on again: IRR is lost */
	mov $0x1b, %ecx
	rdmsr
	and $~0x800, %eax
	wrmsr
	or $0x800, %eax
	wrmsr
	movl $0x1ff, APIC + 0xf0
	movl $0x40040, APIC + 0x320
	ret
bad_tsc:
	DONE 1
bad_early:
	DONE 3
