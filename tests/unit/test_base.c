/*
 * base/: utilities, byte codec, errors, log limit, clocks, cleanup.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "base/base64.h"
#include "base/brief.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/util.h"

static void test_align(void **state)
{
	assert_int_equal(ALIGN_UP(0x1001u, 0x1000), 0x2000);
	assert_int_equal(ALIGN_UP(0x1000u, 0x1000), 0x1000);
	assert_int_equal(ALIGN_DOWN(0x1fffu, 0x1000), 0x1000);
	/* The mask takes x's width: the high half of a 64-bit address survives. */
	assert_true(ALIGN_DOWN(0x1234567890abcdefULL, 0x1000) == 0x1234567890abc000ULL);
	assert_true(IS_ALIGNED(0x2000u, 0x1000));
	assert_false(IS_ALIGNED(0x2001u, 0x1000));
}

static void test_min_max(void **state)
{
	int calls = 0;

	assert_int_equal(MIN(MIN(3, 1), MAX(2, -5)), 1);
	assert_int_equal(MAX(++calls, 0), 1);
	assert_int_equal(calls, 1);
}

static void test_bits(void **state)
{
	assert_true(BIT(63) == 0x8000000000000000ULL);
	assert_true(BIT_MASK(63, 0) == ~0ULL);
	assert_true(BIT_MASK(11, 4) == 0xff0);
	assert_true(BIT_MASK(5, 5) == 0x20);
}

static void test_container_of(void **state)
{
	struct outer {
		int first;
		int second;
	} outer;

	assert_ptr_equal(container_of(&outer.second, struct outer, second), &outer);
}

static void test_bytes(void **state)
{
	static const uint8_t bytes[9] = {0xff, 1, 2, 3, 4, 5, 6, 7, 8};
	uint8_t out[10] = {0};

	assert_int_equal(load_le16(bytes + 1), 0x0201);
	assert_int_equal(load_le32(bytes + 1), 0x04030201);
	assert_true(load_le64(bytes + 1) == 0x0807060504030201ULL);
	assert_int_equal(load_be32(bytes + 1), 0x01020304);
	store_le64(out + 1, 0x0807060504030201ULL);
	assert_memory_equal(out + 1, bytes + 1, 8);
	assert_int_equal(out[0], 0);
	assert_int_equal(out[9], 0);
	store_be16(out, 0xabcd);
	assert_int_equal(out[0], 0xab);
}

static void test_error(void **state)
{
	struct error err = {0};

	assert_int_equal(error_set(&err, ENOENT, "no kernel '%s'", "a\x1b[2J"), -ENOENT);
	assert_int_equal(err.code, ENOENT);
	assert_string_equal(err.text, "no kernel 'a?[2J'");
	assert_int_equal(error_prefix(&err, "machine %d", 7), -ENOENT);
	assert_string_equal(err.text, "machine 7: no kernel 'a?[2J'");
	/* The old text may be an argument of the new one. */
	error_set(&err, EIO, "<%s>", err.text);
	assert_string_equal(err.text, "<machine 7: no kernel 'a?[2J'>");
	error_set_errno(&err, EACCES, "cannot open %s", "/dev/kvm");
	assert_string_equal(err.text, "cannot open /dev/kvm: Permission denied");
	assert_int_equal(error_set(NULL, EIO, "nobody listens"), -EIO);
	assert_int_equal(error_prefix(NULL, "x"), 0);
}

static void test_error_long(void **state)
{
	struct error err = {0};
	char big[3000];

	memset(big, 'x', sizeof(big) - 1);
	big[sizeof(big) - 1] = '\0';
	error_set(&err, EINVAL, "%s", big);
	assert_int_equal(strlen(err.text), sizeof(err.text) - 1);
	error_prefix(&err, "%s", big);
	assert_int_equal(strlen(err.text), sizeof(err.text) - 1);
	assert_int_equal(err.code, EINVAL);
}

static void test_log_limit(void **state)
{
	struct log_limit limit = {0};
	uint64_t now_ns = 1234;
	uint32_t dropped;

	for (int i = 0; i < LOG_LIMIT_BURST; i++)
		assert_true(log_limit_pass(&limit, now_ns, &dropped));
	for (int i = 0; i < 5; i++)
		assert_false(log_limit_pass(&limit, now_ns + 1, &dropped));
	assert_true(log_limit_pass(&limit, now_ns + LOG_LIMIT_WINDOW_NS, &dropped));
	assert_int_equal(dropped, 5);
	assert_true(log_limit_pass(&limit, now_ns + LOG_LIMIT_WINDOW_NS, &dropped));
	assert_int_equal(dropped, 0);
}

static void test_log_level(void **state)
{
	enum log_level level = LOG_LEVEL_ERROR;

	assert_int_equal(log_level_parse("debug", &level), 0);
	assert_int_equal(level, LOG_LEVEL_DEBUG);
	assert_int_equal(log_level_parse("loud", &level), -EINVAL);
}

static void test_clock(void **state)
{
	uint64_t before_ns = clock_monotonic_ns();

	assert_true(clock_monotonic_ns() >= before_ns);
	/* 2020-01-01, in case somebody returns seconds or the wrong clock. */
	assert_true(clock_realtime_ns() > 1577836800ULL * NS_PER_SEC);
}

static int open_in_scope(int *ret_raw)
{
	AUTO_CLOSE int fd = open("/dev/null", O_RDONLY);

	*ret_raw = fd;
	errno = E2BIG;
	return 0;
}

static void test_cleanup(void **state)
{
	AUTO_FREE char *text = strdup("freed at the end");
	AUTO_CLOSE int fd = open("/dev/null", O_RDONLY);
	char *taken = take_ptr(&text);
	int raw = -1;

	assert_null(text);
	assert_non_null(taken);
	free(taken);
	assert_int_equal(open_in_scope(&raw), 0);
	assert_int_equal(errno, E2BIG);
	assert_true(raw >= 0);
	assert_int_equal(fcntl(raw, F_GETFD), -1);
	raw = take_fd(&fd);
	assert_int_equal(fd, -1);
	assert_int_equal(close(raw), 0);
}

static bool count_down(void *opaque)
{
	unsigned *left = opaque;

	return !*left || !--*left;
}

static bool is_never(void *opaque)
{
	++*(uint64_t *)opaque;
	return false;
}

/* It looks after waits that were short, never for long, and not at all after one that was long. */
static void test_brief(void **state)
{
	struct brief_wait wait = {0};
	unsigned left = 100;
	uint64_t looks = 0;

	assert_false(brief_wait(&wait, count_down, &left));
	assert_int_equal(left, 100);
	for (unsigned i = 0; i < 10; i++)
		brief_learn(&wait, 20 * NS_PER_US);
	assert_int_equal(wait.window_ns, BRIEF_MAX_NS);
	left = 1;
	assert_true(brief_wait(&wait, count_down, &left));
	/* Others may take the processor, and then the window is gone: but it ends. */
	for (unsigned i = 0; i < 100; i++) {
		brief_learn(&wait, 20 * NS_PER_US);
		assert_false(brief_wait(&wait, is_never, &looks));
	}
	assert_true(looks >= 100);
	brief_learn(&wait, 20 * NS_PER_US);
	brief_learn(&wait, BRIEF_MAX_NS + 1);
	looks = 0;
	assert_false(brief_wait(&wait, is_never, &looks));
	assert_int_equal(looks, 0);
}

static void test_base64(void **state)
{
	static const char *const texts[] = {"", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"}; /* RFC 4648, 10 */
	static const char *const wrong[] = {"Z", "Zg=", "Zg", "=", "====", "Z===", "Zg==Zg==", "Zm9\n", "Z=9v", "Zm-_"};
	uint8_t all[256], *bytes;
	size_t count;

	for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
		AUTO_FREE char *text = base64_encode((const uint8_t *)"foobar", i);

		assert_string_equal(text, texts[i]);
		assert_int_equal(base64_decode(text, &bytes, &count), 0);
		assert_int_equal(count, i);
		assert_memory_equal(bytes, "foobar", i);
		free(bytes);
	}
	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++)
		assert_int_equal(base64_decode(wrong[i], &bytes, &count), -EINVAL);
	for (size_t i = 0; i < sizeof(all); i++)
		all[i] = (uint8_t)(i * 7);
	AUTO_FREE char *text = base64_encode(all, sizeof(all));
	assert_int_equal(base64_decode(text, &bytes, &count), 0);
	assert_int_equal(count, sizeof(all));
	assert_memory_equal(bytes, all, sizeof(all));
	free(bytes);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_align),
		cmocka_unit_test(test_min_max),
		cmocka_unit_test(test_bits),
		cmocka_unit_test(test_container_of),
		cmocka_unit_test(test_bytes),
		cmocka_unit_test(test_error),
		cmocka_unit_test(test_error_long),
		cmocka_unit_test(test_log_limit),
		cmocka_unit_test(test_log_level),
		cmocka_unit_test(test_clock),
		cmocka_unit_test(test_brief),
		cmocka_unit_test(test_cleanup),
		cmocka_unit_test(test_base64),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
