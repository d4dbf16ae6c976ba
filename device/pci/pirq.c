/*
 * Routing of PCI interrupt lines to PIC inputs: see the header.
 */
#include "device/pci/pirq.h"

#include "base/util.h"

/* What is both lowered and raised is lowered first: an edge for whom it is new. */
static void show(struct pirq *pirq)
{
	uint16_t now = pirq->own;

	for (unsigned i = 0; i < PIRQ_LINES; i++)
		if (pirq->line[i] && pirq->route[i] >= 0)
			now |= (uint16_t)(1u << pirq->route[i]);
	const uint16_t down = pirq->shown & ~now, up = now & ~pirq->shown;

	pirq->shown = now;
	for (unsigned input = 0; input < 16; input++)
		if (down >> input & 1)
			pirq->out.set(pirq->out.opaque, input, false);
	for (unsigned input = 0; input < 16; input++)
		if (up >> input & 1)
			pirq->out.set(pirq->out.opaque, input, true);
}

void pirq_init(struct pirq *pirq, struct irq_line out)
{
	*pirq = (struct pirq){.out = out};
	for (unsigned i = 0; i < PIRQ_LINES; i++)
		pirq->route[i] = -1;
}

void pirq_own_set(struct pirq *pirq, unsigned input, bool level)
{
	const uint16_t bit = (uint16_t)(1u << (input & 15));

	pirq->own = (uint16_t)(level ? pirq->own | bit : pirq->own & ~bit);
	show(pirq);
}

void pirq_line_set(struct pirq *pirq, unsigned line, bool level)
{
	pirq->line[line % PIRQ_LINES] = level;
	show(pirq);
}

void pirq_route_set(struct pirq *pirq, const int route[PIRQ_LINES])
{
	for (unsigned i = 0; i < PIRQ_LINES; i++)
		pirq->route[i] = route[i] >= 0 && route[i] < 16 ? route[i] : -1;
	show(pirq);
}
