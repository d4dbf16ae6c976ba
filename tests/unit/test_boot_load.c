/*
 * boot/: kernels of every format, made here byte by byte, and what is left of them when they are cut or
 * spoilt. A damaged kernel must be refused with a line of text, or load; anything else is a bug (run this
 * under the sanitizers).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <lz4.h>
#include <lzma.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "boot/boot.h"
#include "boot/layout.h"
#include "boot/unpack.h"
#include "isa/x86/state.h"
#include "memory/memory.h"

#define RAM_BYTES   MIB(64)
#define KERNEL_BASE MIB(16)

struct bytes {
	uint8_t b[65536];
	uint32_t n;
};

static struct fixture {
	struct guest_memory *memory;
	struct x86_state cpu;
	struct error err;
	struct boot_config config;
	struct boot_file initrd[4];
	struct bytes kernel;
} f;

static int file_of(const void *bytes, size_t size_bytes)
{
	int fd = memfd_create("kernel", 0);

	assert_true(fd > 0);
	assert_int_equal(write(fd, bytes, size_bytes), size_bytes);
	return fd;
}

/* Boots f.kernel, with its first `size` bytes. */
static int boot(uint32_t size)
{
	int fd = file_of(f.kernel.b, size);
	int r;

	memset(&f.cpu, 0, sizeof(f.cpu));
	memset(&f.err, 0, sizeof(f.err));
	f.config.kernel = (struct boot_file){.path = "the-kernel", .fd = fd};
	f.config.initrd = f.initrd;
	r = boot_load(f.memory, &f.config, &f.cpu, &f.err);
	close(fd);
	if (r < 0) {
		assert_int_equal(f.err.code, -r);
		assert_true(strlen(f.err.text) > 10);
	}
	return r;
}

static void add_initrd(const char *args, const void *bytes, size_t size_bytes)
{
	f.initrd[f.config.initrd_count++] = (struct boot_file){
		.path = "the-initrd", .fd = file_of(bytes, size_bytes), .args = args};
}

static int setup(void **state)
{
	memset(&f, 0, sizeof(f));
	assert_int_equal(memory_create(&f.memory), 0);
	return memory_add_ram(f.memory, 0, RAM_BYTES, 0, "ram", NULL);
}

static int teardown(void **state)
{
	for (unsigned i = 0; i < f.config.initrd_count; i++)
		close(f.initrd[i].fd);
	memory_free(f.memory);
	return 0;
}

static uint64_t guest(gpa_t gpa, unsigned size_bytes)
{
	uint8_t raw[8] = {0};

	assert_int_equal(memory_read(f.memory, gpa, raw, size_bytes), 0);
	return load_le64(raw);
}

static void assert_guest_text(gpa_t gpa, const char *text)
{
	char found[256] = {0};

	assert_true(strlen(text) < sizeof(found));
	assert_int_equal(memory_read(f.memory, gpa, found, strlen(text) + 1), 0);
	assert_string_equal(found, text);
}

/* ---- kernels ---- */

/* An ELF of one segment (0x300 bytes of 0x90 in the file, 0x1000 in memory) and, if wanted, a PVH note. */
static void make_elf(struct bytes *out, bool is_64, bool pvh, uint64_t base)
{
	uint8_t *b = out->b, *ph = b + 64;
	uint8_t *note = b + 0x100;

	memset(out, 0, sizeof(*out));
	memcpy(b, "\177ELF", 4);
	b[4] = is_64 ? 2 : 1;
	b[5] = b[6] = 1;
	store_le16(b + 16, 2);
	store_le16(b + 18, is_64 ? 62 : 3);
	store_le32(b + 20, 1);
	if (is_64) {
		store_le64(b + 24, base + 0x10);
		store_le64(b + 32, 64);
		store_le16(b + 54, 56);
		store_le16(b + 56, pvh ? 2 : 1);
		store_le32(ph, 1);
		store_le64(ph + 8, 0x200);
		store_le64(ph + 16, base | 0xffffffff80000000);
		store_le64(ph + 24, base);
		store_le64(ph + 32, 0x300);
		store_le64(ph + 40, 0x1000);
		store_le32(ph + 56, 4);
		store_le64(ph + 64, 0x100);
		store_le64(ph + 88, 0x40);
	} else {
		store_le32(b + 24, (uint32_t)base + 0x10);
		store_le32(b + 28, 64);
		store_le16(b + 42, 32);
		store_le16(b + 44, pvh ? 2 : 1);
		store_le32(ph, 1);
		store_le32(ph + 4, 0x200);
		store_le32(ph + 8, (uint32_t)base);
		store_le32(ph + 12, (uint32_t)base);
		store_le32(ph + 16, 0x300);
		store_le32(ph + 20, 0x1000);
		store_le32(ph + 32, 4);
		store_le32(ph + 36, 0x100);
		store_le32(ph + 48, 0x40);
	}
	/* Another note comes first. */
	store_le32(note, 4);
	store_le32(note + 4, 6);
	store_le32(note + 8, 18);
	memcpy(note + 12, "GNU", 4);
	note += 24;
	store_le32(note, 4);
	store_le32(note + 4, 8);
	store_le32(note + 8, 18);
	memcpy(note + 12, "Xen", 4);
	store_le64(note + 16, base + 0x20);
	memset(b + 0x200, 0x90, 0x300);
	out->n = 0x500;
}

/* A bzImage of protocol 2.15 with the payload given. */
static void make_bzimage(struct bytes *out, const void *payload, uint32_t payload_bytes)
{
	uint8_t *b = out->b;

	memset(out, 0, sizeof(*out));
	b[0x1f1] = 3;
	store_le16(b + 0x1fe, 0xaa55);
	b[0x200] = 0xeb;
	b[0x201] = 0x66;
	memcpy(b + 0x202, "HdrS", 4);
	store_le16(b + 0x206, 0x020f);
	b[0x211] = 1 | 2;
	store_le32(b + 0x214, 0x100000);
	store_le32(b + 0x22c, 0x7fffffff);
	store_le32(b + 0x230, 0x200000);
	b[0x234] = 1;
	store_le16(b + 0x236, 1);
	store_le32(b + 0x238, 255);
	store_le32(b + 0x248, 0x400);
	store_le32(b + 0x24c, payload_bytes);
	store_le64(b + 0x258, KERNEL_BASE);
	store_le32(b + 0x260, 0x200000);
	memset(b + 0x800, 0xcc, 0x400);
	memcpy(b + 0x800 + 0x400, payload, payload_bytes);
	out->n = 0x800 + 0x400 + payload_bytes;
}

static uint32_t pack_lz4(const struct bytes *in, uint8_t *out, uint32_t room)
{
	int n = LZ4_compress_default((const char *)in->b, (char *)out + 8, (int)in->n, (int)room);

	assert_true(n > 0);
	store_le32(out, 0x184c2102);
	store_le32(out + 4, (uint32_t)n);
	store_le32(out + 8 + n, in->n);
	return 12 + (uint32_t)n;
}

static uint32_t pack_gzip(const struct bytes *in, uint8_t *out, uint32_t room)
{
	z_stream z = {.next_in = (Bytef *)(uintptr_t)in->b, .avail_in = in->n, .next_out = out,
		.avail_out = room};

	assert_int_equal(deflateInit2(&z, 9, Z_DEFLATED, 16 + 15, 8, Z_DEFAULT_STRATEGY), Z_OK);
	assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
	deflateEnd(&z);
	return (uint32_t)z.total_out;
}

static uint32_t pack_xz(const struct bytes *in, uint8_t *out, uint32_t room)
{
	size_t n = 0;

	assert_int_equal(lzma_easy_buffer_encode(6, LZMA_CHECK_CRC32, NULL, in->b, in->n, out, &n,
		room), LZMA_OK);
	store_le32(out + n, in->n);
	return (uint32_t)n + 4;
}

static uint32_t pack_zstd(const struct bytes *in, uint8_t *out, uint32_t room)
{
	size_t n = ZSTD_compress(out, room, in->b, in->n, 3);

	assert_false(ZSTD_isError(n));
	store_le32(out + n, in->n);
	return (uint32_t)n + 4;
}

static uint32_t (*const packers[])(const struct bytes *in, uint8_t *out, uint32_t room) = {
	pack_lz4, pack_gzip, pack_xz, pack_zstd};

static void make_packed_bzimage(unsigned packer, bool is_64)
{
	uint8_t packed[8192];
	struct bytes *elf = malloc(sizeof(*elf));

	make_elf(elf, is_64, true, KERNEL_BASE);
	make_bzimage(&f.kernel, packed, packers[packer](elf, packed, sizeof(packed) - 16));
	free(elf);
}

/* ---- Linux ---- */

static void assert_long_mode(void)
{
	assert_int_equal(f.cpu.cr0, X86_CR0_PE | X86_CR0_ET | X86_CR0_PG);
	assert_int_equal(f.cpu.msr.efer, X86_EFER_LME | X86_EFER_LMA);
	assert_int_equal(f.cpu.seg[X86_CS].attr & (X86_SEG_L | X86_SEG_DB), X86_SEG_L);
	assert_int_equal(f.cpu.rflags, 2);
	/* The last 2 MiB below 4 GiB are mapped one to one. */
	assert_int_equal(guest(guest(guest(f.cpu.cr3, 8) & ~0xfffull, 8) & ~0xfffull, 8), 0x83);
	assert_int_equal(guest((guest((guest(f.cpu.cr3, 8) & ~0xfffull) + 24, 8) & ~0xfffull) + 4088,
		8), 0xffe00083);
}

static void assert_flat_mode(void)
{
	assert_int_equal(f.cpu.cr0, X86_CR0_PE | X86_CR0_ET);
	assert_int_equal(f.cpu.cr4, 0);
	assert_int_equal(f.cpu.msr.efer, 0);
	assert_int_equal(f.cpu.seg[X86_CS].limit, UINT32_MAX);
	assert_int_equal(f.cpu.seg[X86_CS].attr & (X86_SEG_L | X86_SEG_DB), X86_SEG_DB);
	assert_int_equal(f.cpu.seg[X86_DS].limit, UINT32_MAX);
}

static void test_bzimage_unpacked(void **state)
{
	for (unsigned i = 0; i < ARRAY_SIZE(packers); i++) {
		make_packed_bzimage(i, true);
		f.config.cmdline = "console=ttyS0";
		f.config.rsdp = 0xe0000;
		assert_int_equal(boot(f.kernel.n), 0);
		assert_long_mode();
		assert_int_equal(f.cpu.reg[X86_RIP], KERNEL_BASE + 0x10);
		assert_int_equal(f.cpu.reg[X86_RSI], BOOT_ZERO_PAGE_GPA);
		assert_int_equal(guest(KERNEL_BASE + 0x2f8, 8), 0x9090909090909090);
		assert_int_equal(guest(KERNEL_BASE + 0x300, 8), 0);
		assert_guest_text(guest(BOOT_ZERO_PAGE_GPA + 0x228, 4), "console=ttyS0");
		assert_int_equal(guest(BOOT_ZERO_PAGE_GPA + 0x210, 1), 0xff);
		assert_int_equal(guest(BOOT_ZERO_PAGE_GPA + 0x211, 1), 1); /* no KASLR flag */
		assert_int_equal(guest(BOOT_ZERO_PAGE_GPA + 0x206, 2), 0x020f);
		assert_int_equal(guest(BOOT_ZERO_PAGE_GPA + 0x070, 8), 0xe0000);
		assert_int_equal(guest(BOOT_ZERO_PAGE_GPA + 0x1e8, 1), 4);
		assert_int_equal(guest(BOOT_ZERO_PAGE_GPA + 0x2d0 + 60, 8), MIB(1));
		assert_int_equal(guest(BOOT_ZERO_PAGE_GPA + 0x2d0 + 68, 8), RAM_BYTES - MIB(1));
		assert_int_equal(guest(BOOT_ZERO_PAGE_GPA + 0x268, 8), 0); /* past the header */
	}
}

static void test_bzimage_unpacked_32(void **state)
{
	make_packed_bzimage(0, false);
	assert_int_equal(boot(f.kernel.n), 0);
	assert_flat_mode();
	assert_int_equal(f.cpu.reg[X86_RIP], KERNEL_BASE + 0x10);
	assert_int_equal(f.cpu.reg[X86_RSI], BOOT_ZERO_PAGE_GPA);
}

static void test_bzimage_packed(void **state)
{
	make_packed_bzimage(0, true);
	f.config.keep_packed = true;
	assert_int_equal(boot(f.kernel.n), 0);
	assert_long_mode();
	assert_int_equal(f.cpu.reg[X86_RIP], KERNEL_BASE + 0x200);
	assert_int_equal(guest(KERNEL_BASE, 4), 0xcccccccc);

	f.kernel.b[0x236] = 0; /* no 64-bit entry */
	assert_int_equal(boot(f.kernel.n), 0);
	assert_flat_mode();
	assert_int_equal(f.cpu.reg[X86_RIP], KERNEL_BASE);

	f.kernel.b[0x234] = 0; /* not relocatable */
	assert_int_equal(boot(f.kernel.n), 0);
	assert_int_equal(f.cpu.reg[X86_RIP], MIB(1));

	/* A payload that nobody here knows unpacks itself. */
	f.config.keep_packed = false;
	memset(f.kernel.b + 0xc00, 0x77, 16);
	assert_int_equal(boot(f.kernel.n), 0);
	assert_int_equal(f.cpu.reg[X86_RIP], MIB(1));
	assert_int_equal(f.cpu.reg[X86_RSI], BOOT_ZERO_PAGE_GPA);
}

static void test_initrd(void **state)
{
	uint32_t base;

	make_packed_bzimage(0, true);
	add_initrd(NULL, "abcde", 5);
	assert_int_equal(boot(f.kernel.n), 0);
	assert_int_equal(guest(BOOT_ZERO_PAGE_GPA + 0x21c, 4), 5);
	base = (uint32_t)guest(BOOT_ZERO_PAGE_GPA + 0x218, 4);
	assert_int_equal(base, RAM_BYTES - 0x1000);
	assert_guest_text(base, "abcde");

	add_initrd(NULL, "second", 6); /* begins at the next multiple of 4 */
	assert_int_equal(boot(f.kernel.n), 0);
	assert_int_equal(guest(BOOT_ZERO_PAGE_GPA + 0x21c, 4), 16);
	assert_guest_text(base, "abcde");
	assert_guest_text(base + 8, "second");

	store_le32(f.kernel.b + 0x22c, (uint32_t)MIB(32) - 1);
	assert_int_equal(boot(f.kernel.n), 0);
	assert_int_equal(guest(BOOT_ZERO_PAGE_GPA + 0x218, 4), MIB(32) - 0x1000);
	store_le32(f.kernel.b + 0x22c, (uint32_t)MIB(1));
	assert_int_equal(boot(f.kernel.n), -ENOMEM);
}

static void test_too_large(void **state)
{
	int fd;

	make_packed_bzimage(0, true);
	add_initrd(NULL, "x", 1);
	fd = f.initrd[0].fd;
	assert_int_equal(ftruncate(fd, MIB(60)), 0);
	assert_int_equal(boot(f.kernel.n), -ENOMEM);
	assert_non_null(strstr(f.err.text, "the-initrd"));
	assert_non_null(strstr(f.err.text, "at least 77 MiB"));
	assert_int_equal(ftruncate(fd, GIB(100)), 0);
	assert_int_equal(boot(f.kernel.n), -ENOMEM);
	f.config.initrd_count = 0;
	f.config.keep_packed = true;
	store_le32(f.kernel.b + 0x260, (uint32_t)MIB(100));
	assert_int_equal(boot(f.kernel.n), -ENOMEM);
	assert_non_null(strstr(f.err.text, "at least 116 MiB"));
	f.config.initrd_count = 1;
}

static void test_cmdline_too_long(void **state)
{
	char text[300];

	memset(text, 'x', sizeof(text));
	make_packed_bzimage(0, true);
	f.config.cmdline = text;
	text[256] = 0;
	assert_int_equal(boot(f.kernel.n), -E2BIG);
	text[255] = 0;
	assert_int_equal(boot(f.kernel.n), 0);
}

/* Cut at every 16th byte: refused, with text, and never out of bounds. */
static void test_cut(void **state)
{
	for (unsigned packed = 0; packed < 2; packed++) {
		make_packed_bzimage(0, true);
		f.config.keep_packed = packed;
		for (uint32_t n = 1; n < f.kernel.n; n += n & 15 ? 15 : 16)
			assert_true(boot(n) < 0);
	}
	for (unsigned kind = 0; kind < 4; kind++) {
		make_elf(&f.kernel, kind & 1, kind & 2, KERNEL_BASE);
		for (uint32_t n = 1; n < f.kernel.n; n += 16)
			assert_true(boot(n) < 0);
	}
}

/* Every byte of the headers, set to values that break arithmetic. */
static void spoil(uint32_t from, uint32_t to)
{
	static const uint8_t values[] = {0x00, 0x01, 0x7f, 0x80, 0xff};

	for (uint32_t i = from; i < to; i++) {
		uint8_t kept = f.kernel.b[i];

		for (unsigned v = 0; v < sizeof(values); v++) {
			f.kernel.b[i] = values[v];
			boot(f.kernel.n);
		}
		f.kernel.b[i] = kept;
	}
}

static void test_spoilt(void **state)
{
	for (unsigned i = 0; i < ARRAY_SIZE(packers); i++) {
		make_packed_bzimage(i, true);
		if (!i)
			spoil(0x1f1, 0x268);
		spoil(0xc00, f.kernel.n);
	}
	make_elf(&f.kernel, true, true, KERNEL_BASE);
	spoil(0, 0x140);
	make_elf(&f.kernel, false, true, KERNEL_BASE);
	spoil(0, 0x140);
}

static void test_unpack_bounded(void **state)
{
	struct bytes *zeros = calloc(1, sizeof(*zeros));
	uint8_t packed[70000], *out = NULL;
	uint64_t n = 0;

	zeros->n = sizeof(zeros->b);
	for (unsigned i = 0; i < ARRAY_SIZE(packers); i++) {
		uint32_t size = packers[i](zeros, packed, sizeof(packed) - 16);

		assert_int_equal(boot_unpack(packed, size, zeros->n - 1, &out, &n), -EFBIG);
		assert_int_equal(boot_unpack(packed, size / 2, zeros->n, &out, &n), -EBADMSG);
		assert_int_equal(boot_unpack(packed, size, zeros->n, &out, &n), 0);
		assert_int_equal(n, zeros->n);
		free(out);
	}
	assert_int_equal(boot_unpack((const uint8_t *)"BZh9", 4, 100, &out, &n), -EOPNOTSUPP);
	free(zeros);
}

/* ---- ELF and PVH ---- */

static void test_pvh(void **state)
{
	for (unsigned is_64 = 0; is_64 < 2; is_64++) {
		gpa_t info, list, map;

		make_elf(&f.kernel, is_64, true, KERNEL_BASE);
		f.config.cmdline = "quiet";
		f.config.rsdp = 0xe0000;
		f.config.initrd_count = 0;
		add_initrd("args of it", "initrd", 6);
		assert_int_equal(boot(f.kernel.n), 0);
		assert_flat_mode();
		assert_int_equal(f.cpu.reg[X86_RIP], KERNEL_BASE + 0x20);
		info = f.cpu.reg[X86_RBX];
		assert_int_equal(guest(info, 4), 0x336ec578);
		assert_int_equal(guest(info + 4, 4), 1);
		assert_int_equal(guest(info + 12, 4), 1);
		list = guest(info + 16, 8);
		assert_guest_text(guest(list, 8), "initrd");
		assert_int_equal(guest(list + 8, 8), 6);
		assert_guest_text(guest(list + 16, 8), "args of it");
		assert_guest_text(guest(info + 24, 8), "quiet");
		assert_int_equal(guest(info + 32, 8), 0xe0000);
		map = guest(info + 40, 8);
		assert_int_equal(guest(info + 48, 4), 4);
		assert_int_equal(guest(map + 3 * 24, 8), MIB(1));
		assert_int_equal(guest(map + 3 * 24 + 16, 4), BOOT_MAP_RAM);
		close(f.initrd[0].fd);
		f.config.initrd_count = 0;
	}
}

static void test_elf(void **state)
{
	make_elf(&f.kernel, true, true, KERNEL_BASE);
	f.config.protocol = BOOT_ELF;
	assert_int_equal(boot(f.kernel.n), 0);
	assert_long_mode();
	assert_int_equal(f.cpu.reg[X86_RIP], KERNEL_BASE + 0x10);
	assert_int_equal(guest(BOOT_ZERO_PAGE_GPA + 0x202, 4), 0x53726448);

	/* An entry that is a virtual address. */
	store_le64(f.kernel.b + 24, (KERNEL_BASE + 0x18) | 0xffffffff80000000);
	assert_int_equal(boot(f.kernel.n), 0);
	assert_int_equal(f.cpu.reg[X86_RIP], KERNEL_BASE + 0x18);

	make_elf(&f.kernel, false, false, 0x40000);
	assert_int_equal(boot(f.kernel.n), 0);
	assert_flat_mode();
	assert_int_equal(f.cpu.reg[X86_RIP], 0x40010);
	f.config.protocol = BOOT_PVH;
	assert_int_equal(boot(f.kernel.n), -ENOEXEC);
}

static void test_elf_refused(void **state)
{
	static const uint64_t bases[] = {0, 0x7000, 0x1f001, 0x9f000, 0xe0000};

	for (unsigned i = 0; i < ARRAY_SIZE(bases); i++) {
		make_elf(&f.kernel, true, false, bases[i]);
		assert_int_equal(boot(f.kernel.n), -EEXIST);
	}
	make_elf(&f.kernel, true, false, RAM_BYTES - 0x800);
	assert_int_equal(boot(f.kernel.n), -ENOMEM);
	make_elf(&f.kernel, true, false, 0xfec00000);
	assert_int_equal(boot(f.kernel.n), -ENOMEM);
	make_elf(&f.kernel, true, false, KERNEL_BASE);
	store_le64(f.kernel.b + 24, 0x1234);
	assert_int_equal(boot(f.kernel.n), -ENOEXEC);
	make_elf(&f.kernel, true, false, KERNEL_BASE);
	store_le16(f.kernel.b + 18, 183); /* arm64 */
	assert_int_equal(boot(f.kernel.n), -ENOEXEC);
	make_elf(&f.kernel, true, true, KERNEL_BASE);
	memcpy(f.kernel.b + 64 + 56, f.kernel.b + 64, 56); /* the same segment twice */
	assert_int_equal(boot(f.kernel.n), -EEXIST);
}

/* ---- multiboot ---- */

static void make_multiboot(uint32_t at, uint32_t flags)
{
	uint8_t *h = f.kernel.b + at;

	store_le32(h, 0x1badb002);
	store_le32(h + 4, flags);
	store_le32(h + 8, 0u - 0x1badb002 - flags);
}

static void make_multiboot_flat(void)
{
	memset(&f.kernel, 0, sizeof(f.kernel));
	memset(f.kernel.b, 0x90, 0x400);
	make_multiboot(0x40, 0x10003);
	store_le32(f.kernel.b + 0x4c, 0x100040); /* header */
	store_le32(f.kernel.b + 0x50, 0x100020); /* load */
	store_le32(f.kernel.b + 0x54, 0x100120); /* load end */
	store_le32(f.kernel.b + 0x58, 0x100220); /* BSS end */
	store_le32(f.kernel.b + 0x5c, 0x100060); /* entry */
	f.kernel.n = 0x400;
}

static void test_multiboot_flat(void **state)
{
	gpa_t info, modules;

	make_multiboot_flat();
	f.config.cmdline = "root=x";
	add_initrd("--readonly x", "module one", 10);
	add_initrd(NULL, "two", 3);
	assert_int_equal(memory_write(f.memory, 0x100120, "dirty", 5), 0);
	assert_int_equal(boot(f.kernel.n), 0);
	assert_flat_mode();
	assert_int_equal(f.cpu.reg[X86_RAX], 0x2badb002);
	assert_int_equal(f.cpu.reg[X86_RIP], 0x100060);
	assert_int_equal(guest(0x100040, 4), 0x1badb002);
	assert_int_equal(guest(0x10011f, 8), 0x90); /* BSS is zero */
	info = f.cpu.reg[X86_RBX];
	assert_int_equal(guest(info, 4), 0x24d);
	assert_int_equal(guest(info + 4, 4), 639);
	assert_int_equal(guest(info + 8, 4), (RAM_BYTES >> 10) - 1024);
	assert_guest_text(guest(info + 16, 4), "the-kernel root=x");
	assert_int_equal(guest(info + 20, 4), 2);
	modules = guest(info + 24, 4);
	assert_int_equal(guest(modules, 4) & 0xfff, 0);
	assert_int_equal(guest(modules + 4, 4) - guest(modules, 4), 10);
	assert_guest_text(guest(modules, 4), "module one");
	assert_guest_text(guest(modules + 8, 4), "the-initrd --readonly x");
	assert_guest_text(guest(modules + 16, 4), "two");
	assert_guest_text(guest(modules + 24, 4), "the-initrd");
	assert_int_equal(guest(info + 44, 4), 4 * 24);
	assert_int_equal(guest(guest(info + 48, 4), 4), 20);
	assert_guest_text(guest(info + 64, 4), "lodge");
}

static void test_multiboot_elf(void **state)
{
	make_elf(&f.kernel, false, false, MIB(1));
	make_multiboot(0x200, 0);
	assert_int_equal(boot(f.kernel.n), 0);
	assert_int_equal(f.cpu.reg[X86_RAX], 0x2badb002);
	assert_int_equal(f.cpu.reg[X86_RIP], MIB(1) + 0x10);
	f.config.protocol = BOOT_ELF;
	assert_int_equal(boot(f.kernel.n), 0);
	assert_int_equal(f.cpu.reg[X86_RAX], 0);
}

/* The kernel as a .gz file. */
static void gzip_kernel(void)
{
	static struct bytes packed;

	packed.n = pack_gzip(&f.kernel, packed.b, sizeof(packed.b));
	f.kernel = packed;
}

static void test_gzip(void **state)
{
	make_multiboot_flat();
	gzip_kernel();
	assert_int_equal(boot(f.kernel.n), 0);
	assert_int_equal(f.cpu.reg[X86_RIP], 0x100060);
	assert_int_equal(guest(0x100040, 4), 0x1badb002);
	assert_int_equal(boot(f.kernel.n / 2), -EBADMSG);
	assert_int_equal(boot(2), -EBADMSG);
	gzip_kernel();
	assert_int_equal(boot(f.kernel.n), -ENOEXEC);
	assert_non_null(strstr(f.err.text, "twice"));
}

/* In real mode every vector leads to what sets the caller's carry flag. */
static void test_no_bios(void **state)
{
	make_multiboot_flat();
	assert_int_equal(boot(f.kernel.n), 0);
	for (unsigned vector = 0; vector < 256; vector++)
		assert_int_equal(guest(4 * vector, 4), 0x500);
	assert_int_equal(guest(0x500, 8), 0x5d01064e80e58955);
	assert_int_equal(guest(0x508, 1), 0xcf);
	assert_int_equal(guest(0x40e, 2), 0x9fc0);
}

static void test_multiboot_refused(void **state)
{
	f.config.protocol = BOOT_MULTIBOOT;
	make_multiboot_flat();
	make_multiboot(0x40, 0x10008);
	assert_int_equal(boot(f.kernel.n), -ENOEXEC);
	for (uint32_t n = 1; n < 0x120; n += 16) {
		make_multiboot_flat();
		assert_true(boot(n) < 0);
	}
	make_multiboot_flat();
	spoil(0x40, 0x60);
	make_elf(&f.kernel, false, false, MIB(1));
	assert_int_equal(boot(f.kernel.n), -ENOEXEC);
}

/* ---- files ---- */

static void test_not_a_kernel(void **state)
{
	memset(f.kernel.b, 'x', 4096);
	assert_int_equal(boot(4096), -ENOEXEC);
	assert_non_null(strstr(f.err.text, "the-kernel"));
	memcpy(f.kernel.b, "070701", 6);
	assert_int_equal(boot(4096), -ENOEXEC);
	assert_non_null(strstr(f.err.text, "initrd"));
	assert_int_equal(boot(0), -EINVAL);
	make_packed_bzimage(0, true);
	store_le16(f.kernel.b + 0x206, 0x0204);
	assert_int_equal(boot(f.kernel.n), -ENOEXEC);
	assert_non_null(strstr(f.err.text, "2.04"));
	make_packed_bzimage(0, true);
	f.config.protocol = BOOT_ELF;
	assert_int_equal(boot(f.kernel.n), -ENOEXEC);
}

static void test_no_such_file(void **state)
{
	f.config.kernel = (struct boot_file){.path = "/nonexistent/kernel"};
	assert_int_equal(boot_load(f.memory, &f.config, &f.cpu, &f.err), -ENOENT);
	assert_non_null(strstr(f.err.text, "/nonexistent/kernel"));
	f.config.kernel.path = "/";
	assert_int_equal(boot_load(f.memory, &f.config, &f.cpu, &f.err), -EINVAL);
	make_packed_bzimage(0, true);
	f.initrd[0] = (struct boot_file){.path = "/nonexistent/initrd"};
	f.config.initrd_count = 1;
	assert_int_equal(boot(f.kernel.n), -ENOENT);
	f.config.initrd_count = BOOT_INITRDS_MAX + 1;
	assert_int_equal(boot(f.kernel.n), -EINVAL);
	f.config.initrd_count = 0;
}

static void test_no_memory(void **state)
{
	struct guest_memory *empty;

	assert_int_equal(memory_create(&empty), 0);
	assert_int_equal(boot_load(empty, &f.config, &f.cpu, &f.err), -ENOMEM);
	assert_int_equal(memory_add_ram(empty, 0, MIB(1), 0, "tiny", NULL), 0);
	assert_int_equal(boot_load(empty, &f.config, &f.cpu, &f.err), -ENOMEM);
	memory_free(empty);
}

static void test_protocol_names(void **state)
{
	enum boot_protocol protocol = BOOT_AUTO;

	assert_int_equal(boot_protocol_parse("pvh", &protocol), 0);
	assert_int_equal(protocol, BOOT_PVH);
	assert_int_equal(boot_protocol_parse("PVH", &protocol), -EINVAL);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_bzimage_unpacked),
		TEST(test_bzimage_unpacked_32),
		TEST(test_bzimage_packed),
		TEST(test_initrd),
		TEST(test_too_large),
		TEST(test_cmdline_too_long),
		TEST(test_cut),
		TEST(test_spoilt),
		TEST(test_unpack_bounded),
		TEST(test_pvh),
		TEST(test_elf),
		TEST(test_elf_refused),
		TEST(test_multiboot_flat),
		TEST(test_multiboot_elf),
		TEST(test_gzip),
		TEST(test_no_bios),
		TEST(test_multiboot_refused),
		TEST(test_not_a_kernel),
		TEST(test_no_such_file),
		TEST(test_no_memory),
		TEST(test_protocol_names),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
