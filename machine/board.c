/*
 * The board: see board.h. Addresses are the PC's; ACPI tells the guest of them.
 *
 * Lock order: device lock -> the lock of a device of devices.c -> shared lines -> PIC -> I/O APIC -> local APICs ->
 * machine -> vCPU. Interrupt lines are driven with the lock of their device held. Whatever the engine, the bus's handlers
 * run on the thread of the vCPU that made the access.
 */
#include "machine/board.h"
#include "base/cleanup.h"
#include "boot/acpi.h"
#include "boot/layout.h"
#include "device/acpi_pm.h"
#include "device/bus.h"
#include "device/char/debug_exit.h"
#include "device/char/i8042.h"
#include "device/char/pvpanic.h"
#include "device/char/uart16550.h"
#include "device/display/vga.h"
#include "device/irq/ioapic.h"
#include "device/irq/lapic.h"
#include "device/irq/pic.h"
#include "device/pci/host.h"
#include "device/pci/pirq.h"
#include "device/timer/hpet.h"
#include "device/timer/pit.h"
#include "device/timer/rtc.h"
#include "memory/memory.h"
#include "machine/firmware.h"
#include "machine/private.h"
#include "machine/virtual.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define COM1_PORT 0x3f8
#define GSI_PIT	  0 /* pin 2 of the I/O APIC */
#define GSI_KEYBOARD 1
#define GSI_COM1  4
#define GSI_RTC	  8
#define GSI_SCI	  9
#define GSI_MOUSE 12
#define GSI_PCI	  16 /* four of them */
#define PCI_LINES PIRQ_LINES
#define PIC_INPUTS 16
#define VGA_SLOT  30 /* behind the devices of devices.c */
#define HPET_PINS 0x00f00000u /* 20 to 23, which nothing else drives */

#define PCI_BUSES_WITH_PORTS 64
#define HIGH_WINDOW_ALIGN GIB(1)
#define HIGH_WINDOW_BYTES GIB(512)

struct board {
	struct machine *machine;
	bool own_irqchip; /* ours, not the engine's */
	pthread_mutex_t device_lock, pic_lock;

	struct lapic_bus *lapics;
	struct ioapic *ioapic;
	struct pic *pic;
	struct pit *pit;
	struct rtc *rtc;
	struct hpet *hpet;
	bool hpet_legacy; /* the HPET drives the PIT's and the RTC's interrupts; device_lock */
	struct pci_host *pci;
	struct boot_map_entry ecam; /* of a machine without firmware */
	pthread_mutex_t line_lock;
	unsigned shared_line[PCI_LINES]; /* how many devices raise it */
	struct pirq pirq; /* with firmware: what PCI and other devices raise at the PICs; line_lock */
	struct uart *uart;
	struct acpi_pm pm;
	struct i8042 i8042;
	struct debug_exit debug_exit;
	struct pvpanic pvpanic;
	bool has_firmware;
	struct board_firmware firmware;
	struct vga *vga;
};

/* ---- interrupts ---- */

static void isa_line_set(struct board *board, unsigned input, bool level)
{
	AUTO_LOCK(&board->line_lock);
	pirq_own_set(&board->pirq, input, level);
}

/* An engine's own interrupt controllers have one line for an input of the PICs and the I/O APIC's pin of that number,
 * which those who use the I/O APIC leave masked where PCI devices are routed. */
static void show_pic_input(void *opaque, unsigned input, bool level)
{
	struct board *board = opaque;

	if (board->own_irqchip)
		pic_set_irq(board->pic, input, level);
	else
		board->machine->config.engine->irq_line(board->machine->vm, input, level);
}

void board_route_pirqs(struct board *board, const int route[PCI_LINES])
{
	AUTO_LOCK(&board->line_lock);
	pirq_route_set(&board->pirq, route);
}

static void set_gsi(struct board *board, unsigned gsi, bool level)
{
	if (!board->own_irqchip && board->has_firmware && gsi < PIC_INPUTS) {
		isa_line_set(board, gsi, level);
		return;
	}
	if (!board->own_irqchip) {
		board->machine->config.engine->irq_line(board->machine->vm, gsi, level);
		return;
	}
	if (!board->has_firmware)
		pic_set_irq(board->pic, gsi, level);
	else if (gsi < PIC_INPUTS)
		isa_line_set(board, gsi, level);
	ioapic_set_irq(board->ioapic, gsi == GSI_PIT ? 2 : gsi, level);
}

void board_pulse_gsi(struct board *board, unsigned gsi)
{
	AUTO_LOCK(&board->device_lock);
	set_gsi(board, gsi, true);
	set_gsi(board, gsi, false);
}

static void line_set(void *opaque, unsigned gsi, bool level)
{
	set_gsi(opaque, gsi, level);
}

static struct irq_line gsi_line(struct board *board, unsigned gsi)
{
	return (struct irq_line){ .set = line_set, .opaque = board, .line = gsi };
}

/* ---- of the devices of devices.c ---- */

/* Each device says when it raises the line and when it lowers it, once. */
static void shared_line_set(void *opaque, unsigned line, bool level)
{
	struct board *board = opaque;

	AUTO_LOCK(&board->line_lock);
	const bool before = board->shared_line[line];
	board->shared_line[line] += level ? 1 : -1u;
	if (before == !!board->shared_line[line])
		return;
	set_gsi(board, GSI_PCI + line, level);
	if (board->has_firmware)
		pirq_line_set(&board->pirq, line, level);
}

struct irq_line board_shared_line(struct board *board, unsigned slot, unsigned pin, unsigned *ret_gsi)
{
	const unsigned line = boot_pci_line(slot, pin);

	*ret_gsi = GSI_PCI + line;
	return (struct irq_line){ .set = shared_line_set, .opaque = board, .line = line };
}

static void send_msi(void *opaque, uint64_t address, uint32_t data)
{
	struct board *board = opaque;
	struct machine *m = board->machine;

	if (board->own_irqchip)
		lapic_bus_msi(board->lapics, address, data);
	else
		m->config.engine->msi(m->vm, address, data);
}

struct msi_sink board_msi(struct board *board)
{
	return (struct msi_sink){ .send = send_msi, .opaque = board };
}

/* INTR of the PIC goes to the boot processor's LINT0. */
static void pic_intr(void *opaque, unsigned line, bool level)
{
	struct board *board = opaque;

	lapic_set_lint(board->machine->vcpu[0].lapic, 0, level);
}

int board_pic_ack(struct board *board)
{
	return pic_pending(board->pic) ? pic_ack(board->pic) : -1;
}

bool board_interrupt_pending(struct board *board, unsigned index)
{
	struct lapic *lapic = board->machine->vcpu[index].lapic;

	return lapic_pending(lapic) >= 0 || (lapic_accepts_pic(lapic) && pic_pending(board->pic));
}

static void lapic_notify(void *opaque, enum lapic_signal signal, uint8_t vector)
{
	struct machine_vcpu *vcpu = opaque;
	const struct engine_ops *ops = vcpu->machine->config.engine;

	if (vcpu->machine->config.virtual_time.on) {
		virtual_notify(vcpu, signal);
		return;
	}
	switch (signal) {
	case LAPIC_SIGNAL_INTR:
	case LAPIC_SIGNAL_EXTINT:
		ops->interrupt(vcpu->engine);
		vcpu_post(vcpu, VCPU_WAKE);
		break;
	case LAPIC_SIGNAL_NMI:
		ops->nmi(vcpu->engine);
		vcpu_post(vcpu, VCPU_WAKE);
		break;
	case LAPIC_SIGNAL_INIT:
		vcpu_post(vcpu, VCPU_INIT);
		ops->kick(vcpu->engine);
		break;
	case LAPIC_SIGNAL_SIPI:
		pthread_mutex_lock(&vcpu->lock);
		vcpu->sipi_vector = vector;
		pthread_mutex_unlock(&vcpu->lock);
		vcpu_post(vcpu, VCPU_SIPI);
		ops->kick(vcpu->engine);
		break;
	case LAPIC_SIGNAL_SMI: break;
	}
}

static uint64_t lapic_tsc_to_ns(void *opaque, uint64_t tsc)
{
	struct machine_vcpu *vcpu = opaque;
	struct machine_clock *clock = vcpu->machine->clock;
	uint64_t now = machine_clock_tsc(clock), guest_now = now + vcpu->tsc_offset, at;

	if (tsc <= guest_now)
		return 0;
	return __builtin_add_overflow(now, tsc - guest_now, &at) ? UINT64_MAX :
								   machine_clock_tsc_to_ns(clock, at);
}

static void lapic_eoi(void *opaque, uint8_t vector)
{
	struct board *board = opaque;

	ioapic_eoi(board->ioapic, vector);
}

/* The register page is each processor's own, at one address: guests that move it lose it. */
static uint64_t lapic_page_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
	struct machine_vcpu *vcpu = machine_current_vcpu();

	return vcpu ? lapic_mmio_read(vcpu->lapic, offset, size_bytes) : UINT64_MAX;
}

static void lapic_page_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct machine_vcpu *vcpu = machine_current_vcpu();

	if (vcpu)
		lapic_mmio_write(vcpu->lapic, offset, size_bytes, value);
}

static int add_lapics(struct board *board)
{
	static const struct bus_ops page_ops = { .read = lapic_page_read,
		.write = lapic_page_write };
	struct machine *m = board->machine;
	const struct lapic_bus_config bus_config = { .time = machine_clock_source(m->clock),
		.eoi = lapic_eoi, .opaque = board };
	int status = lapic_bus_create(&bus_config, &board->lapics);

	for (unsigned i = 0; status == 0 && i < m->vcpu_count; i++) {
		const struct lapic_config config = {
			.id = i,
			.bsp = i == 0,
			.x2apic = x86_has(&m->cpuid.features, X86_F_X2APIC),
			.tsc_deadline = x86_has(&m->cpuid.features, X86_F_TSC_DEADLINE),
			.notify = lapic_notify,
			.tsc_to_ns = lapic_tsc_to_ns,
			.opaque = &m->vcpu[i],
		};
		status = lapic_create(board->lapics, &config, &m->vcpu[i].lapic);
	}
	if (status == 0)
		lapic_set_virtual_wire(m->vcpu[0].lapic);
	if (status == 0)
		status = bus_add(m->bus, BUS_MMIO, BOOT_LAPIC_GPA, GUEST_PAGE_SIZE, "lapic", &page_ops,
			board, NULL);
	return status;
}

static int add_irqchip(struct board *board)
{
	struct machine *m = board->machine;
	const struct pic_config pic_config = { .lock = &board->pic_lock,
		.intr = { .set = pic_intr, .opaque = board } };
	int status = add_lapics(board);
	const struct ioapic_config ioapic_config = { .lapics = board->lapics };

	if (status == 0)
		status = pic_create(&pic_config, &board->pic);
	if (status == 0)
		status = pic_attach(board->pic, m->bus);
	if (status == 0)
		status = ioapic_create(&ioapic_config, &board->ioapic);
	if (status == 0)
		status = ioapic_attach(board->ioapic, m->bus, BOOT_IOAPIC_GPA);
	return status;
}

/* ---- power ---- */

static void pm_sleep(void *opaque, unsigned type)
{
	struct board *board = opaque;

	if (type == ACPI_PM_SLEEP_S5)
		machine_end(board->machine, MACHINE_POWERED_OFF, 0, "the guest powered off");
}

static void request_reset(void *opaque)
{
	struct board *board = opaque;

	machine_end(board->machine, MACHINE_RESET, 0, "the guest reset the machine");
}

static void request_exit(void *opaque, uint8_t status)
{
	struct board *board = opaque;

	machine_end(board->machine, MACHINE_EXITED, status, "the guest exited with status %u", status);
}

static void guest_panicked(void *opaque, uint8_t events)
{
	struct board *board = opaque;

	machine_end(board->machine, MACHINE_PANICKED, 0,
		"the guest's kernel panicked: its console says why");
}

void board_press_power(struct board *board)
{
	acpi_pm_press_power(&board->pm);
}

static int add_power(struct board *board)
{
	struct bus *bus = board->machine->bus;

	board->pm = (struct acpi_pm){
		.lock = &board->device_lock,
		.sci = gsi_line(board, GSI_SCI),
		.time = machine_clock_source(board->machine->clock),
		.sleep = pm_sleep,
		.reset = request_reset,
		.opaque = board,
	};
	board->i8042 = (struct i8042){ .lock = &board->device_lock,
		.reset = request_reset,
		.opaque = board,
		.irq = { gsi_line(board, GSI_KEYBOARD), gsi_line(board, GSI_MOUSE) },
		.plugged = board->has_firmware || board->machine->config.vga };
	board->debug_exit = (struct debug_exit){ .exit = request_exit, .opaque = board };
	board->pvpanic = (struct pvpanic){ .event = guest_panicked, .opaque = board };
	int status = acpi_pm_attach(&board->pm, bus, ACPI_PM_PORT);
	if (status == 0)
		status = i8042_attach(&board->i8042, bus);
	if (status == 0)
		status = debug_exit_attach(&board->debug_exit, bus, DEBUG_EXIT_PORT);
	if (status == 0)
		status = pvpanic_attach(&board->pvpanic, bus, PVPANIC_PORT);
	return status;
}

/* ---- timers ---- */

/* PIT and RTC lose their interrupts while the HPET replaces them. */
static void legacy_timer_set(void *opaque, unsigned gsi, bool level)
{
	struct board *board = opaque;

	if (!board->hpet_legacy)
		set_gsi(board, gsi, level);
}

static void hpet_legacy(void *opaque, bool on)
{
	struct board *board = opaque;

	set_gsi(board, GSI_PIT, false);
	set_gsi(board, GSI_RTC, false);
	board->hpet_legacy = on;
}

static int add_hpet(struct board *board)
{
	const struct hpet_config config = {
		.lock = &board->device_lock,
		.irq = gsi_line(board, 0),
		.routes = HPET_PINS,
		.time = machine_clock_source(board->machine->clock),
		.legacy = hpet_legacy,
		.opaque = board,
	};
	int status = hpet_create(&config, &board->hpet);

	return status < 0 ? status : hpet_attach(board->hpet, board->machine->bus, BOOT_HPET_GPA);
}

static int add_timers(struct board *board)
{
	struct timer_source *time = machine_clock_source(board->machine->clock);
	const struct irq_line pit_line = { legacy_timer_set, board, GSI_PIT };
	const struct irq_line rtc_line = { legacy_timer_set, board, GSI_RTC };
	const struct pit_config pit_config = { .lock = &board->device_lock, .irq = pit_line,
		.time = time };
	const struct rtc_config rtc_config = { .lock = &board->device_lock, .irq = rtc_line,
		.time = time };
	int status = pit_create(&pit_config, &board->pit);

	if (status == 0)
		status = pit_attach(board->pit, board->machine->bus);
	if (status == 0)
		status = rtc_create(&rtc_config, &board->rtc);
	if (status == 0)
		status = rtc_attach(board->rtc, board->machine->bus);
	return status < 0 ? status : add_hpet(board);
}

/* ---- PCI: a host bridge and an empty bus ---- */

struct pci_host *board_pci(struct board *board)
{
	return board->pci;
}

/* Above RAM, as far as the processor has addresses. */
void board_pci_high_window(struct board *board, uint64_t *ret_base, uint64_t *ret_bytes)
{
	const struct guest_memory *memory = board->machine->memory;
	const struct memory_region *last = &memory->region[memory->region_count - 1];
	const uint64_t end = MAX(last->base + last->size_bytes, (uint64_t)BOOT_HOLE_END_GPA);
	const uint64_t limit = BIT(board->machine->cpuid.phys_bits);

	*ret_base = ALIGN_UP(end, HIGH_WINDOW_ALIGN);
	*ret_bytes = *ret_base < limit ? MIN(limit - *ret_base, HIGH_WINDOW_BYTES) : 0;
}

/* One for each port would do; some systems want to keep a few in reserve. */
static unsigned pci_buses(const struct board *board)
{
	return board->machine->config.hotplug_ports ? PCI_BUSES_WITH_PORTS : 1;
}

static int add_pci(struct board *board)
{
	struct pci_host_config config = { .lock = &board->device_lock, .reset = request_reset,
		.opaque = board, .buses = pci_buses(board) };

	if (board->has_firmware) {
		board_firmware_init(&board->firmware, board, board->machine, &board->device_lock);
		config.bridge = &q35_bridge_ops;
		config.bridge_opaque = &board->firmware.q35;
	}
	int status = pci_host_create(&config, &board->pci);

	if (status == 0)
		status = pci_host_attach(board->pci, board->machine->bus);
	/* Firmware chooses the place of the memory window itself. */
	if (status == 0 && board->has_firmware)
		return board_firmware_add(&board->firmware, board->pci, board->rtc);
	if (status == 0)
		status = pci_host_attach_ecam(board->pci, board->machine->bus, BOOT_ECAM_GPA);
	return status;
}

/* ---- the screen ---- */

static int add_vga(struct board *board)
{
	if (!board->machine->config.vga || !board->pci)
		return 0;
	int status = vga_create(board->machine->bus, board->pci, PCI_DEVFN(VGA_SLOT, 0), &board->vga);
	if (status == 0 && !board->has_firmware)
		vga_assign(board->vga, BOOT_VGA_MEMORY_GPA, BOOT_VGA_REGISTERS_GPA);
	return status;
}

static bool draw(void *opaque, struct picture *to)
{
	struct board *board = opaque;

	return vga_draw(board->vga, to) == 0;
}

static void press_key(void *opaque, uint8_t code, bool down)
{
	struct board *board = opaque;

	i8042_key(&board->i8042, code, down);
}

static void move_mouse(void *opaque, int dx, int dy, int dz, uint8_t buttons)
{
	struct board *board = opaque;

	i8042_move(&board->i8042, dx, dy, dz, buttons);
}

bool board_display(struct board *board, struct display *ret_display)
{
	*ret_display = (struct display){
		.draw = draw, .key = press_key, .move = move_mouse, .opaque = board };
	return board->vga;
}

/* ---- the serial port ---- */

static int add_console(struct board *board)
{
	const struct machine_config *config = &board->machine->config;
	const struct uart_config uart_config = {
		.irq = gsi_line(board, GSI_COM1),
		.lock = &board->device_lock,
		.output = config->console_output,
		.room = config->console_room,
		.opaque = config->console_opaque,
		.hold_input = !board->has_firmware, /* which polls */
	};
	int status = uart_create(&uart_config, &board->uart);

	if (status == 0)
		status = uart_attach(board->uart, board->machine->bus, COM1_PORT);
	return status;
}

size_t board_console_input(struct board *board, const uint8_t *bytes, size_t count)
{
	return uart_receive(board->uart, bytes, count);
}

/* ---- ACPI ---- */

static void describe_pci(struct board *board, struct acpi_config *config)
{
	config->pci = true;
	config->ecam_base = BOOT_ECAM_GPA;
	config->pci_last_bus = (uint8_t)(pci_buses(board) - 1);
	config->pci_hotplug = board->machine->config.hotplug_ports;
	config->pci_window_base = BOOT_PCI_WINDOW_GPA;
	config->pci_window_bytes = BOOT_PCI_WINDOW_BYTES;
	board_pci_high_window(board, &config->pci_high_window_base, &config->pci_high_window_bytes);
	for (unsigned i = 0; i < ARRAY_SIZE(config->pci_gsi); i++)
		config->pci_gsi[i] = (uint8_t)(GSI_PCI + i);
}

static void describe_power(struct acpi_config *config)
{
	config->sci_gsi = GSI_SCI;
	config->pm1_event_port = ACPI_PM_PORT + ACPI_PM_EVENT;
	config->pm1_control_port = ACPI_PM_PORT + ACPI_PM_CONTROL;
	config->pm_timer_port = ACPI_PM_PORT + ACPI_PM_TIMER;
	config->pm_timer_32bit = true;
	config->reset_port = ACPI_PM_PORT + ACPI_PM_RESET;
	config->reset_value = ACPI_PM_RESET_VALUE;
	config->sleep_states = BIT(5);
	config->sleep_type[5] = ACPI_PM_SLEEP_S5;
	config->power_button = config->sleep_button = true;
}

void board_describe(struct board *board, struct acpi_config *ret_config)
{
	acpi_config_init(ret_config);
	ret_config->cpu_count = board->machine->vcpu_count;
	ret_config->hpet_base = BOOT_HPET_GPA;
	ret_config->pvpanic_port = PVPANIC_PORT;
	describe_power(ret_config);
	if (board->pci)
		describe_pci(board, ret_config);
	devices_describe(board->machine->devices, ret_config);
	ret_config->keyboard = board->i8042.plugged;
	ret_config->vga = board->vga;
	if (board->has_firmware)
		board_firmware_describe(&board->firmware, ret_config);
}

int board_tables(struct board *board, struct boot_config *boot, struct error *err)
{
	struct acpi_config config;

	board_describe(board, &config);
	board->ecam = (struct boot_map_entry){ BOOT_ECAM_GPA,
		(uint64_t)PCI_ECAM_BUS_BYTES * pci_buses(board), BOOT_MAP_RESERVED };
	boot->reserved = &board->ecam;
	boot->reserved_count = 1;
	return acpi_install(board->machine->memory, &config, &boot->rsdp, err);
}

/* ---- life ---- */

void board_lapic_state(struct board *board, unsigned index, struct x86_lapic *ret_lapic)
{
	memset(ret_lapic, 0, sizeof(*ret_lapic));
	if (!board->own_irqchip)
		return;
	struct lapic_state state;
	lapic_save(board->machine->vcpu[index].lapic, &state);
	ret_lapic->apic_base = state.apic_base;
	memcpy(ret_lapic->reg, state.reg, sizeof(state.reg));
}

int board_create(struct board **ret_board, struct machine *machine, struct error *err)
{
	struct board *board = calloc(1, sizeof(*board));

	if (!board)
		return error_set(err, ENOMEM, "no memory for the board");
	board->machine = machine;
	board->has_firmware = machine->config.boot.firmware.path;
	board->own_irqchip = !(machine->config.engine->caps & ENGINE_CAP_IRQCHIP);
	pthread_mutex_init(&board->device_lock, NULL);
	pthread_mutex_init(&board->pic_lock, NULL);
	pthread_mutex_init(&board->line_lock, NULL);
	pirq_init(&board->pirq, (struct irq_line){ .set = show_pic_input, .opaque = board });
	int status = board->own_irqchip ? add_irqchip(board) : 0;
	if (status == 0)
		status = add_timers(board);
	if (status == 0 && !machine->config.virtio_mmio)
		status = add_pci(board);
	if (status == 0)
		status = add_vga(board);
	if (status == 0)
		status = add_power(board);
	if (status == 0)
		status = add_console(board);
	if (status < 0) {
		board_free(board);
		return error_set_errno(err, -status, "can't build the board");
	}
	*ret_board = board;
	return 0;
}

/* Those with timers first: none fires into what is gone. */
void board_free(struct board *board)
{
	if (!board)
		return;
	struct machine *m = board->machine;
	hpet_free(board->hpet);
	rtc_free(board->rtc);
	pit_free(board->pit);
	for (unsigned i = 0; i < m->vcpu_count; i++) {
		lapic_free(m->vcpu[i].lapic);
		m->vcpu[i].lapic = NULL;
	}
	vga_free(board->vga);
	pci_host_free(board->pci);
	board_firmware_done(&board->firmware);
	uart_free(board->uart);
	ioapic_free(board->ioapic);
	lapic_bus_free(board->lapics);
	pic_free(board->pic);
	pthread_mutex_destroy(&board->device_lock);
	pthread_mutex_destroy(&board->pic_lock);
	pthread_mutex_destroy(&board->line_lock);
	free(board);
}
