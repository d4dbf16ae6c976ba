/*
 * The networks that a machine's cards can be on, and how one is described. Which is which, for people: docs/networks.md.
 *
 * Threads: open and close by the owner while the loop is not running, or on its thread; the network's calls as
 * device/net.h says.
 */
#ifndef LODGE_BACKEND_NET_NETWORK_H
#define LODGE_BACKEND_NET_NETWORK_H

#include "base/util.h"
#include "device/net.h"

#include <netinet/in.h>

#define NETWORK_FORWARDS_MAX 64
#define NETWORK_NAME_MAX     32 /* of a tap or bridge (15), or of a switch; with its end */
#define NETWORK_MTU_DEFAULT  1500
#define NETWORK_MTU_MIN	     576
#define NETWORK_MTU_MAX	     65520

struct error;
struct loop;

enum network_kind {
	NETWORK_NONE,
	NETWORK_USER,	/* NAT in this process (libslirp) */
	NETWORK_TAP,	/* a tap device by its name */
	NETWORK_BRIDGE, /* a tap of our own on a bridge */
	NETWORK_PASST,	/* NAT in a process of its own (passt) */
	NETWORK_SWITCH, /* the machines of one user on a subnet of their own */
};

struct network_forward { /* a port of the host is a port of the guest's */
	bool udp;
	struct in_addr host;
	uint16_t host_port, guest_port;
};

struct network_spec {
	enum network_kind kind;
	char name[NETWORK_NAME_MAX];
	uint16_t mtu;  /* 0: the network's own */
	bool isolated; /* USER: nothing leaves but answers to forwards */
	bool no_host;  /* USER: this host's loopback can't be reached */
	bool no_ipv6;  /* USER */
	unsigned forward_count;
	struct network_forward forward[NETWORK_FORWARDS_MAX];
};

/* Errors: with a line for people that says what to do. */
MUST_CHECK int network_open(const struct network_spec *spec, struct loop *loop,
	struct net **ret_net, struct error *err);

/* The same, by kind. */
MUST_CHECK int user_open(const struct network_spec *spec, struct loop *loop, struct net **ret_net,
	struct error *err);
MUST_CHECK int tap_open(const struct network_spec *spec, struct loop *loop, struct net **ret_net,
	struct error *err);
MUST_CHECK int passt_open(const struct network_spec *spec, struct loop *loop, struct net **ret_net,
	struct error *err);
MUST_CHECK int switch_open(const struct network_spec *spec, struct loop *loop, struct net **ret_net,
	struct error *err);

/* May it be the name of a switch: letters, digits, '-', '_' and '.', not first a '.'? */
bool switch_name_valid(const char *name);

/* Who has this port of the host open, such as "nginx (process 123)"; false: not to be seen. */
bool port_owner(bool udp, uint16_t port, char *ret_text, size_t size);

static inline void net_close(struct net *net) /* NULL is allowed */
{
	if (net)
		net->ops->close(net);
}

#endif
