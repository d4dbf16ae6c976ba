/*
 * The two 8259A interrupt controllers: see pic.h.
 */
#include "device/irq/pic.h"
#include "base/cleanup.h"
#include <errno.h>
#include <stdlib.h>

#define CASCADE	      2
#define ELCR_MASTER   0xf8 /* inputs 0, 1 and 2 are always edge-triggered */
#define ELCR_SLAVE    0xde /* 8 and 13 too */
#define ICW1_INIT     0x10
#define ICW1_SINGLE   0x02
#define ICW1_ICW4     0x01
#define ICW4_AUTO_EOI 0x02
#define OCW3_SELECT   0x08

struct pic {
	struct pic_config config;
	struct pic_state s;
	bool intr;
};

/* The unit of service that is highest after `lowest`, or -1. */
static int highest(const struct pic_chip_state *chip, uint8_t set)
{
	for (unsigned i = 1; i <= 8; i++) {
		unsigned input = (chip->lowest + i) & 7;
		if (set >> input & 1)
			return (int)input;
	}
	return -1;
}

static unsigned rank(const struct pic_chip_state *chip, unsigned input)
{
	return (input - chip->lowest - 1) & 7;
}

/* The input to be served now, or -1. */
static int pending_input(const struct pic_chip_state *chip)
{
	int request = highest(chip, chip->irr & (uint8_t)~chip->imr);
	uint8_t in_service = chip->isr;

	if (request < 0 || chip->init_step)
		return -1;
	if (chip->special_mask)
		in_service &= (uint8_t)~chip->imr;
	int serving = highest(chip, in_service);
	if (serving >= 0 && rank(chip, (unsigned)serving) <= rank(chip, (unsigned)request))
		return -1;
	return request;
}

static void set_input(struct pic_chip_state *chip, unsigned input, bool level)
{
	uint8_t bit = (uint8_t)(1u << input);
	bool was = chip->lines & bit;

	chip->lines = (uint8_t)(level ? chip->lines | bit : chip->lines & ~bit);
	if (chip->elcr & bit)
		chip->irr = (uint8_t)(level ? chip->irr | bit : chip->irr & ~bit);
	else if (level && !was)
		chip->irr |= bit;
	else if (!level)
		chip->irr &= (uint8_t)~bit;
}

static void update(struct pic *pic)
{
	set_input(&pic->s.chip[0], CASCADE, pending_input(&pic->s.chip[1]) >= 0);
	/* The cascade follows the slave's output also while it is high: several slave inputs in turn. */
	if (pending_input(&pic->s.chip[1]) >= 0)
		pic->s.chip[0].irr |= 1u << CASCADE;
	bool intr = pending_input(&pic->s.chip[0]) >= 0;
	if (intr == pic->intr)
		return;
	pic->intr = intr;
	irq_line_set(&pic->config.intr, intr);
}

void pic_set_irq(struct pic *pic, unsigned input, bool level)
{
	AUTO_LOCK(pic->config.lock);
	if (input >= PIC_INPUTS || input == CASCADE)
		return;
	set_input(&pic->s.chip[input / 8], input % 8, level);
	update(pic);
}

/* Acknowledge on one chip; returns the input, 7 if spurious. */
static unsigned chip_ack(struct pic_chip_state *chip)
{
	int input = pending_input(chip);

	if (input < 0)
		return 7;
	uint8_t bit = (uint8_t)(1u << input);
	if (!(chip->elcr & bit))
		chip->irr &= (uint8_t)~bit;
	if (!chip->auto_eoi)
		chip->isr |= bit;
	else if (chip->rotate_on_auto_eoi)
		chip->lowest = (uint8_t)input;
	return (unsigned)input;
}

uint8_t pic_ack(struct pic *pic)
{
	AUTO_LOCK(pic->config.lock);
	struct pic_chip_state *chip = &pic->s.chip[0];
	unsigned input = chip_ack(chip);

	if (input == CASCADE) {
		chip = &pic->s.chip[1];
		input = chip_ack(chip);
	}
	update(pic);
	return (uint8_t)(chip->vector_base + input);
}

bool pic_pending(struct pic *pic)
{
	AUTO_LOCK(pic->config.lock);
	return pic->intr;
}

/* ---- registers ---- */

static void icw1_write(struct pic_chip_state *chip, uint8_t value)
{
	uint8_t elcr = chip->elcr, lines = chip->lines;

	*chip = (struct pic_chip_state){.elcr = elcr,
		.lines = lines,
		.lowest = 7,
		.init_step = 2,
		.vector_base = chip->vector_base};
	chip->irr = lines & elcr; /* edges are forgotten, levels stand */
	chip->needs_icw4 = value & ICW1_ICW4;
	chip->single = value & ICW1_SINGLE;
}

static void icw_next_write(struct pic_chip_state *chip, uint8_t value)
{
	switch (chip->init_step) {
	case 2:
		chip->vector_base = value & 0xf8;
		chip->init_step = !chip->single ? 3 : chip->needs_icw4 ? 4 : 0;
		break;
	case 3: chip->init_step = chip->needs_icw4 ? 4 : 0; break;
	default:
		chip->auto_eoi = value & ICW4_AUTO_EOI;
		chip->init_step = 0;
		break;
	}
}

/* Bits 7:5 rotate, specific, EOI; bits 2:0 the level. */
static void ocw2_write(struct pic_chip_state *chip, uint8_t value)
{
	unsigned level = value & 7;
	int serving = highest(chip, chip->isr);

	switch (value >> 5) {
	case 0: chip->rotate_on_auto_eoi = false; break;
	case 4: chip->rotate_on_auto_eoi = true; break;
	case 1: /* non-specific EOI */
	case 5: /* and rotate */
		if (serving < 0)
			break;
		chip->isr &= (uint8_t) ~(1u << serving);
		if (value >> 5 == 5)
			chip->lowest = (uint8_t)serving;
		break;
	case 3: chip->isr &= (uint8_t) ~(1u << level); break;
	case 7:
		chip->isr &= (uint8_t) ~(1u << level);
		chip->lowest = (uint8_t)level;
		break;
	case 6: chip->lowest = (uint8_t)level; break;
	default: break;
	}
}

static void ocw3_write(struct pic_chip_state *chip, uint8_t value)
{
	if (value & 0x02)
		chip->read_isr = value & 0x01;
	if (value & 0x04)
		chip->poll = true;
	if (value & 0x40)
		chip->special_mask = value & 0x20;
}

static void chip_write(struct pic *pic, struct pic_chip_state *chip, uint64_t offset, uint8_t value)
{
	if (offset == 0) {
		if (value & ICW1_INIT)
			icw1_write(chip, value);
		else if (value & OCW3_SELECT)
			ocw3_write(chip, value);
		else
			ocw2_write(chip, value);
	} else if (chip->init_step) {
		icw_next_write(chip, value);
	} else {
		chip->imr = value;
	}
	update(pic);
}

static uint8_t chip_poll(struct pic *pic, struct pic_chip_state *chip)
{
	bool any = pending_input(chip) >= 0;
	unsigned input = chip_ack(chip);

	chip->poll = false;
	update(pic);
	return any ? (uint8_t)(0x80 | input) : 0;
}

static uint8_t chip_read(struct pic *pic, struct pic_chip_state *chip, uint64_t offset)
{
	if (chip->poll)
		return chip_poll(pic, chip);
	if (offset == 1)
		return chip->imr;
	return chip->read_isr ? chip->isr : chip->irr;
}

static uint64_t master_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
	struct pic *pic = opaque;

	return chip_read(pic, &pic->s.chip[0], offset);
}

static void master_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct pic *pic = opaque;

	chip_write(pic, &pic->s.chip[0], offset, (uint8_t)value);
}

static uint64_t slave_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
	struct pic *pic = opaque;

	return chip_read(pic, &pic->s.chip[1], offset);
}

static void slave_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct pic *pic = opaque;

	chip_write(pic, &pic->s.chip[1], offset, (uint8_t)value);
}

static uint64_t elcr_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
	struct pic *pic = opaque;

	return pic->s.chip[offset & 1].elcr;
}

static void elcr_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
	struct pic *pic = opaque;

	struct pic_chip_state *chip = &pic->s.chip[offset & 1];

	chip->elcr = (uint8_t)value & (offset & 1 ? ELCR_SLAVE : ELCR_MASTER);
	/* A level-triggered request is its line. */
	chip->irr = (uint8_t)((chip->irr & ~chip->elcr) | (chip->lines & chip->elcr));
	update(pic);
}

int pic_create(const struct pic_config *config, struct pic **ret_pic)
{
	struct pic *pic = calloc(1, sizeof(*pic));

	if (!pic)
		return -ENOMEM;
	pic->config = *config;
	for (unsigned i = 0; i < 2; i++)
		pic->s.chip[i] = (struct pic_chip_state){.lowest = 7, .imr = 0xff};
	*ret_pic = pic;
	return 0;
}

void pic_free(struct pic *pic)
{
	free(pic);
}

int pic_attach(struct pic *pic, struct bus *bus)
{
	static const struct bus_ops master = {
		.read = master_read, .write = master_write, .access_max_bytes = 1};
	static const struct bus_ops slave = {
		.read = slave_read, .write = slave_write, .access_max_bytes = 1};
	static const struct bus_ops elcr = {
		.read = elcr_read, .write = elcr_write, .access_max_bytes = 1};
	pthread_mutex_t *lock = pic->config.lock;
	int status = bus_add(bus, BUS_PIO, PIC_MASTER_PORT, 2, "pic-master", &master, pic, lock);

	if (status == 0)
		status = bus_add(bus, BUS_PIO, PIC_SLAVE_PORT, 2, "pic-slave", &slave, pic, lock);
	if (status == 0)
		status = bus_add(bus, BUS_PIO, PIC_ELCR_PORT, 2, "pic-elcr", &elcr, pic, lock);
	return status;
}

void pic_save(struct pic *pic, struct pic_state *ret_state)
{
	AUTO_LOCK(pic->config.lock);
	*ret_state = pic->s;
}

int pic_load(struct pic *pic, const struct pic_state *state)
{
	AUTO_LOCK(pic->config.lock);
	for (unsigned i = 0; i < 2; i++)
		if (state->chip[i].lowest > 7 || state->chip[i].init_step > 4 ||
			state->chip[i].init_step == 1 || (state->chip[i].vector_base & 7))
			return -EINVAL;
	pic->s = *state;
	update(pic);
	return 0;
}
