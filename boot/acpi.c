/*
 * ACPI tables: ACPI 6.4, section 5.2 (RSDP, XSDT, FADT revision 6, FACS, MADT, DSDT); PCI Firmware
 * Specification 3.3 (MCFG); IA-PC HPET Specification 1.0a. See acpi.h and acpi_dsdt.c.
 *
 * Left out on purpose: the RSDT (nothing since 2000 needs it; the RSDP's pointer is 0), NUMA tables,
 * power management beyond the fixed hardware.
 *
 * Tables are laid one after another; each pointer is to one that was laid before.
 */
#include "boot/acpi.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "boot/aml.h"
#include "memory/memory.h"

#define HEADER_BYTES 36
#define FADT_BYTES   276
#define FACS_BYTES   64
#define TABLES_MAX   8

#define FADT_FLAG_WBINVD       BIT(0)
#define FADT_FLAG_PROC_C1      BIT(2)
#define FADT_FLAG_NO_PWR_BUTTON BIT(4) /* not in the fixed hardware */
#define FADT_FLAG_NO_SLP_BUTTON BIT(5)
#define FADT_FLAG_NO_FIX_RTC   BIT(6)
#define FADT_FLAG_TIMER_32BIT  BIT(8)
#define FADT_FLAG_RESET	       BIT(10)
#define FADT_BOOT_LEGACY       BIT(0)
#define FADT_BOOT_8042	       BIT(1)
#define FADT_BOOT_NO_VGA       BIT(2)
#define FADT_BOOT_NO_RTC       BIT(5)

#define MADT_FLAG_8259	     1
#define MADT_LAPIC	     0
#define MADT_IOAPIC	     1
#define MADT_OVERRIDE	     2
#define MADT_LAPIC_NMI	     4
#define MADT_X2APIC	     9
#define MADT_X2APIC_NMI	     10
#define MADT_CPU_ENABLED     1
#define MADT_CONFORMS	     0
#define MADT_LEVEL_HIGH	     0x0d
#define XAPIC_ID_LAST	     254 /* 255 is everyone */

#define SPACE_MEMORY 0
#define SPACE_IO     1

/* The image of all tables while it is made. */
struct acpi_image {
	uint8_t *bytes;
	uint32_t size_bytes, room_bytes;
	gpa_t gpa; /* of bytes[0] */
	bool full;
	gpa_t table[TABLES_MAX]; /* what the XSDT points to */
	unsigned table_count;
	struct acpi_relocations *relocations; /* to be noted, or NULL */
};

static uint8_t checksum(const uint8_t *bytes, uint32_t size_bytes)
{
	uint8_t sum = 0;

	for (uint32_t i = 0; i < size_bytes; i++)
		sum = (uint8_t)(sum + bytes[i]);
	return (uint8_t)-sum;
}

/* Zeroed room at the next multiple of align. When there is none, `full` is set and the answer is NULL. */
static uint8_t *image_take(struct acpi_image *image, uint32_t size_bytes, uint32_t align)
{
	uint32_t at = ALIGN_UP(image->size_bytes, align);

	if (image->full || at > image->room_bytes || size_bytes > image->room_bytes - at) {
		image->full = true;
		return NULL;
	}
	image->size_bytes = at + size_bytes;
	return memset(image->bytes + at, 0, size_bytes);
}

static gpa_t image_gpa(const struct acpi_image *image, const uint8_t *table)
{
	return image->gpa + (gpa_t)(table - image->bytes);
}

/* A pointer in a table to another: 4 or 8 bytes, little-endian. */
static void store_pointer(struct acpi_image *image, uint8_t *at, unsigned size_bytes, gpa_t to)
{
	struct acpi_relocations *r = image->relocations;

	if (size_bytes == 8)
		store_le64(at, to);
	else
		store_le32(at, (uint32_t)to);
	if (!r || image->full)
		return;
	image->full |= r->pointer_count == ACPI_POINTERS_MAX;
	if (image->full)
		return;
	r->pointer[r->pointer_count].offset = (uint32_t)(at - image->bytes);
	r->pointer[r->pointer_count++].size_bytes = (uint8_t)size_bytes;
}

/* The table holds pointers: whoever moves it sums it up, over a checksum that must be 0 by then (OVMF sums it too). */
static void note_sum(struct acpi_image *image, uint8_t *table, uint32_t size_bytes)
{
	struct acpi_relocations *r = image->relocations;

	if (!r || image->full || r->sum_count == ACPI_SUMS_MAX)
		return;
	r->sum[r->sum_count].offset = (uint32_t)(table - image->bytes);
	r->sum[r->sum_count++].size_bytes = size_bytes;
	table[9] = 0;
}

static uint8_t *table_open(
	struct acpi_image *image, const char *signature, uint8_t revision, uint32_t size_bytes)
{
	uint8_t *table = image_take(image, size_bytes, 16);

	if (!table)
		return NULL;
	memcpy(table, signature, 4);
	table[8] = revision;
	memcpy(table + 10, "LODGE ", 6);
	memcpy(table + 16, "LODGEVM ", 8);
	store_le32(table + 24, 1);
	memcpy(table + 28, "LODG", 4);
	store_le32(table + 32, 1);
	return table;
}

/* Set length and checksum once the table is complete. */
static void table_close(uint8_t *table, uint32_t size_bytes)
{
	store_le32(table + 4, size_bytes);
	table[9] = 0;
	table[9] = checksum(table, size_bytes);
}

static void image_list(struct acpi_image *image, const uint8_t *table)
{
	image->table[image->table_count++] = image_gpa(image, table);
}

static gpa_t write_dsdt(struct acpi_image *image, const struct acpi_config *config)
{
	uint8_t *table = table_open(image, "DSDT", 2, HEADER_BYTES);
	struct aml aml;

	if (!table)
		return 0;
	aml_init(&aml, table + HEADER_BYTES, image->room_bytes - image->size_bytes);
	acpi_dsdt_write(&aml, config);
	image->full |= aml.failed;
	image->size_bytes += aml.size_bytes;
	table_close(table, HEADER_BYTES + aml.size_bytes);
	return image_gpa(image, table);
}

static gpa_t write_facs(struct acpi_image *image)
{
	uint8_t *table = image_take(image, FACS_BYTES, 64);

	if (!table)
		return 0;
	memcpy(table, "FACS", 4);
	store_le32(table + 4, FACS_BYTES);
	table[32] = 2; /* version */
	return image_gpa(image, table);
}

/* A generic address structure of a port (5.2.3.2). */
static void store_gas(uint8_t *gas, uint8_t space, uint8_t bits, uint64_t address)
{
	uint8_t access = bits == 8 ? 1 : bits == 16 ? 2 : 3;

	if (!address)
		return;
	gas[0] = space;
	gas[1] = bits;
	gas[3] = access;
	store_le64(gas + 4, address);
}

static uint32_t fadt_flags(const struct acpi_config *config)
{
	uint64_t flags = FADT_FLAG_WBINVD | FADT_FLAG_PROC_C1 | FADT_FLAG_NO_FIX_RTC;

	if (!config->power_button)
		flags |= FADT_FLAG_NO_PWR_BUTTON;
	if (!config->sleep_button)
		flags |= FADT_FLAG_NO_SLP_BUTTON;
	if (config->pm_timer_32bit)
		flags |= FADT_FLAG_TIMER_32BIT;
	if (config->reset_port)
		flags |= FADT_FLAG_RESET;
	return (uint32_t)flags;
}

static uint16_t fadt_boot_flags(const struct acpi_config *config)
{
	uint64_t flags = 0;

	if (config->serial_count || config->i8042)
		flags |= FADT_BOOT_LEGACY;
	if (config->i8042)
		flags |= FADT_BOOT_8042;
	if (!config->vga)
		flags |= FADT_BOOT_NO_VGA;
	if (!config->rtc)
		flags |= FADT_BOOT_NO_RTC;
	return (uint16_t)flags;
}

/* Ports stand twice in the table: as in ACPI 1.0, and as generic addresses. */
static void fadt_ports(uint8_t *fadt, const struct acpi_config *config)
{
	store_le32(fadt + 56, config->pm1_event_port);
	store_le32(fadt + 64, config->pm1_control_port);
	store_le32(fadt + 76, config->pm_timer_port);
	fadt[88] = config->pm1_event_port ? 4 : 0;
	fadt[89] = config->pm1_control_port ? 2 : 0;
	fadt[91] = config->pm_timer_port ? 4 : 0;
	store_gas(fadt + 148, SPACE_IO, 32, config->pm1_event_port);
	fadt[151] = config->pm1_event_port ? 2 : 0; /* two registers of 16 bits */
	store_gas(fadt + 172, SPACE_IO, 16, config->pm1_control_port);
	store_gas(fadt + 208, SPACE_IO, 32, config->pm_timer_port);
	store_gas(fadt + 116, SPACE_IO, 8, config->reset_port);
	fadt[128] = config->reset_value;
}

static void write_fadt(
	struct acpi_image *image, const struct acpi_config *config, gpa_t facs, gpa_t dsdt)
{
	uint8_t *fadt = table_open(image, "FACP", 6, FADT_BYTES);

	if (!fadt)
		return;
	store_pointer(image, fadt + 36, 4, facs);
	store_pointer(image, fadt + 40, 4, dsdt);
	store_le16(fadt + 46, config->sci_gsi);
	store_le16(fadt + 96, 0xfff); /* C2 and C3 latencies that say: not supported */
	store_le16(fadt + 98, 0xfff);
	if (config->rtc)
		fadt[108] = 0x32; /* the century's place in CMOS */
	store_le16(fadt + 109, fadt_boot_flags(config));
	store_le32(fadt + 112, fadt_flags(config));
	fadt[131] = 4; /* minor version */
	store_pointer(image, fadt + 140, 8, dsdt); /* X_FIRMWARE_CTRL is 0: only one of the two may be set */
	fadt_ports(fadt, config);
	memcpy(fadt + 268, "LODGE", 5); /* hypervisor vendor */
	table_close(fadt, FADT_BYTES);
	note_sum(image, fadt, FADT_BYTES);
	image_list(image, fadt);
}

static uint32_t config_apic_id(const struct acpi_config *config, unsigned cpu)
{
	return config->apic_id ? config->apic_id[cpu] : cpu;
}

static void madt_cpu(struct acpi_image *image, uint32_t apic_id, uint32_t uid)
{
	bool wide = apic_id > XAPIC_ID_LAST || uid > XAPIC_ID_LAST;
	uint8_t *entry = image_take(image, wide ? 16 : 8, 1);

	if (!entry)
		return;
	entry[0] = wide ? MADT_X2APIC : MADT_LAPIC;
	entry[1] = wide ? 16 : 8;
	if (wide) {
		store_le32(entry + 4, apic_id);
		store_le32(entry + 8, MADT_CPU_ENABLED);
		store_le32(entry + 12, uid);
		return;
	}
	entry[2] = (uint8_t)uid;
	entry[3] = (uint8_t)apic_id;
	store_le32(entry + 4, MADT_CPU_ENABLED);
}

static void madt_ioapic(struct acpi_image *image, const struct acpi_config *config)
{
	uint8_t *entry = image_take(image, 12, 1);

	if (!entry)
		return;
	entry[0] = MADT_IOAPIC;
	entry[1] = 12;
	entry[2] = config->ioapic_id;
	store_le32(entry + 4, (uint32_t)config->ioapic_base);
}

static void madt_override(struct acpi_image *image, uint8_t irq, uint32_t gsi, uint16_t flags)
{
	uint8_t *entry = image_take(image, 10, 1);

	if (!entry)
		return;
	entry[0] = MADT_OVERRIDE;
	entry[1] = 10;
	entry[3] = irq;
	store_le32(entry + 4, gsi);
	store_le16(entry + 8, flags);
}

/* LINT1 of every processor is NMI. */
static void madt_nmi(struct acpi_image *image, bool wide)
{
	uint8_t *entry = image_take(image, wide ? 12 : 6, 1);

	if (!entry)
		return;
	entry[0] = wide ? MADT_X2APIC_NMI : MADT_LAPIC_NMI;
	entry[1] = wide ? 12 : 6;
	if (wide) {
		store_le32(entry + 4, UINT32_MAX);
		entry[8] = 1;
		return;
	}
	entry[2] = UINT8_MAX;
	entry[5] = 1;
}

static void write_madt(struct acpi_image *image, const struct acpi_config *config)
{
	uint8_t *madt = table_open(image, "APIC", 5, HEADER_BYTES + 8);
	bool wide = false;

	if (!madt)
		return;
	store_le32(madt + 36, (uint32_t)config->lapic_base);
	store_le32(madt + 40, MADT_FLAG_8259);
	for (unsigned i = 0; i < config->cpu_count; i++) {
		wide |= config_apic_id(config, i) > XAPIC_ID_LAST;
		madt_cpu(image, config_apic_id(config, i), i);
	}
	if (config->ioapic_base) {
		madt_ioapic(image, config);
		madt_override(image, 0, 2, MADT_CONFORMS); /* the PIT, on every PC */
		if (config->sci_gsi < 16)
			madt_override(image, config->sci_gsi, config->sci_gsi, MADT_LEVEL_HIGH);
	}
	madt_nmi(image, false);
	if (wide)
		madt_nmi(image, true);
	if (image->full)
		return;
	table_close(madt, (uint32_t)(image->bytes + image->size_bytes - madt));
	image_list(image, madt);
}

static void write_mcfg(struct acpi_image *image, const struct acpi_config *config)
{
	uint8_t *mcfg = table_open(image, "MCFG", 1, HEADER_BYTES + 8 + 16);

	if (!mcfg)
		return;
	store_le64(mcfg + 44, config->ecam_base);
	mcfg[55] = config->pci_last_bus; /* segment 0, from bus 0 */
	table_close(mcfg, HEADER_BYTES + 8 + 16);
	image_list(image, mcfg);
}

static void write_hpet_table(struct acpi_image *image, const struct acpi_config *config)
{
	uint8_t *hpet = table_open(image, "HPET", 1, 56);

	if (!hpet)
		return;
	store_le32(hpet + 36, 0x8086a201); /* block id: 64 bits, 3 comparators, legacy routing */
	store_gas(hpet + 40, SPACE_MEMORY, 64, config->hpet_base);
	hpet[43] = 0;
	store_le16(hpet + 53, 0x80); /* minimum tick */
	table_close(hpet, 56);
	image_list(image, hpet);
}

static gpa_t write_xsdt(struct acpi_image *image)
{
	uint32_t size_bytes = HEADER_BYTES + 8 * image->table_count;
	uint8_t *xsdt = table_open(image, "XSDT", 1, size_bytes);

	if (!xsdt)
		return 0;
	for (unsigned i = 0; i < image->table_count; i++)
		store_pointer(image, xsdt + HEADER_BYTES + 8 * i, 8, image->table[i]);
	table_close(xsdt, size_bytes);
	note_sum(image, xsdt, size_bytes);
	return image_gpa(image, xsdt);
}

static void write_rsdp(uint8_t *rsdp, gpa_t xsdt)
{
	memcpy(rsdp, "RSD PTR ", 8);
	memcpy(rsdp + 9, "LODGE ", 6);
	rsdp[15] = 2; /* revision */
	store_le32(rsdp + 20, ACPI_RSDP_BYTES);
	store_le64(rsdp + 24, xsdt);
	rsdp[8] = checksum(rsdp, 20);
	rsdp[32] = checksum(rsdp, ACPI_RSDP_BYTES);
}

static int config_check(const struct acpi_config *config, struct error *err)
{
	if (!config->cpu_count || config->cpu_count > ACPI_CPUS_MAX)
		return error_set(err, EINVAL, "%u processors, and ACPI tables are made for 1 to %d",
			config->cpu_count, ACPI_CPUS_MAX);
	if (config->serial_count > ACPI_SERIALS_MAX ||
		config->virtio_mmio_count > ACPI_VIRTIO_MMIOS_MAX)
		return error_set(err, EINVAL, "too many devices for the ACPI tables");
	return 0;
}

static int build(struct acpi_image *image, const struct acpi_config *config, struct error *err)
{
	gpa_t facs, dsdt, xsdt;
	uint8_t *rsdp;
	int r;

	r = config_check(config, err);
	if (r < 0)
		return r;
	rsdp = image_take(image, ACPI_RSDP_BYTES, 16);
	facs = write_facs(image);
	dsdt = write_dsdt(image, config);
	write_fadt(image, config, facs, dsdt);
	write_madt(image, config);
	if (config->pci && config->ecam_base)
		write_mcfg(image, config);
	if (config->hpet_base)
		write_hpet_table(image, config);
	xsdt = write_xsdt(image);
	if (image->full)
		return error_set(err, ENOSPC, "the ACPI tables do not fit into %u bytes", image->room_bytes);
	write_rsdp(rsdp, xsdt);
	if (image->relocations)
		rsdp[8] = rsdp[32] = 0;
	return 0;
}

int acpi_build(const struct acpi_config *config, gpa_t gpa, uint8_t *bytes, uint32_t room_bytes,
	uint32_t *ret_size_bytes, struct error *err)
{
	struct acpi_image image = {.bytes = bytes, .room_bytes = room_bytes, .gpa = gpa};
	int r = build(&image, config, err);

	*ret_size_bytes = image.size_bytes;
	return r;
}

int acpi_build_movable(const struct acpi_config *config, uint8_t *bytes, uint32_t room_bytes,
	uint32_t *ret_size_bytes, struct acpi_relocations *ret_relocations, struct error *err)
{
	struct acpi_image image = {.bytes = bytes, .room_bytes = room_bytes, .relocations = ret_relocations};
	int r;

	*ret_relocations = (struct acpi_relocations){0};
	r = build(&image, config, err);
	*ret_size_bytes = image.size_bytes;
	return r;
}

int acpi_install(struct guest_memory *memory, const struct acpi_config *config, gpa_t *ret_rsdp,
	struct error *err)
{
	AUTO_FREE uint8_t *bytes = malloc(BOOT_ACPI_BYTES);
	uint32_t size_bytes = 0;
	int r;

	if (!bytes)
		return error_set(err, ENOMEM, "no memory on the host for ACPI tables");
	r = acpi_build(config, BOOT_ACPI_GPA, bytes, BOOT_ACPI_BYTES, &size_bytes, err);
	if (r < 0)
		return r;
	r = memory_write(memory, BOOT_ACPI_GPA, bytes, size_bytes);
	if (r < 0)
		return error_set(err, -r, "no RAM for the ACPI tables below 1 MiB");
	*ret_rsdp = BOOT_ACPI_GPA;
	return 0;
}

void acpi_config_init(struct acpi_config *ret_config)
{
	*ret_config = (struct acpi_config){
		.cpu_count = 1,
		.lapic_base = BOOT_LAPIC_GPA,
		.ioapic_base = BOOT_IOAPIC_GPA,
		.sci_gsi = 9,
		.i8042 = true,
		.rtc = true,
		.serial_count = 1,
		.serial = {{0x3f8, 4}},
		.pci_last_bus = 255,
		.pci_window_base = BOOT_PCI_WINDOW_GPA,
		.pci_window_bytes = BOOT_PCI_WINDOW_BYTES,
		.pci_gsi = {16, 17, 18, 19},
	};
}
