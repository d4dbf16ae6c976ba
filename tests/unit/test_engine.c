/*
 * What every engine must do, asked of engine_ops directly with guests of a few bytes: modes, ports, MMIO,
 * self-modifying code, kicks, interrupts, the end. Which engine is the program's argument; where KVM cannot
 * be had the program says so and exits with 77 (skipped).
 *
 * A /dev/kvm that emulates ring 0 in software will do, and tests the fallback of engine/kvm/emulate.c; it
 * is slow, so loops are short.
 */
#include "engine_rig.h"
#include <errno.h>
#include <sys/eventfd.h>

#define KICK_LIMIT_NS 50000000ull
#define KICKS	      400
#define VECTOR	      0x40

/* ---- modes ---- */

/* mov ax, 0x1234; mov cx, 10; 1: add ax, cx; loop 1b; out END_PORT, al; hlt */
static const uint8_t sum16[] = {
	0xb8, 0x34, 0x12, 0xb9, 0x0a, 0x00, 0x01, 0xc8, 0xe2, 0xfc, 0xe6, 0xf4, 0xf4};
/* The same with EAX, 0x12345678. */
static const uint8_t sum32[] = {0xb8, 0x78, 0x56, 0x34, 0x12, 0xb9, 0x0a, 0x00, 0x00, 0x00, 0x01,
	0xc8, 0xe2, 0xfc, 0xe6, 0xf4, 0xf4};
/* The same with RAX, 0x123456789abcdef0. */
static const uint8_t sum64[] = {0x48, 0xb8, 0xf0, 0xde, 0xbc, 0x9a, 0x78, 0x56, 0x34, 0x12, 0xb9,
	0x0a, 0x00, 0x00, 0x00, 0x48, 0x01, 0xc8, 0xe2, 0xfb, 0xe6, 0xf4, 0xf4};

static void test_real(void **state)
{
	struct rig *r = *state;
	struct x86_state s;

	rig_real(&s);
	s.reg[X86_RAX] = 0xffff0000;
	RIG_LOAD(r, &s, sum16);
	rig_run_to_end(r);
	rig_state(r, &s);
	assert_int_equal(s.reg[X86_RAX], 0xffff0000 | (0x1234 + 55));
	assert_int_equal(s.reg[X86_RIP], CODE + sizeof(sum16) - 1);
}

static void test_protected(void **state)
{
	struct rig *r = *state;
	struct x86_state s;

	rig_flat(&s);
	RIG_LOAD(r, &s, sum32);
	rig_run_to_end(r);
	rig_state(r, &s);
	assert_int_equal(s.reg[X86_RAX], 0x12345678 + 55);
	assert_int_equal(s.reg[X86_RIP], CODE + sizeof(sum32) - 1);
}

static void test_long(void **state)
{
	struct rig *r = *state;
	struct x86_state s;

	rig_long(r, &s);
	RIG_LOAD(r, &s, sum64);
	rig_run_to_end(r);
	rig_state(r, &s);
	assert_int_equal(s.reg[X86_RAX], 0x123456789abcdef0 + 55);
	assert_int_equal(s.reg[X86_RIP], CODE + sizeof(sum64) - 1);
	assert_int_equal(s.msr.efer & X86_EFER_LMA, X86_EFER_LMA);
	assert_int_equal(s.activity, X86_RUNNING);
}

/* ---- ports and MMIO ---- */

/* mov edx, PORT; in al, dx; mov [0x5000], al; in ax, dx; mov [0x5004], ax; in eax, dx; mov [0x5008], eax;
 * mov eax, 0x44332211; out dx, al; out dx, ax; out dx, eax; mov esi, 0x5100; mov ecx, 5; rep outsb;
 * mov edi, 0x5200; mov ecx, 3; rep insw; out END_PORT, al; hlt */
static const uint8_t ports[] = {0xba, 0x00, 0x03, 0x00, 0x00, 0xec, 0xa2, 0x00, 0x50, 0x00, 0x00,
	0x66, 0xed, 0x66, 0xa3, 0x04, 0x50, 0x00, 0x00, 0xed, 0xa3, 0x08, 0x50, 0x00, 0x00, 0xb8,
	0x11, 0x22, 0x33, 0x44, 0xee, 0x66, 0xef, 0xef, 0xbe, 0x00, 0x51, 0x00, 0x00, 0xb9, 0x05,
	0x00, 0x00, 0x00, 0xf3, 0x6e, 0xbf, 0x00, 0x52, 0x00, 0x00, 0xb9, 0x03, 0x00, 0x00, 0x00,
	0x66, 0xf3, 0x6d, 0xe6, 0xf4, 0xf4};

static void check_access(
	struct rig *r, unsigned at, bool write, uint64_t addr, unsigned size, uint64_t value)
{
	const struct access *a = &r->access[at];

	if (a->write != write || a->addr != addr || a->size != size || a->value != value)
		fail_msg("access %u is a %s of %u at %#llx, %#llx", at, a->write ? "write" : "read",
			a->size, (unsigned long long)a->addr, (unsigned long long)a->value);
}

static void test_ports(void **state)
{
	struct rig *r = *state;
	uint8_t words[6];
	struct x86_state s;

	rig_flat(&s);
	rig_put(r, 0x5100, "\x01\x02\x03\x04\x05", 5);
	RIG_LOAD(r, &s, ports);
	rig_run_to_end(r);
	assert_int_equal(r->access_count, 14);
	check_access(r, 0, false, 0, 1, 0x11);
	check_access(r, 1, false, 0, 2, 0x2312);
	check_access(r, 2, false, 0, 4, 0x46352413);
	check_access(r, 3, true, 0, 1, 0x11);
	check_access(r, 4, true, 0, 2, 0x2211);
	check_access(r, 5, true, 0, 4, 0x44332211);
	for (unsigned i = 0; i < 5; i++)
		check_access(r, 6 + i, true, 0, 1, 1 + i);
	assert_int_equal(rig_get64(r, DATA) & 0xff, r->access[0].value);
	assert_int_equal(rig_get64(r, DATA + 4) & 0xffff, r->access[1].value);
	assert_int_equal(rig_get64(r, DATA + 8) & 0xffffffff, r->access[2].value);
	assert_int_equal(memory_read(r->memory, 0x5200, words, 6), 0);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(r->access[11 + i].size, 2);
		assert_memory_equal(words + 2 * i, &r->access[11 + i].value, 2);
	}
}

/* mov ebx, MMIO_GPA; movzx eax, byte [rbx+1]; mov [0x5000], rax; movzx eax, word [rbx+2];
 * mov [0x5008], rax; mov eax, [rbx+4]; mov [0x5010], rax; mov rax, [rbx+8]; mov [0x5018], rax;
 * mov rax, 0x8877665544332211; mov [rbx+1], al; mov [rbx+2], ax; mov [rbx+4], eax; mov [rbx+8], rax;
 * mov ecx, [rbx+0xffe]; mov [rbx+0xffe], eax; out END_PORT, al; hlt */
static const uint8_t mmio[] = {0xbb, 0x00, 0x00, 0x00, 0xd0, 0x0f, 0xb6, 0x43, 0x01, 0x48, 0x89,
	0x04, 0x25, 0x00, 0x50, 0x00, 0x00, 0x0f, 0xb7, 0x43, 0x02, 0x48, 0x89, 0x04, 0x25, 0x08,
	0x50, 0x00, 0x00, 0x8b, 0x43, 0x04, 0x48, 0x89, 0x04, 0x25, 0x10, 0x50, 0x00, 0x00, 0x48,
	0x8b, 0x43, 0x08, 0x48, 0x89, 0x04, 0x25, 0x18, 0x50, 0x00, 0x00, 0x48, 0xb8, 0x11, 0x22,
	0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x88, 0x43, 0x01, 0x66, 0x89, 0x43, 0x02, 0x89, 0x43,
	0x04, 0x48, 0x89, 0x43, 0x08, 0x8b, 0x8b, 0xfe, 0x0f, 0x00, 0x00, 0x89, 0x83, 0xfe, 0x0f,
	0x00, 0x00, 0xe6, 0xf4, 0xf4};

/* The bytes of accesses [from, to), in order. */
static uint64_t join(struct rig *r, unsigned from, unsigned to, uint64_t addr)
{
	uint64_t value = 0;

	for (unsigned i = from; i < to; i++)
		value |= r->access[i].value << 8 * (r->access[i].addr - addr);
	return value;
}

static void test_mmio(void **state)
{
	static const struct access expected[] = {
		{false, 1, 0x11, 1},
		{false, 2, 0x2312, 2},
		{false, 4, 0x46352413, 4},
		{false, 8, 0x8877665544332211 + 3 * 0x0101010101010101, 8},
		{true, 1, 0x11, 1},
		{true, 2, 0x2211, 2},
		{true, 4, 0x44332211, 4},
		{true, 8, 0x8877665544332211, 8},
	};
	struct rig *r = *state;
	struct x86_state s;
	unsigned at;

	rig_long(r, &s);
	RIG_LOAD(r, &s, mmio);
	rig_run_to_end(r);
	for (unsigned i = 0; i < ARRAY_SIZE(expected); i++)
		check_access(r, i, expected[i].write, expected[i].addr, expected[i].size,
			expected[i].value);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(rig_get64(r, DATA + 8 * i), r->access[i].value);
	/* Across pages: in whatever pieces, but the right bytes. */
	for (at = 8; at < r->access_count && !r->access[at].write; at++)
		;
	rig_state(r, &s);
	assert_int_equal(join(r, 8, at, 0xffe), s.reg[X86_RCX]);
	assert_int_equal(join(r, at, r->access_count, 0xffe), 0x44332211);
}

/* ---- code that changes itself ---- */

/* xor eax, eax; mov ecx, 50; 1: add eax, 1 (at CODE + 7); inc byte [1b + 2]; loop 1b; out; hlt */
static const uint8_t smc[] = {0x31, 0xc0, 0xb9, 0x32, 0x00, 0x00, 0x00, 0x83, 0xc0, 0x01, 0xfe,
	0x05, 0x09, 0x10, 0x00, 0x00, 0xe2, 0xf5, 0xe6, 0xf4, 0xf4};

static void test_self_modifying(void **state)
{
	struct rig *r = *state;
	struct x86_state s;

	rig_flat(&s);
	RIG_LOAD(r, &s, smc);
	rig_run_to_end(r);
	rig_state(r, &s);
	assert_int_equal(s.reg[X86_RAX], 50 * 51 / 2);
}

/* ---- the end ---- */

static const uint8_t ud2[] = {0x0f, 0x0b};

static void test_triple_fault(void **state)
{
	struct rig *r = *state;
	struct x86_state s;

	rig_flat(&s);
	s.idtr.limit = 0;
	RIG_LOAD(r, &s, ud2);
	assert_int_equal(rig_run(r), ENGINE_EXIT_SHUTDOWN);
	rig_state(r, &s);
	assert_int_equal(s.activity, X86_SHUTDOWN);
	assert_int_equal(rig_run(r), ENGINE_EXIT_SHUTDOWN);
	/* It stays so in a state that is moved, and ends with a new one. */
	assert_int_equal(r->ops->set_state(r->vcpu, &s), 0);
	assert_int_equal(rig_run(r), ENGINE_EXIT_SHUTDOWN);
	rig_flat(&s);
	RIG_LOAD(r, &s, sum32);
	rig_run_to_end(r);
}

/* ---- kicks ---- */

struct kicker {
	struct rig *rig;
	_Atomic unsigned wanted; /* kicks asked for */
	_Atomic uint64_t kicked_ns;
	_Atomic bool stop;
};

static void *kicker_thread(void *opaque)
{
	struct kicker *k = opaque;
	unsigned done = 0;

	while (!k->stop) {
		if (done == k->wanted) {
			usleep(20);
			continue;
		}
		/* From at once (before run, at its start) to well inside. */
		usleep(done * 37 % 400);
		k->kicked_ns = clock_monotonic_ns();
		k->rig->ops->kick(k->rig->vcpu);
		done++;
	}
	return NULL;
}

/* 1: jmp 1b */
static const uint8_t spin[] = {0xeb, 0xfe};

static void test_kick(void **state)
{
	struct rig *r = *state;
	struct kicker k = {.rig = r};
	struct error err = {0};
	struct x86_state s;
	pthread_t thread;
	unsigned late = 0;

	rig_flat(&s);
	RIG_LOAD(r, &s, spin);
	assert_int_equal(pthread_create(&thread, NULL, kicker_thread, &k), 0);
	for (unsigned i = 0; i < KICKS; i++) {
		k.wanted++;
		assert_int_equal(r->ops->run(r->vcpu, &err), ENGINE_EXIT_KICKED);
		late += clock_monotonic_ns() - k.kicked_ns > KICK_LIMIT_NS;
	}
	k.stop = true;
	pthread_join(thread, NULL);
	/* On a busy host some waits are the host's. */
	assert_in_range(late, 0, KICKS / 20);
	rig_state(r, &s);
	assert_int_equal(s.reg[X86_RIP], CODE);
}

/* A kick while run() is not running is not lost, and two make one. */
static void test_kick_before(void **state)
{
	struct rig *r = *state;
	struct error err = {0};
	struct x86_state s;

	rig_flat(&s);
	RIG_LOAD(r, &s, sum32);
	r->ops->kick(r->vcpu);
	r->ops->kick(r->vcpu);
	assert_int_equal(r->ops->run(r->vcpu, &err), ENGINE_EXIT_KICKED);
	assert_false(r->done);
	rig_run_to_end(r);
}

/* mov edx, PORT; in eax, dx; mov ebx, MMIO_GPA; mov ecx, [ebx+0xffe]; mov edi, 0x5200; mov esi, ecx;
 * mov ecx, 3; rep insw; out END_PORT, al; hlt */
static const uint8_t reads[] = {0xba, 0x00, 0x03, 0x00, 0x00, 0xed, 0xbb, 0x00, 0x00, 0x00, 0xd0,
	0x8b, 0x8b, 0xfe, 0x0f, 0x00, 0x00, 0xbf, 0x00, 0x52, 0x00, 0x00, 0x89, 0xce, 0xb9, 0x03,
	0x00, 0x00, 0x00, 0x66, 0xf3, 0x6d, 0xe6, 0xf4, 0xf4};

/* A kick in the middle of an instruction's I/O: run returns when that is finished, and nothing of it is left
 * outside the state. */
static void test_kick_in_io(void **state)
{
	struct rig *r = *state;
	struct error err = {0};
	unsigned runs = 0;
	struct x86_state s;

	rig_flat(&s);
	RIG_LOAD(r, &s, reads);
	r->kick_on_read = true;
	do {
		assert_int_equal(r->ops->run(r->vcpu, &err), ENGINE_EXIT_KICKED);
		rig_state(r, &s);
		assert_int_equal(r->ops->set_state(r->vcpu, &s), 0);
		if (runs++ == 0)
			assert_int_equal(s.reg[X86_RAX], r->access[0].value);
	} while (!r->done);
	assert_int_equal(s.reg[X86_RSI], join(r, 1, r->access_count - 3, 0xffe));
	assert_int_equal(s.reg[X86_RCX], 0);
	assert_int_equal(s.reg[X86_RDI], 0x5206);
	assert_int_equal(s.reg[X86_RIP], CODE + sizeof(reads) - 1);
}

/* ---- interrupts ---- */

/* mov eax, 0xfee000f0; mov dword [rax], 0x1ff (enable the local APIC); mov qword [0x5000], 0;
 * out READY_PORT, al; sti; 1: test ebp, ebp; jz 2f; hlt; 2: mov rax, [0x5000]; cmp rax, [0x5020];
 * jb 1b; cli; out END_PORT, al; hlt */
static const uint8_t intr[] = {0xb8, 0xf0, 0x00, 0xe0, 0xfe, 0xc7, 0x00, 0xff, 0x01, 0x00, 0x00,
	0x48, 0xc7, 0x04, 0x25, 0x00, 0x50, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xe6, 0xf5, 0xfb,
	0x85, 0xed, 0x74, 0x01, 0xf4, 0x48, 0x8b, 0x04, 0x25, 0x00, 0x50, 0x00, 0x00, 0x48, 0x3b,
	0x04, 0x25, 0x20, 0x50, 0x00, 0x00, 0x72, 0xe9, 0xfa, 0xe6, 0xf4, 0xf4};
/* push rax; inc qword [0x5000]; mov eax, 0xfee000b0; mov dword [rax], 0 (EOI); pop rax; iretq */
static const uint8_t intrh[] = {0x50, 0x48, 0xff, 0x04, 0x25, 0x00, 0x50, 0x00, 0x00, 0xb8, 0xb0,
	0x00, 0xe0, 0xfe, 0xc7, 0x00, 0x00, 0x00, 0x00, 0x00, 0x58, 0x48, 0xcf};
/* out READY_PORT, al; 1: test ebp, ebp; jz 2f; hlt; 2: cmp qword [0x5008], 0; je 1b; out; hlt */
static const uint8_t nmi[] = {0xe6, 0xf5, 0x85, 0xed, 0x74, 0x01, 0xf4, 0x48, 0x83, 0x3c, 0x25,
	0x08, 0x50, 0x00, 0x00, 0x00, 0x74, 0xf0, 0xe6, 0xf4, 0xf4};
/* inc qword [0x5008]; iretq */
static const uint8_t nmih[] = {0x48, 0xff, 0x04, 0x25, 0x08, 0x50, 0x00, 0x00, 0x48, 0xcf};

static void send_interrupt(struct rig *r)
{
	if (r->ops->caps & ENGINE_CAP_IRQCHIP) {
		assert_int_equal(r->ops->msi(r->vm, 0xfee00000, VECTOR), 0);
		return;
	}
	r->vector = VECTOR;
	r->ops->interrupt(r->vcpu);
}

static void send_nmi(struct rig *r)
{
	r->ops->nmi(r->vcpu);
}

struct sender {
	struct rig *rig;
	void (*send)(struct rig *r);
};

static void *sender_thread(void *opaque)
{
	struct sender *sender = opaque;
	struct rig *r = sender->rig;

	while (!r->ready && !r->done)
		usleep(100);
	while (!r->done) {
		sender->send(r);
		rig_wake(r);
		usleep(3000);
	}
	return NULL;
}

static void run_with_sender(struct rig *r, void (*send)(struct rig *))
{
	struct sender sender = {r, send};
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, sender_thread, &sender), 0);
	rig_run_to_end(r);
	pthread_join(thread, NULL);
}

static void interrupts(struct rig *r, bool halting)
{
	struct x86_state s;

	rig_long(r, &s);
	rig_gate(r, VECTOR, 0, intrh, sizeof(intrh));
	rig_put64(r, 0x5020, 5);
	s.reg[X86_RBP] = halting;
	RIG_LOAD(r, &s, intr);
	run_with_sender(r, send_interrupt);
	assert_in_range(rig_get64(r, DATA), 5, 6);
}

static void test_interrupts(void **state)
{
	interrupts(*state, false);
}

static void test_interrupts_halted(void **state)
{
	interrupts(*state, true);
}

static void nmis(struct rig *r, bool halting)
{
	struct x86_state s;

	rig_long(r, &s);
	rig_gate(r, X86_NMI, 0x100, nmih, sizeof(nmih));
	s.reg[X86_RBP] = halting;
	RIG_LOAD(r, &s, nmi);
	run_with_sender(r, send_nmi);
	assert_in_range(rig_get64(r, DATA + 8), 1, 1000);
	rig_state(r, &s);
	assert_false(s.nmi_blocked);
}

static void test_nmi(void **state)
{
	nmis(*state, false);
}

static void test_nmi_halted(void **state)
{
	nmis(*state, true);
}

/* ---- doorbells, and interrupts by eventfd ---- */

/* mov edx, PORT; mov al, 1; out dx, al; mov al, 2; out dx, al; mov edx, MMIO_GPA; mov [edx], eax;
 * out END_PORT, al; hlt */
static const uint8_t bells[] = {0xba, 0x00, 0x03, 0x00, 0x00, 0xb0, 0x01, 0xee, 0xb0, 0x02, 0xee,
	0xba, 0x00, 0x00, 0x00, 0xd0, 0x89, 0x02, 0xe6, 0xf4, 0xf4};

static uint64_t rings(int fd)
{
	eventfd_t count = 0;

	return eventfd_read(fd, &count) == 0 ? count : 0;
}

static void test_doorbells(void **state)
{
	struct rig *r = *state;
	int one = eventfd(0, EFD_NONBLOCK), any = eventfd(0, EFD_NONBLOCK);
	const struct bus_doorbell port = {BUS_PIO, PORT, 1, false, 2, one};
	const struct bus_doorbell page = {BUS_MMIO, MMIO_GPA, 4, true, 0, any};
	struct x86_state s;

	assert_int_equal(r->ops->ioeventfd(r->vm, &port, true), 0);
	assert_int_equal(r->ops->ioeventfd(r->vm, &page, true), 0);
	assert_int_equal(r->ops->ioeventfd(r->vm, &page, true), -EEXIST);
	rig_flat(&s);
	RIG_LOAD(r, &s, bells);
	rig_run_to_end(r);
	assert_int_equal(rings(one), 1);
	assert_int_equal(rings(any), 1);
	assert_int_equal(r->access_count, 1); /* the value that does not match */
	check_access(r, 0, true, 0, 1, 1);
	assert_int_equal(r->ops->ioeventfd(r->vm, &port, false), 0);
	assert_int_equal(r->ops->ioeventfd(r->vm, &page, false), 0);
	assert_int_equal(r->ops->ioeventfd(r->vm, &page, false), -ENOENT);
	r->done = false;
	RIG_LOAD(r, &s, bells);
	rig_run_to_end(r);
	assert_int_equal(rings(one) + rings(any), 0);
	assert_int_equal(r->access_count, 4);
	close(one);
	close(any);
}

#define LINE 20 /* the PICs have none of that number */

static int irqfd;

static void send_by_eventfd(struct rig *r)
{
	eventfd_write(irqfd, 1);
}

/* mov ebx, 0xfec00000; mov dword [rbx], 0x39; mov dword [rbx+0x10], 0; mov dword [rbx], 0x38;
 * mov dword [rbx+0x10], VECTOR: pin 20, edge, fixed, to APIC 0. What follows is `intr`. */
static const uint8_t ioapic[] = {0xbb, 0x00, 0x00, 0xc0, 0xfe, 0xc7, 0x03, 0x39, 0x00, 0x00, 0x00,
	0xc7, 0x43, 0x10, 0x00, 0x00, 0x00, 0x00, 0xc7, 0x03, 0x38, 0x00, 0x00, 0x00, 0xc7, 0x43,
	0x10, 0x40, 0x00, 0x00, 0x00};

static void test_irqfd(void **state)
{
	struct rig *r = *state;
	uint8_t code[sizeof(ioapic) + sizeof(intr)];
	struct x86_state s;

	irqfd = eventfd(0, EFD_NONBLOCK);
	if (!(r->ops->caps & ENGINE_CAP_IRQCHIP)) {
		/* The machine does it: test_irqfd.c. */
		assert_int_equal(r->ops->irqfd(r->vm, LINE, irqfd, true), -ENOTSUP);
		close(irqfd);
		return;
	}
	assert_int_equal(r->ops->irqfd(r->vm, LINE, irqfd, true), 0);
	memcpy(code, ioapic, sizeof(ioapic));
	memcpy(code + sizeof(ioapic), intr, sizeof(intr));
	rig_long(r, &s);
	rig_gate(r, VECTOR, 0, intrh, sizeof(intrh));
	rig_put64(r, 0x5020, 3);
	RIG_LOAD(r, &s, code);
	run_with_sender(r, send_by_eventfd);
	assert_in_range(rig_get64(r, DATA), 3, 4);
	assert_int_equal(r->ops->irqfd(r->vm, LINE, irqfd, false), 0);
	close(irqfd);
}

static const uint64_t *addresses;

static void send_messages(struct rig *r)
{
	for (const uint64_t *address = addresses; *address; address++)
		assert_int_equal(r->ops->msi(r->vm, *address, VECTOR), 0);
}

/* A device's message is an interrupt where the APICs are, and nothing elsewhere. */
static void test_messages(void **state)
{
	static const uint64_t nowhere[] = {
		0x1000, 0xfed00000, 0xffe00000, 0x1fee00000, 0xfffffffffee00000, 0};
	static const uint64_t apic[] = {0xfee00000, 0};
	struct rig *r = *state;
	struct x86_state s;

	if (!(r->ops->caps & ENGINE_CAP_IRQCHIP)) {
		/* The board does it: test_lapic.c. */
		assert_int_equal(r->ops->msi(r->vm, 0xfee00000, VECTOR), -ENOTSUP);
		return;
	}
	rig_long(r, &s);
	rig_gate(r, VECTOR, 0, intrh, sizeof(intrh));
	rig_put64(r, 0x5020, 3);
	RIG_LOAD(r, &s, intr);
	addresses = apic;
	run_with_sender(r, send_messages);
	assert_in_range(rig_get64(r, DATA), 3, 4);
	rig_state(r, &s);
	assert_true(s.lapic.reg[0xf] & 0x100); /* it would take more */
	const uint32_t before = s.lapic.reg[0x20 + VECTOR / 32];
	addresses = nowhere;
	r->ops->msi(r->vm, 0x1000, VECTOR + 1);
	send_messages(r);
	rig_state(r, &s);
	assert_int_equal(s.lapic.reg[0x20 + VECTOR / 32], before); /* IRR */
	r->ops->msi(r->vm, 0xfee00000, VECTOR + 1);
	rig_state(r, &s);
	assert_int_equal(s.lapic.reg[0x20 + VECTOR / 32], before | 1u << (VECTOR + 1) % 32);
}

static void *kick_when_ready(void *opaque)
{
	struct rig *r = opaque;

	while (!r->ready)
		usleep(100);
	r->ops->kick(r->vcpu);
	return NULL;
}

/* One that comes while the machine is paused is kept, is there for whoever looks at the state, and is delivered. */
static void test_message_while_paused(void **state)
{
	struct rig *r = *state;
	struct error err = {0};
	struct x86_state s;
	pthread_t thread;

	if (!(r->ops->caps & ENGINE_CAP_IRQCHIP))
		return; /* the board's */
	for (unsigned halting = 0; halting < 2; halting++) {
		r->ready = r->done = false;
		rig_long(r, &s);
		rig_gate(r, VECTOR, 0, intrh, sizeof(intrh));
		rig_put64(r, 0x5020, 1);
		s.reg[X86_RBP] = halting;
		RIG_LOAD(r, &s, intr);
		assert_int_equal(pthread_create(&thread, NULL, kick_when_ready, r), 0);
		assert_int_equal(r->ops->run(r->vcpu, &err), ENGINE_EXIT_KICKED);
		pthread_join(thread, NULL);
		assert_int_equal(r->ops->hold(r->vm), 0);
		assert_int_equal(r->ops->msi(r->vm, 0xfee00000, VECTOR), 0);
		rig_state(r, &s);
		assert_true(s.lapic.reg[0x20 + VECTOR / 32] >> VECTOR % 32 & 1);
		assert_int_equal(rig_get64(r, DATA), 0);
		assert_int_equal(r->ops->release(r->vm), 0);
		rig_run_to_end(r);
		assert_int_equal(rig_get64(r, DATA), 1);
	}
}

/* ---- instructions that some KVMs cannot emulate ---- */

/* mov esi, 0x5000; mov rax, [rsi]; mov rdx, [rsi+8]; mov rbx, 0x1111; mov rcx, 0x2222;
 * lock cmpxchg16b [rsi]; setz [0x5020]; movdqu xmm1, [0x5040]; paddd xmm1, xmm1; fxsave [0x6000];
 * pxor xmm1, xmm1; fxrstor [0x6000]; movdqu [0x50a0], xmm1; cmp byte [HAS_AVX], 0; je 1f;
 * vmovdqu ymm1, [0x5040]; vpaddd ymm2, ymm1, ymm1; mov eax, 7; xor edx, edx; xsave [0x6000];
 * vpxor ymm2, ymm2, ymm2; mov eax, 7; xrstor [0x6000]; vmovdqu [0x5060], ymm2; 1: out END_PORT, al; hlt */
static const uint8_t refused[] = {0xbe, 0x00, 0x50, 0x00, 0x00, 0x48, 0x8b, 0x06, 0x48, 0x8b, 0x56,
	0x08, 0x48, 0xc7, 0xc3, 0x11, 0x11, 0x00, 0x00, 0x48, 0xc7, 0xc1, 0x22, 0x22, 0x00, 0x00,
	0xf0, 0x48, 0x0f, 0xc7, 0x0e, 0x0f, 0x94, 0x04, 0x25, 0x20, 0x50, 0x00, 0x00, 0xf3, 0x0f,
	0x6f, 0x0c, 0x25, 0x40, 0x50, 0x00, 0x00, 0x66, 0x0f, 0xfe, 0xc9, 0x0f, 0xae, 0x04, 0x25,
	0x00, 0x60, 0x00, 0x00, 0x66, 0x0f, 0xef, 0xc9, 0x0f, 0xae, 0x0c, 0x25, 0x00, 0x60, 0x00,
	0x00, 0xf3, 0x0f, 0x7f, 0x0c, 0x25, 0xa0, 0x50, 0x00, 0x00, 0x80, 0x3c, 0x25, 0x90, 0x50,
	0x00, 0x00, 0x00, 0x74, 0x36, 0xc5, 0xfe, 0x6f, 0x0c, 0x25, 0x40, 0x50, 0x00, 0x00, 0xc5,
	0xf5, 0xfe, 0xd1, 0xb8, 0x07, 0x00, 0x00, 0x00, 0x31, 0xd2, 0x0f, 0xae, 0x24, 0x25, 0x00,
	0x60, 0x00, 0x00, 0xc5, 0xed, 0xef, 0xd2, 0xb8, 0x07, 0x00, 0x00, 0x00, 0x0f, 0xae, 0x2c,
	0x25, 0x00, 0x60, 0x00, 0x00, 0xc5, 0xfe, 0x7f, 0x14, 0x25, 0x60, 0x50, 0x00, 0x00, 0xe6,
	0xf4, 0xf4};

static void check_emulated(struct rig *r)
{
	struct engine_counters counters;
	struct engine_probe probe;

	if (r->ops != &engine_kvm_ops)
		return;
	r->ops->probe(&probe);
	r->ops->counters(r->vcpu, &counters);
	if (probe.ring0_emulated)
		assert_in_range(counters.emulated, 1, 20);
	else
		print_message(
			"NOT CHECKED: KVM's emulation fallback (this KVM runs ring 0 natively)\n");
}

static void test_rare_instructions(void **state)
{
	struct rig *r = *state;
	uint32_t in[8], out[8];
	struct x86_state s;

	for (unsigned i = 0; i < 8; i++)
		in[i] = 0x01010101 * i + 0x70000000;
	rig_long(r, &s);
	rig_put64(r, DATA, 0x1234);
	rig_put64(r, DATA + 8, 0x5678);
	rig_put(r, 0x5040, in, sizeof(in));
	RIG_LOAD(r, &s, refused);
	rig_run_to_end(r);
	assert_int_equal(rig_get64(r, 0x5020) & 0xff, 1);
	assert_int_equal(rig_get64(r, DATA), 0x1111);
	assert_int_equal(rig_get64(r, DATA + 8), 0x2222);
	for (unsigned i = 0; i < 8; i++)
		in[i] += in[i];
	assert_int_equal(memory_read(r->memory, 0x50a0, out, 16), 0);
	assert_memory_equal(in, out, 16);
	if (r->has_avx) {
		assert_int_equal(memory_read(r->memory, 0x5060, out, sizeof(out)), 0);
		assert_memory_equal(in, out, sizeof(in));
	}
	check_emulated(r);
}

/* ---- leaf 0xd ---- */

#define LEAVES 0x6000u

/* xor ecx, ecx; xor edx, edx; mov eax, [DATA]; xsetbv; mov edi, LEAVES; xor esi, esi; 1: mov eax, 0xd;
 * mov ecx, esi; cpuid; mov [rdi], eax; mov [rdi+4], ebx; mov [rdi+8], ecx; mov [rdi+12], edx; add edi, 16;
 * inc esi; cmp esi, 64; jne 1b; out END_PORT, al; hlt */
static const uint8_t xsave_leaves[] = {0x31, 0xc9, 0x31, 0xd2, 0x8b, 0x04, 0x25, 0x00, 0x50, 0x00,
	0x00, 0x0f, 0x01, 0xd1, 0xbf, 0x00, 0x60, 0x00, 0x00, 0x31, 0xf6, 0xb8, 0x0d, 0x00, 0x00,
	0x00, 0x89, 0xf1, 0x0f, 0xa2, 0x89, 0x07, 0x89, 0x5f, 0x04, 0x89, 0x4f, 0x08, 0x89, 0x57,
	0x0c, 0x83, 0xc7, 0x10, 0xff, 0xc6, 0x83, 0xfe, 0x40, 0x75, 0xe2, 0xe6, 0xf4, 0xf4};

/* As Linux adds it up: what it would warn of. */
static void check_xsave_leaves(const uint32_t leaf[64][4], uint32_t xcr0)
{
	const uint32_t mask = leaf[0][0];
	uint32_t now = 576, most = 576;

	assert_int_equal(leaf[0][3], 0);
	assert_int_equal(leaf[1][2] | leaf[1][3], 0); /* nothing for XSS */
	for (unsigned i = 2; i < 64; i++) {
		if (i >= 32 || !(mask >> i & 1)) {
			assert_int_equal(leaf[i][0] | leaf[i][1] | leaf[i][2] | leaf[i][3], 0);
			continue;
		}
		assert_true(leaf[i][0] && leaf[i][1] >= most && !(leaf[i][2] & 1));
		most = leaf[i][1] + leaf[i][0];
		if (xcr0 >> i & 1)
			now = most;
	}
	assert_int_equal(leaf[0][1], now);
	assert_int_equal(leaf[0][2], most);
	/* With no more than AVX the compacted format is as large. */
	assert_int_equal(leaf[1][1], leaf[1][0] & 0xa ? now : 0);
}

static void test_xsave_leaves(void **state)
{
	static const uint32_t values[] = {7, 3, 1};
	struct rig *r = *state;
	uint32_t leaf[64][4];
	struct x86_state s;

	if (!r->has_avx) {
		print_message("NOT CHECKED: leaf 0xd (no AVX here)\n");
		skip();
	}
	for (unsigned i = 0; i < ARRAY_SIZE(values); i++) {
		rig_long(r, &s);
		s.xcr0 = X86_XCR0_X87;
		rig_put64(r, DATA, values[i]);
		RIG_LOAD(r, &s, xsave_leaves);
		rig_run_to_end(r);
		rig_state(r, &s);
		assert_int_equal(memory_read(r->memory, LEAVES, leaf, sizeof(leaf)), 0);
		if (s.xcr0 == X86_XCR0_X87 && values[i] != X86_XCR0_X87) {
			print_message(
				"NOT CHECKED: sizes of XCR0 %u (this KVM does not see XSETBV: QEMU 7.2)\n",
				values[i]);
			check_xsave_leaves(leaf, X86_XCR0_X87);
			continue;
		}
		assert_int_equal(s.xcr0, values[i]);
		check_xsave_leaves(leaf, values[i]);
	}
}

/* ---- budgets ---- */

static uint64_t instructions_of(struct rig *r)
{
	struct engine_counters counters;

	r->ops->counters(r->vcpu, &counters);
	return counters.instructions;
}

static bool can_count(struct rig *r)
{
	r->ops->vcpu_free(r->vcpu);
	r->ops->vm_free(r->vm);
	r->count = true;
	rig_engine(r, r->ops);
	if (r->ops->set_budget(r->vcpu, 1) == 0)
		return true;
	print_message("NOT CHECKED: budgets (%s does not count instructions)\n", r->ops->name);
	return false;
}

/* Run with this budget; the interpreter keeps it to the instruction, others to the block. */
static uint64_t run_budget(struct rig *r, uint64_t budget)
{
	uint64_t before = instructions_of(r), done;
	struct error err = {0};

	assert_int_equal(r->ops->set_budget(r->vcpu, budget), 0);
	assert_int_equal(r->ops->run(r->vcpu, &err), ENGINE_EXIT_BUDGET);
	done = instructions_of(r) - before;
	assert_true(done >= budget);
	if (strcmp(r->ops->name, "interp") == 0)
		assert_int_equal(done, budget);
	return done;
}

/* inc eax; ud2; jmp to the inc. The handler: add qword [rsp], 2; iretq. Five turns of the count, and the second
 * is the fault. */
static void test_budget(void **state)
{
	static const uint8_t code[] = {0xff, 0xc0, 0x0f, 0x0b, 0xeb, 0xfa};
	static const uint8_t handler[] = {0x48, 0x83, 0x04, 0x24, 0x02, 0x48, 0xcf};
	static const uint64_t place[] = {CODE, CODE + 2, HANDLERS, HANDLERS + 5, CODE + 4};
	struct rig *r = *state;
	struct x86_state s;
	uint64_t total = 0;

	if (!can_count(r))
		return;
	rig_long(r, &s);
	rig_gate(r, X86_UD, 0, handler, sizeof(handler));
	RIG_LOAD(r, &s, code);
	for (uint64_t budget = 1; budget < 60; budget++) {
		total += run_budget(r, budget);
		rig_state(r, &s);
		assert_int_equal(s.reg[X86_RIP], place[total % 5]);
		assert_int_equal(s.reg[X86_RAX], total / 5 + (total % 5 > 0));
	}
}

/* mov ecx; rep stosb of 100000 bytes; inc edx; jmp to itself: the string instruction counts once, at its end. */
static void test_budget_strings(void **state)
{
	static const uint8_t code[] = {
		0xb9, 0xa0, 0x86, 0x01, 0x00, 0xf3, 0xaa, 0xff, 0xc2, 0xeb, 0xfe};
	struct rig *r = *state;
	struct x86_state s;

	if (!can_count(r))
		return;
	rig_long(r, &s);
	s.reg[X86_RDI] = 0x100000;
	RIG_LOAD(r, &s, code);
	uint64_t done = run_budget(r, 2);
	rig_state(r, &s);
	assert_int_equal(s.reg[X86_RCX], 0);
	assert_int_equal(s.reg[X86_RDI], 0x100000 + 100000);
	assert_int_equal(s.reg[X86_RDX], done > 2);
}

/* An interrupt that was announced comes before the first instruction. */
static void test_budget_interrupt(void **state)
{
	static const uint8_t code[] = {0xeb, 0xfe};
	static const uint8_t handler[] = {0xff, 0xc2, 0xeb, 0xfe}; /* inc edx; jmp to itself */
	struct rig *r = *state;
	struct x86_state s;

	if (!can_count(r))
		return;
	rig_long(r, &s);
	s.rflags |= X86_IF;
	rig_gate(r, 0x40, 0, handler, sizeof(handler));
	RIG_LOAD(r, &s, code);
	run_budget(r, 100);
	rig_state(r, &s);
	assert_int_equal(s.reg[X86_RIP], CODE);
	r->vector = 0x40;
	r->ops->interrupt(r->vcpu);
	run_budget(r, 1);
	rig_state(r, &s);
	assert_int_equal(s.reg[X86_RDX], 1);
}

/* ---- ---- */

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(test_real),
		RIG_TEST(test_protected),
		RIG_TEST(test_long),
		RIG_TEST(test_ports),
		RIG_TEST(test_mmio),
		RIG_TEST(test_self_modifying),
		RIG_TEST(test_triple_fault),
		RIG_TEST(test_kick),
		RIG_TEST(test_kick_before),
		RIG_TEST(test_kick_in_io),
		RIG_TEST(test_interrupts),
		RIG_TEST(test_interrupts_halted),
		RIG_TEST(test_nmi),
		RIG_TEST(test_nmi_halted),
		RIG_TEST(test_rare_instructions),
		RIG_TEST(test_doorbells),
		RIG_TEST(test_irqfd),
		RIG_TEST(test_messages),
		RIG_TEST(test_message_while_paused),
		RIG_TEST(test_xsave_leaves),
		RIG_TEST(test_budget),
		RIG_TEST(test_budget_strings),
		RIG_TEST(test_budget_interrupt),
	};
	int status = rig_main(argc, argv, "ENGINE");

	return status ? status : cmocka_run_group_tests_name(rig_ops->name, tests, NULL, NULL);
}
