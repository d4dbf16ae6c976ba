/*
 * The KVM paravirtual clock: see kvmclock.h.
 */
#include "device/kvmclock.h"
#include "base/bytes.h"
#include "base/clock.h"
#include <errno.h>
#include <stdatomic.h>

#define TIME_BYTES  32
#define WALL_BYTES  12
#define FLAG_STABLE 0x01
#define FLAG_PAUSED 0x02

void kvmclock_scale(uint64_t tsc_hz, uint32_t *ret_mul, int8_t *ret_shift)
{
	uint64_t hz = tsc_hz ? tsc_hz : 1;
	int8_t shift = 0;

	/* Bring the rate into (1 GHz, 2 GHz], so that mul has all of its 32 bits. */
	for (; hz > 2 * NS_PER_SEC; shift--)
		hz >>= 1;
	for (; hz <= NS_PER_SEC; shift++)
		hz <<= 1;
	*ret_mul = (uint32_t)((NS_PER_SEC << 32) / hz);
	*ret_shift = shift;
}

/*
 * The guest reads version, body, version, and retries while the version is odd or has changed. The
 * version goes odd before the body and even after it; memory_write copies in between.
 */
static int publish(struct guest_memory *memory, gpa_t gpa, uint8_t *body, size_t size_bytes)
{
	uint8_t version[4];
	int status = memory_read(memory, gpa, version, sizeof(version));

	if (status < 0)
		return status;
	uint32_t number = load_le32(version) | 1;
	store_le32(version, number);
	status = memory_write(memory, gpa, version, sizeof(version));
	atomic_thread_fence(memory_order_seq_cst);
	if (status == 0)
		status = memory_write(memory, gpa + 4, body + 4, size_bytes - 4);
	atomic_thread_fence(memory_order_seq_cst);
	if (status < 0)
		return status;
	store_le32(version, number + 1);
	return memory_write(memory, gpa, version, sizeof(version));
}

int kvmclock_write_system(
	struct guest_memory *memory, uint64_t msr, const struct kvmclock_time *time)
{
	uint8_t body[TIME_BYTES] = {0};
	uint32_t mul;
	int8_t shift;

	if (!(msr & KVMCLOCK_ENABLE))
		return 0;
	if (msr & 2)
		return -EINVAL;
	kvmclock_scale(time->tsc_hz, &mul, &shift);
	store_le64(body + 8, time->tsc);
	store_le64(body + 16, time->system_ns);
	store_le32(body + 24, mul);
	body[28] = (uint8_t)shift;
	body[29] = FLAG_STABLE | (time->paused ? FLAG_PAUSED : 0);
	return publish(memory, msr & ~3ull, body, sizeof(body));
}

int kvmclock_write_wall(struct guest_memory *memory, gpa_t gpa, uint64_t boot_realtime_ns)
{
	uint8_t body[WALL_BYTES] = {0};

	store_le32(body + 4, (uint32_t)(boot_realtime_ns / NS_PER_SEC));
	store_le32(body + 8, (uint32_t)(boot_realtime_ns % NS_PER_SEC));
	return publish(memory, gpa, body, sizeof(body));
}
