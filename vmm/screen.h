/*
 * The screen of the machine that vmm_run() runs: its VNC server, which stays while machines come and go, and the screenshot
 * of the end.
 */
#ifndef LODGE_VMM_SCREEN_H
#define LODGE_VMM_SCREEN_H

#include "base/util.h"

struct error;
struct loop;
struct machine;
struct vmm_config;
struct vnc;

struct vmm_screen {
	const struct vmm_config *config;
	struct loop *io;
	struct vnc *vnc; /* NULL: none */
};

/* The loop runs. Errors: with a line for people; close it all the same. */
MUST_CHECK int vmm_screen_open(
	struct vmm_screen *screen, const struct vmm_config *config, struct loop *io, struct error *err);
void vmm_screen_close(struct vmm_screen *screen);

/* A machine begins, or has ended and will be freed. */
void vmm_screen_enter(struct vmm_screen *screen, struct machine *machine);
void vmm_screen_leave(struct vmm_screen *screen, struct machine *machine);

#endif
