/*
 * lodge run --virtio: how the guest gets at its virtio devices, and what they do not offer.
 */
#include "base/util.h"
#include "cli/cli.h"
#include "device/virtio/virtio.h"
#include <errno.h>
#include <string.h>

static const struct {
	const char *name;
	bool mmio;
	uint64_t features_off;
} switches[] = {
	{ "pci", false, 0 },
	{ "mmio", true, 0 },
	{ "split", false, VIRTIO_F_RING_PACKED },
	{ "noevent", false, VIRTIO_F_EVENT_IDX },
	{ "noindirect", false, VIRTIO_F_INDIRECT_DESC },
};

static int set_switch(struct virtio_options *options, const char *name, size_t length)
{
	for (size_t i = 0; i < ARRAY_SIZE(switches); i++) {
		if (strlen(switches[i].name) != length || memcmp(switches[i].name, name, length))
			continue;
		options->mmio |= switches[i].mmio;
		options->features_off |= switches[i].features_off;
		return 0;
	}
	return -EINVAL;
}

int cli_parse_virtio(const char *text, struct virtio_options *ret_options)
{
	*ret_options = (struct virtio_options){ 0 };
	for (;;) {
		const size_t length = strcspn(text, ",");

		if (set_switch(ret_options, text, length) < 0)
			return -EINVAL;
		if (!text[length])
			return 0;
		text += length + 1;
	}
}
