/*
 * Builds the decode index from the instruction table: every row's form, and for each opcode map, opcode
 * and ModRM.reg the list of forms to try, most specific first (an exact ModRM byte before a /digit, a
 * named prefix before none, a named REX.W or VEX.L before none, a single opcode before opcode+r).
 *
 * Built once for the process, and constant from then on: it depends on nothing but the table.
 */
#include "isa/x86/index.h"

#include "base/util.h"

#include <pthread.h>
#include <string.h>

enum {
	ROWS = 0
#define ROW(...) +1
#include "isa/x86/rows_all.inc"
#undef ROW
};

static struct x86_form index_forms[ROWS + 1];
static uint16_t index_list[ROWS * 8 + 8];
static struct x86_index index_built = {.forms = index_forms, .list = index_list, .bad_row = -1};
static pthread_once_t index_once = PTHREAD_ONCE_INIT;

/* Does the form belong to this ModRM.reg? */
static bool form_takes_reg(const struct x86_form *form, unsigned reg)
{
	return ((reg << 3 ^ form->modrm_value) & form->modrm_mask & 0x38) == 0;
}

/* Call add() for every slot the form belongs to. */
static void form_each_slot(const struct x86_form *form, unsigned number,
	void (*add)(struct x86_slot *slot, unsigned number))
{
	bool modrm = form->flags & X86_FORM_MODRM;
	for (unsigned i = 0; i < form->opcode_count; i++) {
		struct x86_slot *slots = index_built.slot[form->map][(form->opcode + i) & 0xff];
		for (unsigned reg = 0; reg < (modrm ? 8 : 1); reg++) {
			if (form_takes_reg(form, reg))
				add(&slots[reg], number);
		}
		slots[0].modrm |= modrm;
	}
}

static void slot_count(struct x86_slot *slot, unsigned number)
{
	slot->count++;
}

/* Insert in order of falling rank; rows of the same rank keep the table's order. */
static void slot_insert(struct x86_slot *slot, unsigned number)
{
	uint16_t *list = index_list + slot->first;
	unsigned at = slot->count++;
	for (; at > 0 && index_forms[list[at - 1]].rank < index_forms[number].rank; at--)
		list[at] = list[at - 1];
	list[at] = number;
}

/* Give each slot its part of the list, and set the counts back for slot_insert(). */
static void index_lay_out(void)
{
	struct x86_slot *slots = &index_built.slot[0][0][0];
	unsigned at = 0;
	for (unsigned i = 0; i < sizeof(index_built.slot) / sizeof(*slots); i++) {
		slots[i].first = at;
		at += slots[i].count;
		slots[i].count = 0;
	}
}

static void index_build(void)
{
	for (unsigned i = 0; i < x86_row_count; i++) {
		struct x86_form *form = &index_forms[i];
		if (x86_form_parse(&x86_rows[i], form) < 0) {
			form->opcode_count = 0; /* belongs to no slot */
			if (index_built.bad_row < 0)
				index_built.bad_row = (int)i;
		}
		form->row = i;
		form_each_slot(form, i, slot_count);
	}
	index_lay_out();
	for (unsigned i = 0; i < x86_row_count; i++)
		form_each_slot(&index_forms[i], i, slot_insert);
}

const struct x86_index *x86_index_get(void)
{
	pthread_once(&index_once, index_build);
	return &index_built;
}

uint32_t x86_flags_mask(const char *letters)
{
	uint32_t mask = 0;
	for (; *letters; letters++) {
		switch (*letters) {
		case 'o': mask |= X86_OF; break;
		case 's': mask |= X86_SF; break;
		case 'z': mask |= X86_ZF; break;
		case 'a': mask |= X86_AF; break;
		case 'p': mask |= X86_PF; break;
		case 'c': mask |= X86_CF; break;
		case 'd': mask |= X86_DF; break;
		case 'i': mask |= X86_IF; break;
		case '*': mask |= ~0u; break;
		default: break;
		}
	}
	return mask;
}
