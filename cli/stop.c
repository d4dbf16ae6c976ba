/*
 * Signals that stop what takes its time, so that it can remove what it has not finished.
 */
#include "base/util.h"
#include "cli/cli.h"
#include <signal.h>

/* The one thing that a signal's handler can reach. */
static volatile sig_atomic_t asked;

static void on_signal(int number)
{
	asked = 1;
}

/* No SA_RESTART: waiting for a lock ends. What the caller has ignored (nohup) stays ignored. */
void cli_catch_stop(void)
{
	static const int numbers[] = { SIGINT, SIGTERM, SIGHUP };
	const struct sigaction action = { .sa_handler = on_signal };
	struct sigaction before;

	for (size_t i = 0; i < ARRAY_SIZE(numbers); i++)
		if (sigaction(numbers[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN)
			sigaction(numbers[i], &action, NULL);
}

bool cli_stop_asked(void)
{
	return asked;
}
