/*
 * The smallest kernel for the tests of machines: code of 32 bits as a multiboot ELF file, loaded at KERNEL_LOAD.
 */
#ifndef LODGE_TESTS_KERNEL_IMAGE_H
#define LODGE_TESTS_KERNEL_IMAGE_H

#include <elf.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define KERNEL_LOAD 0x100000u

struct kernel_image {
	Elf32_Ehdr elf;
	Elf32_Phdr segment;
	uint32_t multiboot[3];
	uint8_t code[128];
} __attribute__((packed));

/* A descriptor of the file. */
static inline int kernel_file(const uint8_t *code, size_t bytes)
{
	struct kernel_image image = {
		.elf = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS32, ELFDATA2LSB, EV_CURRENT},
			.e_type = ET_EXEC,
			.e_machine = EM_386,
			.e_version = EV_CURRENT,
			.e_entry = KERNEL_LOAD + offsetof(struct kernel_image, code),
			.e_phoff = offsetof(struct kernel_image, segment),
			.e_ehsize = sizeof(Elf32_Ehdr),
			.e_phentsize = sizeof(Elf32_Phdr),
			.e_phnum = 1},
		.segment = {.p_type = PT_LOAD,
			.p_vaddr = KERNEL_LOAD,
			.p_paddr = KERNEL_LOAD,
			.p_filesz = sizeof(image),
			.p_memsz = sizeof(image),
			.p_flags = PF_R | PF_W | PF_X},
		.multiboot = {0x1badb002, 0, -0x1badb002u},
	};
	int fd = memfd_create("kernel", MFD_CLOEXEC);

	assert_true(bytes <= sizeof(image.code));
	memcpy(image.code, code, bytes);
	assert_true(fd > 0);
	assert_int_equal(write(fd, &image, sizeof(image)), sizeof(image));
	return fd;
}

#endif
