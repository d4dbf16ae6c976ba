/*
 * boot/firmware: the image in memory, the memory map, and the script by which firmware moves the ACPI tables: it is
 * carried out here as SeaBIOS does, and what comes out must be what acpi_build() makes for that address.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "boot/firmware.h"
#include "machine/firmware.h"
#include "machine/private.h"
#include "memory/memory.h"

#define TABLES_GPA 0x7ff0040u
#define RSDP_GPA   0xf5000u

static struct guest_memory *new_memory(void)
{
	struct guest_memory *memory;
	struct error err;

	assert_int_equal(memory_create(&memory), 0);
	assert_int_equal(memory_add_ram(memory, 0, 0xa0000, 0, "low", &err), 0);
	assert_int_equal(memory_add_ram(memory, 0xc0000, MIB(64) - 0xc0000, 0, "ram", &err), 0);
	assert_int_equal(memory_add_ram(memory, BOOT_HOLE_END_GPA, MIB(32), 0, "high", &err), 0);
	return memory;
}

static int image_file(unsigned bytes)
{
	int fd = memfd_create("firmware", MFD_CLOEXEC);

	assert_true(fd > 0);
	for (unsigned i = 0; i < bytes; i += 4096) {
		uint8_t page[4096];
		const unsigned part = MIN(bytes - i, 4096u);

		memset(page, (int)(i / 4096 + 1), sizeof(page));
		assert_int_equal(write(fd, page, part), part);
	}
	return fd;
}

static int load(struct guest_memory *memory, unsigned bytes, struct error *err)
{
	int fd = image_file(bytes);
	const struct boot_file file = {.path = "test", .fd = fd};
	gpa_t base = 0;
	int status = firmware_load(memory, &file, &base, err);

	close(fd);
	if (status == 0)
		assert_int_equal(base, BOOT_HOLE_END_GPA - bytes);
	return status;
}

static void test_load(void **state)
{
	struct guest_memory *memory = new_memory();
	struct error err = {0};
	uint8_t byte;

	assert_int_equal(load(memory, KIB(256), &err), 0);
	assert_int_equal(memory_read(memory, BOOT_HOLE_END_GPA - 16, &byte, 1), 0);
	assert_int_equal(byte, 64);
	assert_int_equal(memory_read(memory, BOOT_HOLE_END_GPA - KIB(256), &byte, 1), 0);
	assert_int_equal(byte, 1);
	assert_int_equal(memory_read(memory, 0xe0000, &byte, 1), 0);
	assert_int_equal(byte, 33);
	assert_int_equal(memory_read(memory, 0xffff0, &byte, 1), 0);
	assert_int_equal(byte, 64);
	assert_null(memory_host(memory, BOOT_HOLE_END_GPA - 16, 1, true)); /* read-only */
	memory_free(memory);
}

static void test_refused(void **state)
{
	struct guest_memory *memory = new_memory();
	struct error err = {0};

	assert_int_equal(load(memory, KIB(100) + 1, &err), -EINVAL);
	assert_non_null(strstr(err.text, "no multiple of 4 KiB"));
	assert_int_equal(load(memory, MIB(17), &err), -EFBIG);
	assert_int_equal(load(memory, 0, &err), -EINVAL);
	memory_free(memory);
}

static void test_map(void **state)
{
	struct guest_memory *memory = new_memory();
	uint8_t bytes[8 * FIRMWARE_MAP_ENTRY];
	struct error err = {0};

	assert_int_equal(load(memory, KIB(64), &err), 0);
	assert_int_equal(firmware_map(memory, bytes, sizeof(bytes)), 2 * FIRMWARE_MAP_ENTRY);
	assert_int_equal(load_le64(bytes), 0);
	assert_int_equal(load_le64(bytes + 8), MIB(64));
	assert_int_equal(load_le32(bytes + 16), 1);
	assert_int_equal(load_le64(bytes + 20), BOOT_HOLE_END_GPA);
	assert_int_equal(load_le64(bytes + 28), MIB(32));
	assert_int_equal(firmware_map(memory, bytes, 2 * FIRMWARE_MAP_ENTRY - 1), 0);
	memory_free(memory);
}

/* ---- the script ---- */

struct files {
	uint8_t tables[KIB(64)], rsdp[ACPI_RSDP_BYTES];
	unsigned allocations, pointers, sums;
};

static uint8_t *file_of(struct files *f, const uint8_t *name)
{
	if (strcmp((const char *)name, FIRMWARE_FILE_TABLES) == 0)
		return f->tables;
	assert_string_equal((const char *)name, FIRMWARE_FILE_RSDP);
	return f->rsdp;
}

static void run_entry(struct files *f, const uint8_t *entry)
{
	uint8_t *file = file_of(f, entry + 4), sum = 0;
	uint32_t offset;

	switch (load_le32(entry)) {
	case 1:
		f->allocations++;
		assert_int_equal(entry[64], file == f->rsdp ? 2 : 1);
		break;
	case 2:
		f->pointers++;
		assert_ptr_equal(file_of(f, entry + 60), f->tables);
		offset = load_le32(entry + 116);
		if (entry[120] == 8)
			store_le64(file + offset, load_le64(file + offset) + TABLES_GPA);
		else
			store_le32(file + offset, load_le32(file + offset) + TABLES_GPA);
		break;
	case 3:
		f->sums++;
		assert_int_equal(file[load_le32(entry + 60)], 0); /* OVMF sums what is there and stores the rest */
		for (uint32_t i = 0; i < load_le32(entry + 68); i++)
			sum = (uint8_t)(sum + file[load_le32(entry + 64) + i]);
		file[load_le32(entry + 60)] = (uint8_t)(file[load_le32(entry + 60)] - sum);
		break;
	default: fail_msg("command %u", load_le32(entry));
	}
}

static void test_script(void **state)
{
	static struct files f;
	static uint8_t wanted[KIB(64)];
	uint8_t script[FIRMWARE_SCRIPT_BYTES];
	struct acpi_relocations relocations;
	struct acpi_config config;
	uint32_t bytes, wanted_bytes, count;
	struct error err;

	acpi_config_init(&config);
	config.cpu_count = 3;
	config.hpet_base = BOOT_HPET_GPA;
	config.pci = true;
	config.ecam_base = 0xb0000000;
	assert_int_equal(acpi_build_movable(&config, f.tables, sizeof(f.tables), &bytes, &relocations, &err), 0);
	assert_int_equal(acpi_build(&config, TABLES_GPA, wanted, sizeof(wanted), &wanted_bytes, &err), 0);
	memcpy(f.rsdp, f.tables, ACPI_RSDP_BYTES);
	count = firmware_script(&relocations, script);
	assert_true(count <= sizeof(script) && count % FIRMWARE_SCRIPT_ENTRY == 0);
	for (uint32_t at = 0; at < count; at += FIRMWARE_SCRIPT_ENTRY)
		run_entry(&f, script + at);
	assert_int_equal(f.allocations, 2);
	assert_int_equal(f.pointers, 3 + 4 + 1); /* FADT's, XSDT's four tables, RSDP's */
	assert_int_equal(f.sums, 4);
	assert_int_equal(bytes, wanted_bytes);
	assert_memory_equal(f.rsdp, wanted, ACPI_RSDP_BYTES);
	assert_memory_equal(f.tables + ACPI_RSDP_BYTES, wanted + ACPI_RSDP_BYTES, bytes - ACPI_RSDP_BYTES);
}

/* Wherever the guest puts the window of the configuration space, the windows for BARs are below 4 GiB and not in it. */
static void test_windows(void **state)
{
	static const gpa_t bases[] = {0, 0x10000000, 0x80000000, 0xb0000000, 0xe0000000, 0xf8000000, 0xfc000000, 0x100000000,
		0xfffc000000};
	struct machine machine = {.config.memory_bytes = MIB(256)};

	for (unsigned i = 0; i < sizeof(bases) / sizeof(*bases); i++) {
		const struct board_firmware firmware = {
			.machine = &machine, .ecam = bases[i], .ecam_bytes = bases[i] ? MIB(64) : 0};
		struct acpi_config config = {0};

		board_firmware_describe(&firmware, &config);
		const gpa_t end = config.pci_window_base + config.pci_window_bytes;
		assert_true(config.pci_window_base >= 0x80000000 && end <= 0xfc000000);
		assert_true(end <= bases[i] || config.pci_window_base >= bases[i] + MIB(64) || !bases[i] ||
			    !config.pci_window_bytes);
		assert_true(!config.pci_window2_bytes ||
			    config.pci_window2_base + config.pci_window2_bytes <= 0xfc000000);
		assert_true(config.pci_window_bytes + config.pci_window2_bytes >= MIB(1024));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_load),
		cmocka_unit_test(test_windows),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_map),
		cmocka_unit_test(test_script),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
