/*
 * Ends the machine from inside the guest: `exit N` waits until the terminal has sent everything and
 * writes N to Lodge's debug exit port (I/O port 0xf4), which makes `lodge run` exit with status N.
 * Where no such port answers it powers the machine off.
 *
 * Debian's kernels have no /dev/port, hence a program. It is linked without a C library: 1 KiB, and
 * the same source makes the 32-bit one with no further package.
 */

#if defined(__x86_64__)
enum { NR_IOCTL = 16, NR_IOPERM = 173, NR_REBOOT = 169, NR_EXIT = 60 };

static long system_call(long nr, long a, long b, long c)
{
	long ret;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(nr), "D"(a), "S"(b), "d"(c)
			 : "rcx", "r11", "memory");
	return ret;
}

/* The kernel leaves argc and argv on the stack; the ABI wants them in registers. */
__asm__(".globl _start\n"
	"_start:\n"
	"	mov (%rsp), %rdi\n"
	"	lea 8(%rsp), %rsi\n"
	"	and $-16, %rsp\n"
	"	call guest_main\n");
#else
enum { NR_IOCTL = 54, NR_IOPERM = 101, NR_REBOOT = 88, NR_EXIT = 1 };

static long system_call(long nr, long a, long b, long c)
{
	long ret;

	__asm__ volatile("int $0x80" : "=a"(ret) : "a"(nr), "b"(a), "c"(b), "d"(c) : "memory");
	return ret;
}

__asm__(".globl _start\n"
	"_start:\n"
	"	mov (%esp), %eax\n"
	"	lea 4(%esp), %edx\n"
	"	and $-16, %esp\n"
	"	sub $8, %esp\n"
	"	push %edx\n"
	"	push %eax\n"
	"	call guest_main\n");
#endif

#define EXIT_PORT	 0xf4
#define TCSBRK		 0x5409
#define REBOOT_MAGIC1	 0xfee1dead
#define REBOOT_MAGIC2	 672274793
#define REBOOT_POWER_OFF 0x4321fedc

void guest_main(int argc, char **argv);

static unsigned char parse_status(const char *text)
{
	unsigned int value = 0;

	for (; *text >= '0' && *text <= '9'; text++)
		value = value * 10 + (unsigned int)(*text - '0');
	return (unsigned char)value;
}

void guest_main(int argc, char **argv)
{
	unsigned char status = argc > 1 ? parse_status(argv[1]) : 0;

	/* tcdrain(): the port ends the machine at once, so the last output must be out before. */
	system_call(NR_IOCTL, 1, TCSBRK, 1);
	if (system_call(NR_IOPERM, EXIT_PORT, 1, 1) == 0)
		__asm__ volatile("outb %0, %w1" : : "a"(status), "Nd"(EXIT_PORT));
	system_call(NR_REBOOT, (long)REBOOT_MAGIC1, REBOOT_MAGIC2, (long)REBOOT_POWER_OFF);
	system_call(NR_EXIT, 1, 0, 0);
	__builtin_unreachable();
}
