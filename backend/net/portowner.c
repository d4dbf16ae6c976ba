/*
 * Who has a port of this host open: /proc/net says which socket, and /proc/PID/fd whose. Other users' processes are
 * not to be seen but by root.
 */
#include "backend/net/network.h"

#include "base/cleanup.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* The inode of the socket that listens (TCP) or is bound (UDP) there; 0: none in this table. */
static unsigned long socket_inode(const char *table, bool udp, uint16_t port)
{
	AUTO_FCLOSE FILE *file = fopen(table, "re");
	unsigned long inode, found = 0;
	unsigned local, state;
	char line[512];

	while (file && !found && fgets(line, sizeof(line), file)) {
		/* slot: address:port peer:port state queues timer retransmits uid timeout inode */
		if (sscanf(line, " %*u: %*[0-9A-Fa-f]:%x %*s %x %*s %*s %*s %*u %*u %lu", &local,
			    &state, &inode) == 3 &&
			local == port && (udp || state == 0x0a))
			found = inode;
	}
	return found;
}

static bool has_socket(const char *pid, const char *wanted)
{
	char path[300], target[64];

	snprintf(path, sizeof(path), "/proc/%.20s/fd", pid);
	AUTO_CLOSEDIR DIR *dir = opendir(path);
	if (!dir)
		return false;
	for (struct dirent *entry; (entry = readdir(dir));) {
		snprintf(path, sizeof(path), "/proc/%.20s/fd/%.200s", pid, entry->d_name);
		ssize_t length = readlink(path, target, sizeof(target) - 1);
		if (length <= 0)
			continue;
		target[length] = 0;
		if (strcmp(target, wanted) == 0)
			return true;
	}
	return false;
}

static void name_process(const char *pid, char *text, size_t size)
{
	char path[64], name[64] = "";

	snprintf(path, sizeof(path), "/proc/%.20s/comm", pid);
	AUTO_FCLOSE FILE *file = fopen(path, "re");
	if (!file || !fgets(name, sizeof(name), file))
		strcpy(name, "?");
	name[strcspn(name, "\n")] = 0;
	snprintf(text, size, "%s (process %s)", name, pid);
}

bool port_owner(bool udp, uint16_t port, char *ret_text, size_t size)
{
	unsigned long inode = socket_inode(udp ? "/proc/net/udp" : "/proc/net/tcp", udp, port);
	char wanted[64];

	if (!inode)
		inode = socket_inode(udp ? "/proc/net/udp6" : "/proc/net/tcp6", udp, port);
	AUTO_CLOSEDIR DIR *dir = inode ? opendir("/proc") : NULL;
	if (!dir)
		return false;
	snprintf(wanted, sizeof(wanted), "socket:[%lu]", inode);
	for (struct dirent *entry; (entry = readdir(dir));) {
		if (isdigit((unsigned char)entry->d_name[0]) && has_socket(entry->d_name, wanted)) {
			name_process(entry->d_name, ret_text, size);
			return true;
		}
	}
	return false;
}
