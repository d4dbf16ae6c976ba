/*
 * host/ and boot/: file systems that are filled without a mount, what archives may and may not do to them, and kernels
 * found on disks.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "boot/disk.h"
#include "boot/disk_private.h"
#include "host/image_disk.h"
#include "host/image_fs.h"
#include "host/image_private.h"
#include "host/process.h"
#include "host/seed.h"
#include "host/sha256.h"

#define FS_BYTES MIB(64)
#define UUID	 "01234567-89ab-4def-8123-456789abcdef"

struct rig {
	int fd;
	struct image_fs *fs;
	struct error err;
};

static int setup(void **state)
{
	struct rig *rig = calloc(1, sizeof(*rig));

	assert_non_null(rig);
	rig->fd = memfd_create("disk", 0);
	assert_true(rig->fd > 0);
	assert_int_equal(ftruncate(rig->fd, FS_BYTES), 0);
	if (image_fs_create(&rig->fs, rig->fd, 0, FS_BYTES, "test", UUID, &rig->err) < 0)
		fail_msg("%s", rig->err.text);
	*state = rig;
	return 0;
}

static int teardown(void **state)
{
	struct rig *rig = *state;

	image_fs_free(rig->fs);
	close(rig->fd);
	free(rig);
	return 0;
}

/* e2fsck finds nothing to mend. */
static void assert_sound(struct rig *rig)
{
	char file[64];
	const char *const argv[] = { "e2fsck", "-fn", file, NULL };

	if (image_fs_finish(take_ptr(&rig->fs), &rig->err) < 0)
		fail_msg("%s", rig->err.text);
	snprintf(file, sizeof(file), "/proc/self/fd/%d", rig->fd);
	if (process_run(argv, rig->fd, "e2fsprogs", &rig->err) < 0)
		fail_msg("%s", rig->err.text);
}

static int put(struct rig *rig, const char *path, const char *text)
{
	return image_fs_put(rig->fs, path, 0644, text, strlen(text), &rig->err);
}

static int add(struct rig *rig, const char *path, mode_t mode, const char *target)
{
	const struct image_entry entry = { .path = path, .mode = mode, .target = target, .uid = 70000, .gid = 5 };

	return image_fs_add(rig->fs, &entry, &rig->err);
}

static void assert_text(struct rig *rig, const char *path, const char *text)
{
	AUTO_FREE uint8_t *bytes = NULL;
	size_t size;

	if (image_fs_get(rig->fs, path, 1 << 24, &bytes, &size, &rig->err) < 0)
		fail_msg("%s", rig->err.text);
	assert_string_equal((char *)bytes, text);
	assert_int_equal(size, strlen(text));
}

/* ---- file systems ---- */

static void test_all_kinds(void **state)
{
	struct rig *rig = *state;

	assert_int_equal(put(rig, "/etc/a/b/file", "hello"), 0);
	assert_int_equal(put(rig, "./etc/./a//b/file", "hello again"), 0);
	assert_int_equal(add(rig, "dev/null", S_IFCHR | 0666, NULL), 0);
	assert_int_equal(add(rig, "run/fifo", S_IFIFO | 0600, NULL), 0);
	assert_int_equal(add(rig, "run/socket", S_IFSOCK | 0600, NULL), 0);
	assert_int_equal(add(rig, "lib", S_IFLNK | 0777, "usr/lib"), 0);
	assert_int_equal(add(rig, "usr/lib", S_IFDIR | 0755, NULL), 0);
	assert_int_equal(image_fs_link(rig->fs, "other", "etc/a/b/file", &rig->err), 0);
	assert_int_equal(image_fs_attribute(rig->fs, "other", "user.colour", "blue", 4, &rig->err), 0);
	assert_int_equal(put(rig, "lib/through", "the link"), 0);
	assert_text(rig, "usr/lib/through", "the link");
	assert_text(rig, "other", "hello again");
	assert_sound(rig);
}

static void test_many_files_in_one_directory(void **state)
{
	struct rig *rig = *state;
	char path[64];

	for (unsigned i = 0; i < 1500; i++) {
		snprintf(path, sizeof(path), "many/a-name-that-fills-directories-%u", i);
		assert_int_equal(put(rig, path, path), 0);
	}
	assert_text(rig, path, path);
	for (unsigned i = 0; i < 1500; i += 2) {
		snprintf(path, sizeof(path), "many/a-name-that-fills-directories-%u", i);
		assert_int_equal(image_fs_remove(rig->fs, path, false, &rig->err), 0);
	}
	assert_sound(rig);
}

static void test_names_that_lead_out(void **state)
{
	struct rig *rig = *state;

	assert_int_equal(put(rig, "../evil", "x"), -EINVAL);
	assert_int_equal(put(rig, "a/../../evil", "x"), -EINVAL);
	assert_int_equal(image_fs_link(rig->fs, "a", "../../etc/passwd", &rig->err), -EINVAL);
	/* Absolute links mean the image's own root. */
	assert_int_equal(add(rig, "out", S_IFLNK | 0777, "/etc"), 0);
	assert_int_equal(add(rig, "up", S_IFLNK | 0777, "../../../../tmp"), 0);
	assert_int_equal(put(rig, "out/lodge-test-evil", "x"), 0);
	assert_int_equal(put(rig, "up/lodge-test-evil", "x"), 0);
	assert_text(rig, "etc/lodge-test-evil", "x");
	assert_text(rig, "tmp/lodge-test-evil", "x");
	assert_int_equal(access("/etc/lodge-test-evil", F_OK), -1);
	assert_int_equal(access("/tmp/lodge-test-evil", F_OK), -1);
	assert_sound(rig);
}

static void test_rings_and_long_names(void **state)
{
	struct rig *rig = *state;
	char name[5000];

	assert_int_equal(add(rig, "a", S_IFLNK | 0777, "b"), 0);
	assert_int_equal(add(rig, "b", S_IFLNK | 0777, "a"), 0);
	assert_int_equal(put(rig, "a/file", "x"), -ELOOP);
	memset(name, 'n', sizeof(name));
	name[300] = '\0';
	assert_int_equal(put(rig, name, "x"), -EINVAL);
	memset(name, '/', sizeof(name));
	name[4999] = '\0';
	assert_int_equal(put(rig, name, "x"), -EINVAL);
	assert_int_equal(put(rig, "/", "x"), -EINVAL);
	assert_int_equal(put(rig, "plain", "x"), 0);
	assert_int_equal(put(rig, "plain/below", "x"), -ENOTDIR);
	assert_int_equal(image_fs_link(rig->fs, "link", "nowhere", &rig->err), -ENOENT);
	assert_int_equal(image_fs_link(rig->fs, "link", "/", &rig->err), -EINVAL);
	assert_sound(rig);
}

static void test_replacing(void **state)
{
	struct rig *rig = *state;

	assert_int_equal(put(rig, "d/e/f", "x"), 0);
	assert_int_equal(add(rig, "d/e", S_IFDIR | 0700, NULL), 0);
	assert_text(rig, "d/e/f", "x");
	assert_int_equal(add(rig, "d", S_IFLNK | 0777, "elsewhere"), 0); /* a directory gives way */
	assert_false(image_fs_exists(rig->fs, "elsewhere/e"));
	assert_int_equal(put(rig, "one", "1"), 0);
	assert_int_equal(image_fs_link(rig->fs, "two", "one", &rig->err), 0);
	assert_int_equal(put(rig, "one", "new"), 0);
	assert_text(rig, "two", "1");
	assert_int_equal(image_fs_link(rig->fs, "two", "two", &rig->err), 0);
	assert_sound(rig);
}

static void test_full(void **state)
{
	struct rig *rig = *state;
	AUTO_FREE char *big = calloc(1, MIB(16) + 1);
	char path[32];
	int status = 0;

	memset(big, 'b', MIB(16));
	for (unsigned i = 0; i < 8 && status == 0; i++) {
		snprintf(path, sizeof(path), "big%u", i);
		status = put(rig, path, big);
	}
	assert_int_equal(status, -ENOSPC);
	assert_non_null(strstr(rig->err.text, "--size"));
}

/* ---- archives ---- */

/* Python writes what tar would refuse to. */
static int archive(const char *program)
{
	char to[64], script[2048];
	int fd = memfd_create("archive", 0);

	assert_true(fd > 0);
	snprintf(to, sizeof(to), "/proc/self/fd/%d", fd);
	snprintf(script, sizeof(script),
		"import tarfile, io, sys\n"
		"t = tarfile.open(sys.argv[1], 'w:gz')\n"
		"def f(name, data=b'', kind=tarfile.REGTYPE, to=''):\n"
		"    i = tarfile.TarInfo(name); i.type = kind; i.linkname = to; i.size = len(data)\n"
		"    i.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644\n"
		"    t.addfile(i, io.BytesIO(data))\n"
		"%s\nt.close()\n",
		program);
	const char *const argv[] = { "python3", "-c", script, to, NULL };
	struct error err;
	if (process_run(argv, fd, "python3", &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
	return fd;
}

static int unpack(struct rig *rig, const char *program, bool layer)
{
	const struct image_limits limits = { .bytes = MIB(32), .entries = 1000 };
	AUTO_CLOSE int fd = archive(program);
	int status = layer ? image_archive_whiteouts(rig->fs, fd, &limits, "layer", &rig->err) : 0;

	assert_true(lseek(fd, 0, SEEK_SET) == 0);
	return status < 0 ? status : image_archive_unpack(rig->fs, fd, layer, &limits, "archive", &rig->err);
}

static void test_archive(void **state)
{
	struct rig *rig = *state;

	assert_int_equal(unpack(rig,
		"f('./usr', kind=tarfile.DIRTYPE)\nf('usr/file', b'data')\nf('hard', kind=tarfile.LNKTYPE, to='usr/file')\n"
		"f('soft', kind=tarfile.SYMTYPE, to='usr')\nf('soft/more', b'm')\n", false), 0);
	assert_text(rig, "hard", "data");
	assert_text(rig, "usr/more", "m");
	assert_sound(rig);
}

static void test_hostile_archives(void **state)
{
	struct rig *rig = *state;

	assert_int_equal(unpack(rig, "f('../../tmp/lodge-test-evil', b'x')", false), -EINVAL);
	assert_int_equal(unpack(rig, "f('l', kind=tarfile.LNKTYPE, to='../../etc/passwd')", false), -EINVAL);
	assert_int_equal(unpack(rig, "f('l', kind=tarfile.LNKTYPE, to='/etc/passwd')", false), -ENOENT);
	assert_int_equal(unpack(rig, "f('bomb', b'\\0' * (33 << 20))", false), -EFBIG);
	assert_int_equal(unpack(rig, "for i in range(1001): f('n%d' % i)", false), -EFBIG);
	AUTO_CLOSE int fd = memfd_create("noise", 0);
	const struct image_limits limits = { .bytes = MIB(32), .entries = 1000 };
	assert_int_equal(write(fd, "this is no archive at all, whatever one takes it for.", 53), 53);
	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
	assert_int_equal(image_archive_unpack(rig->fs, fd, false, &limits, "noise", &rig->err), -EBADMSG);
	assert_int_equal(access("/tmp/lodge-test-evil", F_OK), -1);
}

static void test_layers(void **state)
{
	struct rig *rig = *state;

	assert_int_equal(unpack(rig, "f('a/one', b'1')\nf('a/two', b'2')\nf('b/three', b'3')\nf('c', b'4')\n", true), 0);
	assert_int_equal(unpack(rig,
		"f('b/new', b'n')\nf('a/.wh.one')\nf('b/.wh..wh..opq')\nf('.wh.c')\nf('.wh.never')\n", true), 0);
	assert_false(image_fs_exists(rig->fs, "a/one"));
	assert_text(rig, "a/two", "2");
	assert_false(image_fs_exists(rig->fs, "b/three"));
	assert_text(rig, "b/new", "n"); /* its own layer's, though it came first */
	assert_false(image_fs_exists(rig->fs, "c"));
	assert_false(image_fs_exists(rig->fs, "a/.wh.one"));
	assert_int_equal(unpack(rig, "f('a/.wh...')", true), -EINVAL);
	assert_int_equal(unpack(rig, "f('a/.wh.')", true), -EINVAL);
	assert_sound(rig);
}

/* ---- kernels on disks ---- */

static int read_fd(void *opaque, void *buf, uint64_t bytes, uint64_t offset)
{
	return pread(*(int *)opaque, buf, bytes, (off_t)offset) == (ssize_t)bytes ? 0 : -EIO;
}

static int find_on(int *fd, struct boot_found *ret_found, struct error *err)
{
	struct stat st;

	assert_int_equal(fstat(*fd, &st), 0);
	const struct boot_source source = { read_fd, fd, (uint64_t)st.st_size };
	return boot_disk_find(&source, ret_found, err);
}

static void assert_file(int fd, const char *text)
{
	char buf[256] = "";

	assert_true(pread(fd, buf, sizeof(buf) - 1, 0) >= 0);
	assert_string_equal(buf, text);
}

static void test_disk_with_grub(void **state)
{
	struct image_disk disk;
	struct error err;
	struct boot_found found;
	struct rig rig = { .fd = memfd_create("disk", 0) };
	const struct image_loader none = { 0 };

	assert_int_equal(image_disk_init(&disk, MIB(128), &err), 0);
	assert_int_equal(ftruncate(rig.fd, (off_t)disk.size_bytes), 0);
	assert_int_equal(image_fs_create(&rig.fs, rig.fd, IMAGE_ROOT_OFFSET,
		disk.size_bytes - IMAGE_ROOT_OFFSET - IMAGE_DISK_TAIL, "root", UUID, &err), 0);
	assert_int_equal(put(&rig, "boot/vmlinuz-6.1", "kernel"), 0);
	assert_int_equal(put(&rig, "boot/initrd-6.1", "initrd"), 0);
	assert_int_equal(add(&rig, "vmlinuz", S_IFLNK | 0777, "boot/vmlinuz-6.1"), 0);
	assert_int_equal(put(&rig, "boot/grub/grub.cfg",
		"set default=\"1\" # the second\nset what='some thing'\nfunction load {\n  insmod gzio\n}\n"
		"if [ x$a = xy ]; then\n  set pager=1\nfi\n"
		"menuentry 'first' --class x {\n linux /boot/none root=/dev/none\n}\n"
		"submenu \"second\" {\n menuentry 'a' {\n\tlinux ($root)/vmlinuz root=UUID=1 $unknown x=\"$what\" ro\n"
		"\tinitrd /boot/initrd-6.1\n }\n menuentry 'b' { \n linux /boot/other\n }\n}\n"), 0);
	assert_int_equal(image_fs_finish(rig.fs, &err), 0);
	assert_int_equal(image_disk_write(rig.fd, &disk, &none, &err), 0);
	if (find_on(&rig.fd, &found, &err) < 0)
		fail_msg("%s", err.text);
	assert_string_equal(found.cmdline, "root=UUID=1 x=some thing ro");
	assert_file(found.kernel, "kernel");
	assert_int_equal(lseek(found.kernel, 0, SEEK_END), 8); /* padded to 4 */
	assert_file(found.initrd, "initrd");
	assert_non_null(strstr(found.partition, disk.root_guid));
	assert_non_null(strstr(found.from, "partition 3, /boot/grub/grub.cfg"));
	boot_found_done(&found);
	close(rig.fd);
}

/* File systems that mke2fs itself filled: block sizes, extents and lists, both kinds of links. */
static void one_mke2fs(const char *type, const char *features, const char *block)
{
	char folder[] = "/tmp/lodge-test-XXXXXX", command[1024], file[64];
	AUTO_CLOSE int fd = memfd_create("disk", 0);
	const char *const shell[] = { "sh", "-c", command, NULL };
	const char *const argv[] = { "mke2fs", "-q", "-F", "-t", type, "-O", features, "-b", block, "-d", folder, file, "48M", NULL };
	struct boot_found found;
	struct error err;

	assert_non_null(mkdtemp(folder));
	snprintf(command, sizeof(command),
		"cd %s && mkdir -p boot/loader/entries deep/er && seq 1 400000 >deep/er/big && "
		"truncate -s 40M hole && printf end >>hole && ln -s ../deep/er/big boot/vmlinuz-2 && "
		"printf 'title x\\nlinux /boot/vmlinuz-1\\n' >boot/loader/entries/a-1.conf && "
		"printf '# new\\ntitle x\\nlinux /boot/vmlinuz-2\\ninitrd /hole\\noptions root=LABEL=x $tuned ro\\noptions quiet\\n'"
		" >boot/loader/entries/a-10.conf && "
		"ln -s %0200d/../../deep long",
		folder, 0);
	if (process_run(shell, -1, "dash", &err) < 0)
		fail_msg("%s", err.text);
	snprintf(file, sizeof(file), "/proc/self/fd/%d", fd);
	assert_int_equal(ftruncate(fd, MIB(48)), 0);
	if (process_run(argv, fd, "e2fsprogs", &err) < 0)
		fail_msg("%s", err.text);
	int status = find_on(&fd, &found, &err);
	snprintf(command, sizeof(command), "cmp %s/deep/er/big /proc/self/fd/%d && tail -c 4 /proc/self/fd/%d | grep end",
		folder, found.kernel, found.initrd);
	if (status < 0)
		fail_msg("%s", err.text);
	assert_string_equal(found.cmdline, "root=LABEL=x ro quiet");
	assert_int_equal(fcntl(found.initrd, F_SETFD, 0), 0);
	/* the kernel is padded to a multiple of 4 bytes: 2688895 -> 2688896 */
	assert_int_equal(ftruncate(found.kernel, 2688895), 0);
	if (process_run(shell, found.kernel, "dash", &err) < 0)
		fail_msg("%s %s %s: %s", type, features, block, err.text);
	boot_found_done(&found);
	snprintf(command, sizeof(command), "rm -r %s", folder);
	assert_int_equal(process_run(shell, -1, "dash", &err), 0);
}

static void test_file_systems(void **state)
{
	one_mke2fs("ext2", "none", "1024");
	one_mke2fs("ext3", "has_journal", "2048");
	one_mke2fs("ext4", "64bit", "4096");
	one_mke2fs("ext4", "^64bit,^flex_bg,dir_index", "1024");
}

static void test_menus(void **state)
{
	struct boot_entry *e = calloc(1, sizeof(*e));

	assert_true(boot_menu_extlinux(
		"DEFAULT b\nLABEL a\n  LINUX /a\nLABEL b\n KERNEL vmlinuz\n INITRD i1,i2\n APPEND root=/dev/sda3 modules=x\nLABEL c\n"
		" KERNEL /c\n", e));
	assert_string_equal(e->kernel, "vmlinuz");
	assert_string_equal(e->initrd[1], "i2");
	assert_string_equal(e->cmdline, "root=/dev/sda3 modules=x");
	assert_false(boot_menu_grub("menuentry 'x' {\n echo hello\n}\n", e));
	assert_false(boot_menu_grub("menuentry 'x' {\n linux /never-closed", e));
	assert_false(boot_menu_bls("title only\n", e));
	assert_true(boot_menu_grub("menuentry x {\nlinuxefi /k \"a b\" c\\ d 'e$f' ${g}\n}", e));
	assert_string_equal(e->cmdline, "a b c d e$f");
	free(e);
}

static void test_nothing_there(void **state)
{
	AUTO_CLOSE int fd = memfd_create("disk", 0);
	struct boot_found found;
	struct error err;

	assert_int_equal(ftruncate(fd, MIB(1)), 0);
	assert_int_equal(find_on(&fd, &found, &err), -ENOENT);
	assert_non_null(strstr(err.text, "--kernel"));
	assert_int_equal(ftruncate(fd, 100), 0);
	assert_int_equal(find_on(&fd, &found, &err), -ENOENT);
}

/* ---- seeds ---- */

/* The file's text in an ISO image, or "" */
static void iso_text(const char *path, const char *name, char text[1024])
{
	struct archive *archive = archive_read_new();
	struct archive_entry *entry;

	*text = '\0';
	archive_read_support_format_iso9660(archive);
	assert_int_equal(archive_read_open_filename(archive, path, 10240), ARCHIVE_OK);
	while (archive_read_next_header(archive, &entry) == ARCHIVE_OK) {
		if (strcmp(archive_entry_pathname(entry), name))
			continue;
		la_ssize_t got = archive_read_data(archive, text, 1023);
		assert_true(got >= 0);
		text[got] = '\0';
	}
	archive_read_free(archive);
}

static void put_file(const char *path, const char *text)
{
	FILE *file = fopen(path, "w");

	assert_non_null(file);
	fputs(text, file);
	fclose(file);
}

static void test_seed(void **state)
{
	char user[] = "/tmp/lodge-test-XXXXXX", iso[64], text[1024], before[1024];
	const int fd = mkstemp(user);
	struct seed seed = { .user_data = user, .hostname = "web" };
	struct error err;

	assert_true(fd >= 0);
	close(fd);
	snprintf(iso, sizeof(iso), "%s.iso", user);
	put_file(user, "users: []\n");
	assert_int_equal(seed_write(&seed, iso, &err), -EINVAL);
	put_file(user, "#cloud-config\nusers: []\n");
	assert_int_equal(seed_write(&seed, iso, &err), 0);
	iso_text(iso, "user-data", text);
	assert_string_equal(text, "#cloud-config\nusers: []\n");
	iso_text(iso, "meta-data", before);
	assert_non_null(strstr(before, "instance-id: lodge-"));
	assert_non_null(strstr(before, "local-hostname: web\n"));
	iso_text(iso, "network-config", text);
	assert_string_equal(text, "");
	/* The same seed is the same instance; another is another. */
	assert_int_equal(seed_write(&seed, iso, &err), 0);
	iso_text(iso, "meta-data", text);
	assert_string_equal(text, before);
	seed.network_config = user;
	assert_int_equal(seed_write(&seed, iso, &err), 0);
	iso_text(iso, "meta-data", text);
	assert_string_not_equal(text, before);
	iso_text(iso, "network-config", text);
	assert_string_not_equal(text, "");
	seed.meta_data = "/nonexistent";
	assert_int_equal(seed_write(&seed, iso, &err), -ENOENT);
	unlink(iso);
	unlink(user);
}

/* ---- digests ---- */

static void test_sha256(void **state)
{
	static const struct {
		const char *text, *digest;
		unsigned times;
	} known[] = { /* FIPS 180-4's examples */
		{ "", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", 1 },
		{ "abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", 1 },
		{ "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
			"248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1", 1 },
		{ "aaaaaaaaaa", "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0", 100000 },
	};

	for (unsigned i = 0; i < ARRAY_SIZE(known); i++) {
		struct sha256 sum;
		char text[SHA256_TEXT];

		sha256_init(&sum);
		for (unsigned k = 0; k < known[i].times; k++)
			sha256_add(&sum, known[i].text, strlen(known[i].text));
		sha256_end(&sum, text);
		assert_string_equal(text, known[i].digest);
	}
}

#define WITH_FS(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_FS(test_all_kinds),
		WITH_FS(test_many_files_in_one_directory),
		WITH_FS(test_names_that_lead_out),
		WITH_FS(test_rings_and_long_names),
		WITH_FS(test_replacing),
		WITH_FS(test_full),
		WITH_FS(test_archive),
		WITH_FS(test_hostile_archives),
		WITH_FS(test_layers),
		cmocka_unit_test(test_disk_with_grub),
		cmocka_unit_test(test_file_systems),
		cmocka_unit_test(test_menus),
		cmocka_unit_test(test_nothing_there),
		cmocka_unit_test(test_seed),
		cmocka_unit_test(test_sha256),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
