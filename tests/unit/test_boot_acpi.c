/*
 * boot/: ACPI tables. Every pointer is followed and every checksum added up; iasl takes the tables apart
 * and must have nothing to say about them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "boot/acpi.h"
#include "boot/aml.h"
#include "memory/memory.h"

#define GPA BOOT_ACPI_GPA

struct tables {
	struct error err;
	uint32_t size_bytes;
	uint8_t bytes[BOOT_ACPI_BYTES];
};

static struct tables tables;

static void full_config(struct acpi_config *config)
{
	acpi_config_init(config);
	config->pm1_event_port = 0x600;
	config->pm1_control_port = 0x604;
	config->pm_timer_port = 0x608;
	config->pm_timer_32bit = true;
	config->reset_port = 0x60c;
	config->reset_value = 1;
	config->sleep_states = BIT(1) | BIT(3) | BIT(5);
	config->sleep_type[1] = 1;
	config->sleep_type[3] = 3;
	config->sleep_type[5] = 5;
	config->power_button = true;
	config->cpu_count = 4;
	config->serial_count = 2;
	config->serial[1] = (struct acpi_serial){0x2f8, 3};
	config->hpet_base = BOOT_HPET_GPA;
	config->keyboard = true;
	config->pvpanic_port = 0x505;
	config->pci = true;
	config->ecam_base = BOOT_ECAM_GPA;
	config->pci_high_window_base = GIB(64);
	config->pci_high_window_bytes = GIB(32);
	config->virtio_mmio_count = 2;
	config->virtio_mmio[0] = (struct acpi_virtio_mmio){0xf0000000, 0x1000, 20};
	config->virtio_mmio[1] = (struct acpi_virtio_mmio){0xf0001000, 0x1000, 21};
}

static int build(const struct acpi_config *config)
{
	memset(&tables, 0xa5, sizeof(tables));
	return acpi_build(
		config, GPA, tables.bytes, sizeof(tables.bytes), &tables.size_bytes, &tables.err);
}

static uint8_t sum(const uint8_t *bytes, uint32_t n)
{
	uint8_t total = 0;

	while (n--)
		total = (uint8_t)(total + *bytes++);
	return total;
}

/* The table at a guest address: in bounds, and with a right checksum. */
static const uint8_t *table_at(gpa_t gpa)
{
	const uint8_t *table;
	uint32_t length;

	assert_true(gpa >= GPA && gpa - GPA + 36 <= tables.size_bytes);
	table = tables.bytes + (gpa - GPA);
	length = load_le32(table + 4);
	assert_true(length <= tables.size_bytes - (gpa - GPA));
	if (memcmp(table, "FACS", 4))
		assert_int_equal(sum(table, length), 0);
	return table;
}

static const uint8_t *table_find(const char *signature)
{
	const uint8_t *rsdp = tables.bytes, *xsdt;
	uint32_t count;

	assert_memory_equal(rsdp, "RSD PTR ", 8);
	assert_int_equal(sum(rsdp, 20), 0);
	assert_int_equal(sum(rsdp, 36), 0);
	xsdt = table_at(load_le64(rsdp + 24));
	assert_memory_equal(xsdt, "XSDT", 4);
	count = (load_le32(xsdt + 4) - 36) / 8;
	for (uint32_t i = 0; i < count; i++) {
		const uint8_t *table = table_at(load_le64(xsdt + 36 + 8 * i));

		if (!memcmp(table, signature, 4))
			return table;
	}
	return NULL;
}

static void test_tables(void **state)
{
	struct acpi_config config;
	const uint8_t *fadt;

	full_config(&config);
	assert_int_equal(build(&config), 0);
	fadt = table_find("FACP");
	assert_non_null(fadt);
	assert_memory_equal(table_at(load_le64(fadt + 140)), "DSDT", 4);
	assert_memory_equal(table_at(load_le32(fadt + 36)), "FACS", 4);
	assert_int_equal(load_le32(fadt + 36) & 63, 0);
	assert_int_equal(load_le16(fadt + 46), 9);
	assert_int_equal(load_le32(fadt + 56), 0x600);
	assert_int_equal(load_le64(fadt + 208 + 4), 0x608);
	assert_int_equal(load_le64(fadt + 116 + 4), 0x60c);
	assert_int_equal(fadt[128], 1);
	assert_non_null(table_find("APIC"));
	assert_non_null(table_find("MCFG"));
	assert_non_null(table_find("HPET"));
	assert_int_equal(load_le64(table_find("MCFG") + 44), BOOT_ECAM_GPA);
}

static void test_least(void **state)
{
	struct acpi_config config;

	acpi_config_init(&config);
	assert_int_equal(build(&config), 0);
	assert_non_null(table_find("FACP"));
	assert_null(table_find("MCFG"));
	assert_null(table_find("HPET"));
}

/* Counts MADT entries of a type; every entry has its length, and they fill the table exactly. */
static unsigned madt_count(unsigned type)
{
	const uint8_t *madt = table_find("APIC");
	uint32_t length, at = 44;
	unsigned found = 0;

	assert_non_null(madt);
	for (length = load_le32(madt + 4); at < length; at += madt[at + 1]) {
		assert_true(madt[at + 1] >= 6);
		found += madt[at] == type;
	}
	assert_int_equal(at, length);
	return found;
}

static void test_madt(void **state)
{
	const uint8_t *madt;
	struct acpi_config config;

	acpi_config_init(&config);
	config.cpu_count = 300;
	assert_int_equal(build(&config), 0);
	assert_int_equal(madt_count(0), 255); /* APIC ids 0 to 254 */
	assert_int_equal(madt_count(9), 45);
	assert_int_equal(madt_count(1), 1);
	assert_int_equal(madt_count(2), 2);
	assert_int_equal(madt_count(4), 1);
	assert_int_equal(madt_count(10), 1);

	config.cpu_count = 1;
	assert_int_equal(build(&config), 0);
	madt = table_find("APIC");
	assert_int_equal(madt[44 + 8 + 12], 2); /* IRQ 0 is GSI 2 */
	assert_int_equal(madt[44 + 8 + 12 + 3], 0);
	assert_int_equal(load_le32(madt + 44 + 8 + 12 + 4), 2);
	assert_int_equal(madt_count(10), 0);
}

static void test_bounds(void **state)
{
	struct acpi_config config;
	uint32_t full, size;

	full_config(&config);
	assert_int_equal(build(&config), 0);
	full = tables.size_bytes;
	for (uint32_t room = 0; room < full; room += room < 600 ? 1 : 13) {
		memset(tables.bytes, 0x5a, sizeof(tables.bytes));
		assert_int_equal(acpi_build(&config, GPA, tables.bytes, room, &size, &tables.err),
			-ENOSPC);
		assert_int_equal(tables.bytes[room], 0x5a);
	}
	assert_int_equal(acpi_build(&config, GPA, tables.bytes, full, &size, &tables.err), 0);

	config.cpu_count = 0;
	assert_int_equal(build(&config), -EINVAL);
	config.cpu_count = ACPI_CPUS_MAX + 1;
	assert_int_equal(build(&config), -EINVAL);
	config.cpu_count = ACPI_CPUS_MAX;
	assert_int_equal(build(&config), 0);
	config.serial_count = ACPI_SERIALS_MAX + 1;
	assert_int_equal(build(&config), -EINVAL);
}

static void test_aml(void **state)
{
	uint8_t bytes[8192];
	struct aml aml;
	unsigned outer;

	aml_init(&aml, bytes, sizeof(bytes));
	aml_eisaid(&aml, "PNP0501");
	assert_memory_equal(bytes, "\x0c\x41\xd0\x05\x01", 5);

	/* Lengths around each change of PkgLength's size. */
	for (unsigned content = 60; content < 5000; content += content < 66 ? 1 : 4030) {
		aml_init(&aml, bytes, sizeof(bytes));
		outer = aml_scope_open(&aml, "\\_SB");
		while (aml.size_bytes < 1 + content)
			aml_integer(&aml, 0);
		aml_close(&aml, outer);
		assert_false(aml.failed);
		if (content <= 62)
			assert_int_equal(bytes[1], content + 1);
		else if (content <= 4093)
			assert_int_equal((bytes[1] & 15u) | bytes[2] << 4, content + 2);
		else
			assert_int_equal((bytes[1] & 15u) | bytes[2] << 4 | bytes[3] << 12,
				content + 3);
	}

	aml_init(&aml, bytes, 5);
	aml_name(&aml, "LONGER");
	assert_true(aml.failed);
}

static void dump(const char *directory, const char *name, const uint8_t *table)
{
	char path[256];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s.dat", directory, name);
	file = fopen(path, "w");
	assert_non_null(file);
	assert_int_equal(fwrite(table, load_le32(table + 4), 1, file), 1);
	fclose(file);
}

/* Disassemble each table, compile the DSDT's source again, and look for complaints. */
static void test_iasl(void **state)
{
	static const char *const names[] = {"FACP", "APIC", "MCFG", "HPET", "XSDT"};
	char directory[] = "/tmp/lodge-acpi-XXXXXX", command[1024];
	const uint8_t *fadt;
	struct acpi_config config;

	if (system("command -v iasl >/dev/null")) {
		fprintf(stderr, "NOT CHECKED: whether iasl understands our ACPI tables; "
				"install acpica-tools\n");
		skip();
	}
	full_config(&config);
	assert_int_equal(build(&config), 0);
	assert_non_null(mkdtemp(directory));
	fadt = table_find("FACP");
	dump(directory, "DSDT", table_at(load_le64(fadt + 140)));
	dump(directory, "FACS", table_at(load_le32(fadt + 36)));
	for (unsigned i = 0; i < ARRAY_SIZE(names) - 1; i++)
		dump(directory, names[i], table_find(names[i]));
	snprintf(command, sizeof(command),
		"cd %s && iasl -d *.dat >log 2>&1 && ! grep -iE 'error|warning|invalid|unknown' log "
		"*.dsl | grep -viE ' 0 (errors|warnings)|error(s)? 0|Error (Source|Interrupt|Status)' && "
		"iasl -we DSDT.dsl >log2 2>&1 && grep -q ' 0 Errors, 0 Warnings' log2",
		directory);
	if (system(command)) {
		fprintf(stderr, "iasl complains: see %s\n", directory);
		fail();
	}
	snprintf(command, sizeof(command), "rm -rf %s", directory);
	assert_int_equal(system(command), 0);
}

static void test_install(void **state)
{
	struct guest_memory *memory;
	struct acpi_config config;
	uint8_t found[8];
	gpa_t rsdp = 0;

	acpi_config_init(&config);
	assert_int_equal(memory_create(&memory), 0);
	assert_int_equal(acpi_install(memory, &config, &rsdp, &tables.err), -EFAULT);
	assert_int_equal(memory_add_ram(memory, 0, MIB(2), 0, "ram", NULL), 0);
	assert_int_equal(acpi_install(memory, &config, &rsdp, &tables.err), 0);
	assert_int_equal(memory_read(memory, rsdp, found, 8), 0);
	assert_memory_equal(found, "RSD PTR ", 8);
	memory_free(memory);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_tables),
		cmocka_unit_test(test_least),
		cmocka_unit_test(test_madt),
		cmocka_unit_test(test_bounds),
		cmocka_unit_test(test_aml),
		cmocka_unit_test(test_iasl),
		cmocka_unit_test(test_install),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
