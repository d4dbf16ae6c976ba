/*
 * The screen: see the header.
 */
#include "vmm/screen.h"

#include <stdio.h>

#include "backend/screenshot.h"
#include "backend/vnc.h"
#include "base/error.h"
#include "base/loop.h"
#include "vmm/run.h"

struct opening {
	struct vmm_screen *screen;
	int status;
	struct error *err;
};

/* On the loop's thread, where the server lives. */
static void open_there(void *opaque)
{
	struct opening *opening = opaque;
	struct vmm_screen *screen = opening->screen;

	opening->status = vnc_open(&screen->vnc, screen->io, screen->config->vnc, screen->config->machine.name,
		NULL, opening->err);
}

int vmm_screen_open(
	struct vmm_screen *screen, const struct vmm_config *config, struct loop *io, struct error *err)
{
	struct opening opening = {.screen = screen, .err = err};

	*screen = (struct vmm_screen){.config = config, .io = io};
	if (config->vnc)
		loop_invoke(io, open_there, &opening);
	return opening.status;
}

static void close_there(void *opaque)
{
	vnc_close(opaque);
}

void vmm_screen_close(struct vmm_screen *screen)
{
	if (screen->vnc)
		loop_invoke(screen->io, close_there, screen->vnc);
	screen->vnc = NULL;
}

void vmm_screen_enter(struct vmm_screen *screen, struct machine *machine)
{
	struct display display;

	if (screen->vnc && machine_display(machine, &display))
		vnc_show(screen->vnc, &display);
}

void vmm_screen_leave(struct vmm_screen *screen, struct machine *machine)
{
	const char *path = screen->config->screenshot;
	struct display display;
	struct error err = {0};

	if (screen->vnc)
		vnc_show(screen->vnc, NULL);
	if (path && machine_display(machine, &display) && screenshot_write(path, &display, &err) < 0)
		fprintf(stderr, "lodge: %s\n", err.text);
}
