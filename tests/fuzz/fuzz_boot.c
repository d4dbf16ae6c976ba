/*
 * Fuzzing of the kernel loaders. The first byte chooses protocol and packing, the rest is the kernel.
 * The guest's memory is kept from one input to the next: loaders must not depend on zeroed RAM.
 */
#include "tests/fuzz/rig.h"

#include <sys/mman.h>
#include <unistd.h>

#include "boot/boot.h"
#include "base/error.h"
#include "isa/x86/state.h"
#include "memory/memory.h"

static struct guest_memory *fuzz_memory(void)
{
	static struct guest_memory *memory;

	if (!memory && (memory_create(&memory) < 0 ||
			       memory_add_ram(memory, 0, MIB(64), 0, "ram", NULL) < 0))
		abort();
	return memory;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size_bytes)
{
	struct boot_config config = {.cmdline = "a", .kernel.path = "input"};
	struct x86_state state = {0};
	struct error err = {0};
	int r;

	if (size_bytes < 2)
		return 0;
	config.protocol = (enum boot_protocol)(data[0] % (BOOT_MULTIBOOT + 1));
	config.keep_packed = data[0] & 0x80;
	config.kernel.fd = memfd_create("input", MFD_CLOEXEC);
	if (config.kernel.fd < 0 ||
		write(config.kernel.fd, data + 1, size_bytes - 1) != (ssize_t)size_bytes - 1)
		abort();
	r = boot_load(fuzz_memory(), &config, &state, &err);
	/* An error has its text, and a success an entry point in RAM. */
	if (r < 0 ? err.code != -r || !err.text[0]
		  : !memory_find(fuzz_memory(), state.reg[X86_RIP]))
		abort();
	close(config.kernel.fd);
	return 0;
}
