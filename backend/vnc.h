/*
 * A VNC server for a display: the Remote Framebuffer Protocol 3.3 to 3.8 (RFC 6143), encodings Raw and ZRLE, the
 * pseudo-encodings DesktopSize and QEMU's extended key event. Who can connect can use the machine: there is no password,
 * so it listens on a Unix socket or, if told so, on a TCP address, of which only loopback ones are taken.
 *
 * The display is drawn when a client waits for news, 30 times a second at most, and what changed is sent in tiles. A slow
 * client gets fewer pictures and holds nobody up. A client is hostile: its messages are checked, and it is cut off when one is
 * none.
 *
 * Threads: all calls on the loop's thread, or while it does not run.
 */
#ifndef LODGE_BACKEND_VNC_H
#define LODGE_BACKEND_VNC_H

#include "base/util.h"
#include "device/display/picture.h"

struct error;
struct loop;
struct vnc;

/* where: "unix:PATH", "HOST:PORT", ":DISPLAY" or "DISPLAY" (port 5900 + DISPLAY of 127.0.0.1). `display` is copied.
 * Errors: with a line for people. */
MUST_CHECK int vnc_open(struct vnc **ret_vnc, struct loop *loop, const char *where, const char *name,
	const struct display *display, struct error *err);
/* NULL is allowed. */
void vnc_close(struct vnc *vnc);

/* Another machine's display, or NULL: none for now. Clients stay connected. May be called on any thread: waits until the
 * old one is not used any more. */
void vnc_show(struct vnc *vnc, const struct display *display);

#endif
