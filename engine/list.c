/*
 * The engines there are, and the choice among them.
 */
#include "engine/engine.h"
#include <stddef.h>
#include <string.h>

const struct engine_ops *const engine_list[] = {
	&engine_interp_ops,
	NULL,
};

const struct engine_ops *engine_find(const char *name)
{
	for (unsigned i = 0; engine_list[i]; i++)
		if (strcmp(engine_list[i]->name, name) == 0)
			return engine_list[i];
	return NULL;
}

const struct engine_ops *engine_choose(struct engine_probe *ret_kvm)
{
	*ret_kvm = (struct engine_probe){ 0 };
	return &engine_interp_ops;
}
