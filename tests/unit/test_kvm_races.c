/*
 * What comes to a KVM vCPU while an instruction that KVM failed at is executed for it (engine/kvm/emulate.c), in the
 * order that a race would have: NMIs, INIT.
 */
#include "engine/kvm/private.h"
#include "engine_rig.h"

/* What instructions do goes back into KVM; an NMI that came meanwhile stays. */
static void test_nmi_meanwhile(void **state)
{
	struct rig *r = *state;
	struct x86_state s;

	rig_flat(&s);
	s.nmi_blocked = true;
	assert_int_equal(r->ops->set_state(r->vcpu, &s), 0);
	assert_int_equal(kvm_state_get(r->vcpu, &s), 0);
	assert_false(s.nmi_pending);
	assert_int_equal(kvm_ioctl(r->vcpu->fd, KVM_NMI, NULL), 0);
	s.reg[X86_RAX] = 0x1234;
	assert_int_equal(kvm_state_set_core(r->vcpu, &s), 0);
	rig_state(r, &s);
	assert_int_equal(s.reg[X86_RAX], 0x1234);
	assert_true(s.nmi_blocked);
	assert_true(s.nmi_pending);
	/* And one that was there is not made two, nor none. */
	assert_int_equal(kvm_state_set_core(r->vcpu, &s), 0);
	rig_state(r, &s);
	assert_true(s.nmi_pending);
}

/* The processor was sent INIT: there is no instruction to execute any more. */
static void test_init_meanwhile(void **state)
{
	static const uint8_t code[] = {
		0xff, 0x04, 0x25, 0x00, 0x50, 0x00, 0x00}; /* inc dword [DATA] */
	struct rig *r = *state;
	struct x86_state s;
	struct error err = {0};

	rig_flat(&s);
	s.activity = X86_WAIT_FOR_SIPI;
	RIG_LOAD(r, &s, code);
	assert_int_equal(kvm_emulate(r->vcpu, &err), 0);
	assert_int_equal(rig_get64(r, DATA), 0);
	rig_state(r, &s);
	assert_int_equal(s.reg[X86_RIP], CODE);
	assert_int_equal(s.activity, X86_WAIT_FOR_SIPI);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(test_nmi_meanwhile),
		RIG_TEST(test_init_meanwhile),
	};
	int status;

	rig_ops = &engine_kvm_ops;
	status = rig_must_have(rig_ops, "'s races");
	return status ? status : cmocka_run_group_tests_name("kvm_races", tests, NULL, NULL);
}
