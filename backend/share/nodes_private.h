/*
 * What nodes.c and node_fds.c have of each other.
 */
#ifndef LODGE_BACKEND_SHARE_NODES_PRIVATE_H
#define LODGE_BACKEND_SHARE_NODES_PRIVATE_H

#include "backend/share/internal.h"

/* ---- nodes.c ---- */

struct node_key nodes_key_of(const struct statx *stat);
/* The same file, also where neither is held open, so that the number may have gone to another. */
bool nodes_same_life(const struct node_key *a, const struct node_key *b);
/* Give a reference back. With the lock held. */
void nodes_put(struct nodes *nodes, struct node *node);

/* ---- node_fds.c; all but the last with the lock held ---- */

/* Keep the node's descriptor, which it has; and no longer. */
void nodes_pin(struct nodes *nodes, struct node *node);
void nodes_unpin(struct nodes *nodes, struct node *node);
/* The node's descriptor, which has no pin, is no more to be closed for want of others. */
void nodes_unlist(struct nodes *nodes, struct node *node);
/* Pin the node's descriptor, after opening it if need be. The caller has a reference. Errors: -ESTALE, open's. */
MUST_CHECK int nodes_pin_fd(struct nodes *nodes, struct node *node);

#endif
