/*
 * What the VGA shows: its registers and memory as a picture. See vga.h.
 *
 * All positions are taken modulo the memory's size, whatever the registers say.
 */
#include "device/display/vga_private.h"

#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"

#define BLANK_WIDTH  640
#define BLANK_HEIGHT 400
#define BLINK_CURSOR 0x20

static uint8_t memory_at(const struct vga *vga, uint64_t offset)
{
	return vga->memory[offset & (VGA_MEMORY_BYTES - 1)];
}

/* ---- colours ---- */

static uint32_t dac_colour(const struct vga *vga, uint8_t index)
{
	const uint8_t *rgb = &vga->dac[3 * (index & vga->dac_mask)];
	uint32_t colour = 0;

	for (unsigned i = 0; i < 3; i++) {
		uint32_t c = rgb[i];

		if (!(vga->dispi[DISPI_ENABLE] & DISPI_DAC_8BIT))
			c = (c & 0x3f) << 2 | (c & 0x3f) >> 4;
		colour = colour << 8 | c;
	}
	return colour;
}

/* One of 16, through the attribute controller's palette. */
static uint32_t attr_colour(const struct vga *vga, unsigned index)
{
	uint8_t colour = vga->attr[index & vga->attr[18] & 15];

	if (vga->attr[16] & 0x80)
		colour = (uint8_t)((colour & 0x0f) | (vga->attr[20] & 3) << 4);
	return dac_colour(vga, (uint8_t)((colour & 0x3f) | (vga->attr[20] & 0x0c) << 4));
}

/* ---- geometry ---- */

static unsigned shown_lines(const struct vga *vga)
{
	const uint8_t over = vga->crtc[7];

	return 1 + (vga->crtc[18] | (over & 2u) << 7 | (over & 0x40u) << 3);
}

static unsigned shown_characters(const struct vga *vga)
{
	return 1u + vga->crtc[1];
}

static unsigned start_address(const struct vga *vga)
{
	return (unsigned)vga->crtc[12] << 8 | vga->crtc[13];
}

static unsigned cell_lines(const struct vga *vga)
{
	return 1u + (vga->crtc[9] & 0x1f);
}

/* ---- text ---- */

struct text_cell {
	uint32_t ink, paper;
	uint64_t font; /* of its character, in memory */
	unsigned columns;
	bool extend; /* the ninth column repeats the eighth */
	bool cursor;
};

static uint64_t font_base(const struct vga *vga, bool second)
{
	const uint8_t r = vga->seq[3];
	const unsigned map = second ? (r >> 2 & 3) | (r >> 3 & 4) : (r & 3) | (r >> 2 & 4);

	/* Maps 0 to 3 lie 16 KiB apart, 4 to 7 between them. */
	return 4ull * ((map & 3) * 0x4000u + (map >> 2) * 0x2000u) + 2;
}

static struct text_cell text_cell(const struct vga *vga, unsigned place, unsigned columns)
{
	const uint8_t character = memory_at(vga, 4ull * place), attribute = memory_at(vga, 4ull * place + 1);
	const bool blink = vga->attr[16] & 8;
	const unsigned cursor = (unsigned)vga->crtc[14] << 8 | vga->crtc[15];

	return (struct text_cell){
		.ink = attr_colour(vga, attribute & 15),
		.paper = attr_colour(vga, attribute >> 4 & (blink ? 7 : 15)),
		.font = font_base(vga, attribute & 8) + 4ull * 32 * character,
		.columns = columns,
		.extend = (vga->attr[16] & 4) && (character & 0xe0) == 0xc0,
		.cursor = place == cursor && !(vga->crtc[10] & BLINK_CURSOR),
	};
}

static void draw_cell(const struct vga *vga, const struct text_cell *cell, const struct picture *to, unsigned x,
	unsigned y, unsigned lines)
{
	const unsigned first = vga->crtc[10] & 0x1f, last = vga->crtc[11] & 0x1f;

	for (unsigned line = 0; line < lines && y + line < to->height; line++) {
		uint32_t *row = to->pixels + (uint64_t)(y + line) * to->width + x;
		const uint8_t bits = memory_at(vga, cell->font + 4ull * line);
		const bool cursor = cell->cursor && line >= first && line <= last;

		for (unsigned column = 0; column < cell->columns; column++) {
			const bool set = column < 8 ? bits >> (7 - column) & 1 : cell->extend && (bits & 1);

			row[column] = set || cursor ? cell->ink : cell->paper;
		}
	}
}

static int draw_text(const struct vga *vga, struct picture *to)
{
	const unsigned columns = vga->seq[1] & 1 ? 8 : 9, lines = cell_lines(vga);
	const unsigned width = MIN(shown_characters(vga), PICTURE_SIDE_MAX / 9), height = shown_lines(vga);
	const unsigned pitch = 2u * vga->crtc[19];
	int status = picture_resize(to, width * columns, MIN(height, PICTURE_SIDE_MAX));

	for (unsigned y = 0; status == 0 && y < to->height; y += lines) {
		for (unsigned x = 0; x < width; x++) {
			const unsigned place = start_address(vga) + y / lines * pitch + x;
			const struct text_cell cell = text_cell(vga, place, columns);

			draw_cell(vga, &cell, to, x * columns, y, lines);
		}
	}
	return status;
}

/* ---- graphics at the legacy addresses ---- */

static uint32_t planar_pixel(const struct vga *vga, uint64_t line, unsigned x)
{
	unsigned index = 0;

	for (unsigned plane = 0; plane < 4; plane++)
		index |= (memory_at(vga, 4 * (line + x / 8) + plane) >> (7 - x % 8) & 1u) << plane;
	return attr_colour(vga, index);
}

static int draw_graphics(const struct vga *vga, struct picture *to)
{
	const bool bytes = vga->gfx[5] & 0x40; /* 256 colours */
	const unsigned repeat = cell_lines(vga) << (vga->crtc[9] >> 7), height = shown_lines(vga);
	const unsigned width = 8 * shown_characters(vga) / (bytes ? 2 : 1);
	const uint64_t pitch = 2ull * vga->crtc[19];
	int status = picture_resize(to, MIN(width, PICTURE_SIDE_MAX), MIN(MAX(height / repeat, 1u), PICTURE_SIDE_MAX));

	for (unsigned y = 0; status == 0 && y < to->height; y++) {
		const uint64_t line = start_address(vga) + y * pitch;
		uint32_t *row = to->pixels + (uint64_t)y * to->width;

		for (unsigned x = 0; x < to->width; x++)
			row[x] = bytes ? dac_colour(vga, memory_at(vga, 4 * line + x)) : planar_pixel(vga, line, x);
	}
	return status;
}

/* ---- linear frame buffers ---- */

/* `count` bytes from `at` on, which wrap at the memory's end: in `room` then. */
static const uint8_t *linear_bytes(const struct vga *vga, uint64_t at, unsigned count, uint8_t *room)
{
	const uint64_t first = VGA_MEMORY_BYTES - (at & (VGA_MEMORY_BYTES - 1));
	const uint8_t *bytes = vga->memory + (at & (VGA_MEMORY_BYTES - 1));

	if (count <= first)
		return bytes;
	memcpy(room, bytes, first);
	memcpy(room + first, vga->memory, count - first);
	return room;
}

static uint32_t colour15(uint32_t v)
{
	return (v >> 10 & 31) << 19 | (v >> 5 & 31) << 11 | (v & 31) << 3;
}

static uint32_t colour16(uint32_t v)
{
	return (v >> 11 & 31) << 19 | (v >> 5 & 63) << 10 | (v & 31) << 3;
}

static void linear_row(const uint8_t *from, unsigned bits, const uint32_t palette[256], uint32_t *row, unsigned width)
{
	for (unsigned x = 0; x < width; x++) {
		switch (bits) {
		case 8: row[x] = palette[from[x]]; break;
		case 15: row[x] = colour15(load_le16(from + 2 * x)); break;
		case 16: row[x] = colour16(load_le16(from + 2 * x)); break;
		case 24: row[x] = load_le16(from + 3 * x) | (uint32_t)from[3 * x + 2] << 16; break;
		default: row[x] = load_le32(from + 4 * x) & 0xffffff; break;
		}
	}
}

static int draw_linear(const struct vga *vga, struct picture *to)
{
	const uint16_t *r = vga->dispi;
	const unsigned bits = vga_pixel_bits(vga);
	const uint64_t pitch = (uint64_t)r[DISPI_VIRT_WIDTH] * bits / 8;
	uint8_t room[DISPI_X_MOST * 4];
	uint32_t palette[256];
	int status = picture_resize(to, r[DISPI_XRES], r[DISPI_YRES]);

	for (unsigned i = 0; i < 256; i++)
		palette[i] = dac_colour(vga, (uint8_t)i);
	for (unsigned y = 0; status == 0 && y < to->height; y++) {
		const uint64_t line = (r[DISPI_Y_OFFSET] + (uint64_t)y) * pitch + (uint64_t)r[DISPI_X_OFFSET] * bits / 8;

		linear_row(linear_bytes(vga, line, to->width * bits / 8, room), r[DISPI_BPP], palette,
			to->pixels + (uint64_t)y * to->width, to->width);
	}
	return status;
}

static int draw_blank(struct picture *to)
{
	int status = picture_resize(to, BLANK_WIDTH, BLANK_HEIGHT);

	if (status == 0)
		memset(to->pixels, 0, sizeof(*to->pixels) * BLANK_WIDTH * BLANK_HEIGHT);
	return status;
}

int vga_draw(struct vga *vga, struct picture *to)
{
	AUTO_LOCK(&vga->lock);
	if (vga_is_linear(vga) && vga->dispi[DISPI_XRES] && vga->dispi[DISPI_YRES])
		return draw_linear(vga, to);
	if (!(vga->attr_index & 0x20) || (vga->seq[1] & 0x20)) /* the screen is off */
		return draw_blank(to);
	return vga->gfx[6] & 1 ? draw_graphics(vga, to) : draw_text(vga, to);
}
