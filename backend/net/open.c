/*
 * Opening a network by its description: see network.h.
 */
#include "backend/net/network.h"

#include "base/error.h"

#include <errno.h>

int network_open(
	const struct network_spec *spec, struct loop *loop, struct net **ret_net, struct error *err)
{
	switch (spec->kind) {
	case NETWORK_USER: return user_open(spec, loop, ret_net, err);
	case NETWORK_TAP:
	case NETWORK_BRIDGE: return tap_open(spec, loop, ret_net, err);
	case NETWORK_PASST: return passt_open(spec, loop, ret_net, err);
	case NETWORK_SWITCH: return switch_open(spec, loop, ret_net, err);
	default: return error_set(err, EINVAL, "no such network");
	}
}
