/*
 * --net and --forward: see net_list.h.
 */
#include "vmm/net_list.h"

#include "base/error.h"
#include "base/number.h"
#include "device/virtio/net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>

#define PIECE_MAX 64

static const struct {
	const char *name;
	enum network_kind kind;
	const char *wants; /* what its name is; NULL: it has none */
} kinds[] = {
	{"user", NETWORK_USER, NULL},
	{"tap", NETWORK_TAP, "a tap device"},
	{"bridge", NETWORK_BRIDGE, "a bridge"},
	{"passt", NETWORK_PASST, NULL},
	{"switch", NETWORK_SWITCH, "a switch"},
};

/* The text up to the next `end`; *text goes behind that. False: too long. */
static bool next_piece(const char **text, char end, char piece[PIECE_MAX])
{
	size_t length = strcspn(*text, (const char[]){end, 0});

	if (length >= PIECE_MAX)
		return false;
	memcpy(piece, *text, length);
	piece[length] = 0;
	*text += length + ((*text)[length] == end);
	return true;
}

/* ---- --net ---- */

static int set_name(
	struct network_spec *network, const char *wants, const char *name, struct error *err)
{
	bool is_switch = network->kind == NETWORK_SWITCH;

	if (!*name)
		return error_set(err, EINVAL, "--net wants the name of %s behind the '='", wants);
	if (is_switch ? !switch_name_valid(name) : strlen(name) >= IFNAMSIZ || strchr(name, '/'))
		return error_set(err, EINVAL, "'%s' can't be the name of %s%s", name, wants,
			is_switch ? ": use up to 31 letters, digits, '-', '_' and '.'" : "");
	strcpy(network->name, name);
	return 0;
}

static int set_kind(struct vmm_net *net, char *piece, struct error *err)
{
	char *name = strchr(piece, '=');

	if (name)
		*name++ = 0;
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		if (strcmp(piece, kinds[i].name))
			continue;
		if (name && !kinds[i].wants)
			return error_set(
				err, EINVAL, "--net %s has no name: leave out the '='", piece);
		net->network.kind = kinds[i].kind;
		return kinds[i].wants
			       ? set_name(&net->network, kinds[i].wants, name ? name : "", err)
			       : 0;
	}
	return error_set(err, EINVAL,
		"no network '%s': there are user, tap=NAME, bridge=NAME, passt, switch=NAME and none",
		piece);
}

static int set_mac(struct vmm_net *net, const char *text, struct error *err)
{
	unsigned byte[6];
	char rest;

	if (strlen(text) != 17 || sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x%c", &byte[0], &byte[1],
					  &byte[2], &byte[3], &byte[4], &byte[5], &rest) != 6)
		return error_set(err, EINVAL,
			"'%s' is no MAC address: give one such as 52:54:00:12:34:56", text);
	unsigned any = 0;
	for (unsigned i = 0; i < 6; i++)
		any |= net->mac[i] = (uint8_t)byte[i];
	if (net->mac[0] & 1 || !any)
		return error_set(err, EINVAL,
			"'%s' is no card's MAC address: its first byte must be even", text);
	net->mac_given = true;
	return 0;
}

static int set_number(const char *what, const char *text, uint64_t min, uint64_t max, uint64_t *ret,
	struct error *err)
{
	if (number_parse(text, min, max, ret) == 0)
		return 0;
	return error_set(err, EINVAL, "--net %s=%s: give %u to %u", what, text, (unsigned)min,
		(unsigned)max);
}

static int set_flag(struct vmm_net *net, const char *name, struct error *err)
{
	static const char *const names[] = {"isolated", "no-host", "no-ipv6"};
	bool *flags[] = {&net->network.isolated, &net->network.no_host, &net->network.no_ipv6};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		if (strcmp(name, names[i]))
			continue;
		if (net->network.kind != NETWORK_USER)
			return error_set(err, EINVAL, "'%s' goes with --net user only", name);
		*flags[i] = true;
		return 0;
	}
	return error_set(err, EINVAL,
		"--net knows no '%s': there are mac=, mtu=, queues=, card=, and with user isolated, no-host and no-ipv6",
		name);
}

static int set_detail(struct vmm_net *net, char *piece, struct error *err)
{
	char *value = strchr(piece, '=');
	uint64_t number;
	int status;

	if (!value)
		return set_flag(net, piece, err);
	*value++ = 0;
	if (strcmp(piece, "mac") == 0)
		return set_mac(net, value, err);
	if (strcmp(piece, "mtu") == 0) {
		status = set_number("mtu", value, NETWORK_MTU_MIN, NETWORK_MTU_MAX, &number, err);
		if (status == 0)
			net->network.mtu = (uint16_t)number;
		return status;
	}
	if (strcmp(piece, "card") == 0) {
		net->e1000 = strcmp(value, "e1000") == 0;
		return net->e1000 || strcmp(value, "virtio") == 0
			       ? 0
			       : error_set(err, EINVAL, "card=%s: give virtio or e1000", value);
	}
	if (strcmp(piece, "queues") == 0) {
		status = set_number("queues", value, 1, VIRTIO_NET_PAIRS_MAX, &number, err);
		if (status == 0)
			net->queues = (unsigned)number;
		return status;
	}
	return set_flag(net, piece, err);
}

int vmm_net_list_add(struct vmm_net_list *list, const char *value, struct error *err)
{
	struct vmm_net net = {0};
	char piece[PIECE_MAX];

	if (strcmp(value, "none") == 0) {
		list->none = true;
		return 0;
	}
	if (list->count == VMM_NETS_MAX)
		return error_set(err, EINVAL, "more than %d --net", VMM_NETS_MAX);
	for (bool first = true; first || *value; first = false) {
		if (!next_piece(&value, ',', piece))
			return error_set(
				err, EINVAL, "--net has too long a word in '%.40s...'", value);
		int status = first ? set_kind(&net, piece, err) : set_detail(&net, piece, err);
		if (status < 0)
			return status;
	}
	list->net[list->count++] = net;
	return 0;
}

/* ---- --forward ---- */

static int parse_port(const char *text, const char *all, uint16_t *ret_port, struct error *err)
{
	uint64_t number;

	if (number_parse(text, 1, 65535, &number) < 0)
		return error_set(err, EINVAL,
			"--forward '%s': '%s' is no port; give [udp:][ADDRESS:]PORT:GUESTPORT, such as 8080:80",
			all, text);
	*ret_port = (uint16_t)number;
	return 0;
}

int vmm_net_list_forward(struct vmm_net_list *list, const char *value, struct error *err)
{
	struct network_forward f = {.host.s_addr = htonl(INADDR_LOOPBACK)};
	const char *all = value, *colon = strchr(value, ':');
	char piece[PIECE_MAX];

	if (list->forward_count == NETWORK_FORWARDS_MAX)
		return error_set(err, EINVAL, "more than %d --forward", NETWORK_FORWARDS_MAX);
	if (strncmp(value, "udp:", 4) == 0 || strncmp(value, "tcp:", 4) == 0) {
		f.udp = value[0] == 'u';
		value += 4;
		colon = strchr(value, ':');
	}
	/* Two colons: an address comes first. */
	if (colon && strchr(colon + 1, ':')) {
		if (!next_piece(&value, ':', piece) ||
			(strcmp(piece, "*") ? inet_pton(AF_INET, piece, &f.host) != 1
					    : (f.host.s_addr = 0)))
			return error_set(err, EINVAL,
				"--forward '%s': '%s' is no IPv4 address of this host (* stands for all)",
				all, piece);
	}
	if (!next_piece(&value, ':', piece))
		piece[0] = 0;
	int status = parse_port(piece, all, &f.host_port, err);
	if (status == 0)
		status = parse_port(value, all, &f.guest_port, err);
	for (unsigned i = 0; status == 0 && i < list->forward_count; i++)
		if (list->forward[i].udp == f.udp && list->forward[i].host_port == f.host_port &&
			list->forward[i].host.s_addr == f.host.s_addr)
			return error_set(err, EINVAL, "--forward '%s': the port is forwarded already", all);
	if (status == 0)
		list->forward[list->forward_count++] = f;
	return status;
}

/* ---- both ---- */

int vmm_net_list_finish(struct vmm_net_list *list, struct error *err)
{
	if (list->none && list->count)
		return error_set(err, EINVAL, "--net none goes with no other --net");
	if (!list->none && !list->count)
		list->net[list->count++].network.kind = NETWORK_USER;
	if (!list->forward_count)
		return 0;
	for (unsigned i = 0; i < list->count; i++) {
		struct network_spec *network = &list->net[i].network;
		if (network->kind != NETWORK_USER && network->kind != NETWORK_PASST)
			continue;
		memcpy(network->forward, list->forward, sizeof(list->forward));
		network->forward_count = list->forward_count;
		return 0;
	}
	return error_set(err, EINVAL,
		"--forward needs --net user or passt: on other networks the guest's ports are reached at its address");
}
