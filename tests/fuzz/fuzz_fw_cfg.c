/*
 * Fuzz target: what a guest can do to fw_cfg by its ports and by DMA, with requests and destinations anywhere: in RAM, over
 * the request itself, in read-only memory, across ends of memory, at addresses that wrap.
 *
 * What must hold: every byte that the guest is given is the item's, by a model of the device that knows nothing of its
 * insides; no byte of memory changes that the request does not name; a request that fails says so; what is made late is made
 * once.
 */
#include "tests/fuzz/rig.h"

#include "base/bytes.h"
#include "device/fw_cfg.h"

#define OPS_MAX	   300
#define RAM_BYTES  0x8000u
#define HIGH	   0x100000000ull /* more RAM */
#define HIGH_BYTES 0x4000u
#define ROM	   (HIGH + HIGH_BYTES)
#define ROM_BYTES  0x1000u
#define REGIONS	   3
#define FILES	   5
#define NAMED_LATE 3u
#define LATE_BYTES 600u
#define DMA_MOST   (64u << 20)

enum control { DMA_ERROR = 1, DMA_READ = 2, DMA_SKIP = 4, DMA_SELECT = 8, DMA_WRITE = 16 };

static const struct region {
	gpa_t base;
	uint32_t bytes, flags;
} regions[REGIONS] = {{0, RAM_BYTES, 0}, {HIGH, HIGH_BYTES, 0}, {ROM, ROM_BYTES, MEMORY_READONLY}};

/* Sorted by name, as the device sorts them. */
static const struct {
	const char *name;
	uint32_t bytes;
} files[FILES] = {{"a", 0}, {"etc/b", 1}, {"etc/c", 5000}, {"etc/late", LATE_BYTES}, {"z", 40}};

struct target {
	struct guest_memory *memory;
	struct bus *bus;
	pthread_mutex_t lock;
	struct fw_cfg *fw_cfg;
	unsigned made;
	/* The model. */
	uint8_t mirror[REGIONS][RAM_BYTES];
	uint16_t key;
	uint64_t offset;
};

/* ---- the model ---- */

static uint8_t file_byte(unsigned file, uint64_t at)
{
	return (uint8_t)(at * 7 + file * 31 + 1);
}

static uint8_t directory_byte(uint64_t at)
{
	uint8_t entry[64] = {0};
	const unsigned file = (unsigned)(at - 4) / 64;

	if (at < 4)
		return at == 3 ? FILES : 0;
	if (file >= FILES)
		return 0;
	store_be32(entry, files[file].bytes);
	store_be16(entry + 4, (uint16_t)(FW_CFG_FILE + file));
	strcpy((char *)entry + 8, files[file].name);
	return entry[(at - 4) % 64];
}

/* The byte at `offset` of the item that is selected. */
static uint8_t expected(const struct target *t)
{
	const uint64_t at = t->offset;
	const unsigned file = t->key - FW_CFG_FILE;

	switch (t->key) {
	case FW_CFG_SIGNATURE: return at < 4 ? (uint8_t)"QEMU"[at] : 0;
	case FW_CFG_ID: return at == 0 ? 3 : 0;
	case FW_CFG_CPUS: return at < 2 ? (uint8_t)(0x1234 >> 8 * at) : 0;
	case FW_CFG_RAM_SIZE: return at < 8 ? (uint8_t)(0x1122334455667788ull >> 8 * at) : 0;
	case FW_CFG_DIRECTORY: return directory_byte(at);
	default: break;
	}
	return t->key >= FW_CFG_FILE && file < FILES && at < files[file].bytes ? file_byte(file, at) : 0;
}

static uint8_t next(struct target *t)
{
	const uint8_t byte = expected(t);

	if (t->offset < UINT32_MAX)
		t->offset++;
	return byte;
}

static void select_item(struct target *t, uint16_t key)
{
	t->key = key;
	t->offset = 0;
}

static uint8_t *mirror_at(struct target *t, gpa_t gpa, bool *ret_readonly)
{
	for (unsigned i = 0; i < REGIONS; i++)
		if (gpa - regions[i].base < regions[i].bytes) {
			*ret_readonly = regions[i].flags & MEMORY_READONLY;
			return &t->mirror[i][gpa - regions[i].base];
		}
	return NULL;
}

/* false: no memory there; what is read-only stays. */
static bool mirror_put(struct target *t, gpa_t gpa, uint8_t byte)
{
	bool readonly;
	uint8_t *at = mirror_at(t, gpa, &readonly);

	if (at && !readonly)
		*at = byte;
	return at;
}

static bool mirror_get(struct target *t, gpa_t gpa, uint8_t *to, unsigned count)
{
	bool readonly;

	for (unsigned i = 0; i < count; i++) {
		const uint8_t *at = mirror_at(t, gpa + i, &readonly);

		if (!at)
			return false;
		to[i] = *at;
	}
	return true;
}

/* Returns false where how far it came is not said: the caller selects anew. */
static bool model_dma(struct target *t, gpa_t request)
{
	uint8_t bytes[16], result[4];
	bool ok = true, known = true;

	if (!mirror_get(t, request, bytes, sizeof(bytes)))
		return true;
	const uint32_t control = load_be32(bytes), count = load_be32(bytes + 4);
	const gpa_t to = load_be64(bytes + 8);
	if (control & DMA_SELECT)
		select_item(t, (uint16_t)(control >> 16));
	if (control & DMA_READ) {
		ok = count <= DMA_MOST;
		for (uint32_t i = 0; ok && i < count; i++)
			ok = mirror_put(t, to + i, next(t));
		known = ok;
	} else if (control & DMA_WRITE) {
		ok = false;
	} else if (control & DMA_SKIP) {
		t->offset = MIN(t->offset + count, (uint64_t)UINT32_MAX);
	}
	store_be32(result, ok ? 0 : DMA_ERROR);
	for (unsigned i = 0; i < sizeof(result); i++)
		mirror_put(t, request + i, result[i]);
	return known;
}

static void check_memory(struct target *t)
{
	for (unsigned i = 0; i < REGIONS; i++) {
		const uint8_t *host = memory_host(t->memory, regions[i].base, regions[i].bytes, false);

		MUST(host && memcmp(host, t->mirror[i], regions[i].bytes) == 0);
	}
}

/* ---- the guest ---- */

static gpa_t any_address(struct rig_input *in)
{
	const uint8_t how = (uint8_t)rig_take(in, 1);
	const uint16_t low = (uint16_t)rig_take(in, 2);

	switch (how % 8) {
	case 0: return HIGH + low % (HIGH_BYTES + ROM_BYTES + 32);
	case 1: return RAM_BYTES - 32 + low % 64;
	case 2: return 0ull - 1 - low % 9000;
	case 3: return ROM - 32 + low % 64;
	case 4: return how & 0x80 ? rig_take(in, 8) : low % 64;
	default: return low % RAM_BYTES;
	}
}

static void write_memory(struct target *t, gpa_t gpa, const uint8_t *bytes, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		if (memory_write(t->memory, gpa + i, bytes + i, 1) == 0)
			mirror_put(t, gpa + i, bytes[i]);
}

static uint16_t any_key(struct rig_input *in)
{
	const uint8_t how = (uint8_t)rig_take(in, 1);

	return how & 0x80 ? (uint16_t)rig_take(in, 2) : how % 0x28;
}

static void put_request(struct target *t, struct rig_input *in, gpa_t request)
{
	const uint8_t how = (uint8_t)rig_take(in, 1);
	uint8_t bytes[16];

	store_be32(bytes, (uint32_t)any_key(in) << 16 | (how & 0x1f));
	store_be32(bytes + 4, (uint32_t)rig_take(in, how & 0x40 ? 4 : 2) % (how & 0x80 ? 700 : UINT32_MAX));
	/* Often upon itself. */
	store_be64(bytes + 8, (how & 0xe0) == 0x60 ? request + rig_take(in, 1) % 24 - 8 : any_address(in));
	write_memory(t, request, bytes, sizeof(bytes));
}

static void start_dma(struct target *t, gpa_t request)
{
	bus_write(t->bus, BUS_PIO, FW_CFG_PORT + 4, 4, htobe32((uint32_t)(request >> 32)));
	bus_write(t->bus, BUS_PIO, FW_CFG_PORT + 8, 4, htobe32((uint32_t)request));
	if (!model_dma(t, request)) {
		select_item(t, FW_CFG_SIGNATURE);
		bus_write(t->bus, BUS_PIO, FW_CFG_PORT, 2, FW_CFG_SIGNATURE);
	}
	check_memory(t);
}

/* Anything at the ports, then to a known state: a high half may be left. */
static void access_any(struct target *t, struct rig_input *in)
{
	const uint8_t how = (uint8_t)rig_take(in, 1);
	const unsigned size = 1u << how % 3, at = FW_CFG_PORT - 2 + how / 8 % 16;

	if (how & 4 && !(size == 4 && at == FW_CFG_PORT + 8))
		bus_write(t->bus, BUS_PIO, at, size, rig_take(in, size));
	else
		MUST(size == 4 || !(bus_read(t->bus, BUS_PIO, at, size) >> 8 * size));
	select_item(t, FW_CFG_ID);
	bus_write(t->bus, BUS_PIO, FW_CFG_PORT, 2, FW_CFG_ID);
}

static void one_op(struct target *t, struct rig_input *in)
{
	const uint8_t op = (uint8_t)rig_take(in, 1);
	gpa_t request;

	switch (op % 8) {
	case 0:
		select_item(t, any_key(in));
		bus_write(t->bus, BUS_PIO, FW_CFG_PORT, 2, t->key);
		break;
	case 1:
	case 2:
		for (unsigned i = 0; i <= op / 8; i++)
			MUST(bus_read(t->bus, BUS_PIO, FW_CFG_PORT + 1, 1) == next(t));
		break;
	case 3: access_any(t, in); break;
	case 4: start_dma(t, any_address(in)); break; /* whatever lies there */
	default:
		request = any_address(in);
		put_request(t, in, request);
		start_dma(t, request);
	}
}

/* ---- one input ---- */

static void make_late(void *opaque)
{
	struct target *t = opaque;
	uint8_t bytes[LATE_BYTES];

	for (unsigned i = 0; i < LATE_BYTES; i++)
		bytes[i] = file_byte(NAMED_LATE, i);
	t->made++;
	MUST(fw_cfg_set(t->fw_cfg, files[NAMED_LATE].name, bytes, LATE_BYTES) == 0);
}

static void add_items(struct target *t)
{
	uint8_t bytes[5000];

	fw_cfg_add_number(t->fw_cfg, FW_CFG_CPUS, 2, 0x1234);
	fw_cfg_add_number(t->fw_cfg, FW_CFG_RAM_SIZE, 8, 0x1122334455667788ull);
	for (unsigned i = FILES; i-- > 0;) {
		for (unsigned at = 0; at < files[i].bytes; at++)
			bytes[at] = file_byte(i, at);
		MUST(fw_cfg_add_file(t->fw_cfg, files[i].name, i == NAMED_LATE ? NULL : bytes, files[i].bytes) == 0);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct rig_input in = {data, size};
	static struct target t;

	if (!t.memory) {
		pthread_mutex_init(&t.lock, NULL);
		MUST(memory_create(&t.memory) == 0);
		for (unsigned i = 0; i < REGIONS; i++)
			MUST(memory_add_ram(t.memory, regions[i].base, regions[i].bytes, regions[i].flags, "ram",
				     NULL) == 0);
	}
	const struct fw_cfg_config config = {
		.lock = &t.lock, .memory = t.memory, .make = make_late, .opaque = &t};
	t.made = 0;
	select_item(&t, 0);
	MUST(bus_create(&t.bus) == 0 && fw_cfg_create(&config, &t.fw_cfg) == 0);
	add_items(&t);
	MUST(fw_cfg_attach(t.fw_cfg, t.bus) == 0);
	for (unsigned i = 0; i < OPS_MAX && in.left; i++)
		one_op(&t, &in);
	check_memory(&t);
	MUST(t.made <= 1);
	fw_cfg_free(t.fw_cfg);
	bus_free(t.bus);
	for (unsigned i = 0; i < REGIONS; i++) {
		memset(memory_host(t.memory, regions[i].base, regions[i].bytes, false), 0, regions[i].bytes);
		memset(t.mirror[i], 0, regions[i].bytes);
	}
	return 0;
}
