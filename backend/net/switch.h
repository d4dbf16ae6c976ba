/*
 * What the ports of a virtual switch say to each other (docs/networks.md, "The switch's protocol"): datagrams of a header
 * and a frame. Here for the switch itself, and for its fuzzer.
 */
#ifndef LODGE_BACKEND_NET_SWITCH_H
#define LODGE_BACKEND_NET_SWITCH_H

#include "device/net.h"

#include <stddef.h>
#include <stdint.h>

#define SWITCH_MAGIC	    0x3157534cu /* "LSW1" */
#define SWITCH_HEADER_BYTES 24 /* u32 magic, u64 sender's port, net_offload; little endian */

struct switch_net;

/* One datagram, as it came from a socket; `datagram` is changed. */
void switch_input(struct switch_net *s, uint8_t *datagram, size_t bytes);
/* The network of it and back. */
struct switch_net *switch_of(struct net *net);
/* How many others it knows. */
unsigned switch_peers(const struct switch_net *s);

#endif
