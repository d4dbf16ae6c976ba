/*
 * The calls: see call.h.
 */
#include "api/call.h"

#include "base/cleanup.h"
#include "base/error.h"

#include <errno.h>
#include <string.h>

const struct api_call api_calls[API_CALLS] = {
	[API_STATUS] = {"status"},
	[API_PAUSE] = {"pause"},
	[API_RESUME] = {"resume"},
	[API_BALLOON] = {"balloon", {{"target_bytes", API_NUMBER}}},
	[API_ATTACH] = {"attach", {{"disk", API_TEXT}, {"net", API_TEXT}, {"device", API_TEXT}}},
	[API_DETACH] = {"detach", {{"device", API_TEXT, true}}},
	[API_SCREENSHOT] = {"screenshot"},
	[API_POWEROFF] = {"poweroff"},
	[API_RESET] = {"reset"},
	[API_STOP] = {"stop"},
};

/* ---- requests ---- */

static int find_call(const char *name, enum api_call_id *ret_call)
{
	for (unsigned i = 0; i < API_CALLS; i++) {
		if (strcmp(name, api_calls[i].name))
			continue;
		*ret_call = (enum api_call_id)i;
		return 0;
	}
	return -ENOENT;
}

static const struct api_argument *find_argument(const struct api_call *call, const char *name)
{
	for (const struct api_argument *a = call->argument; a->name; a++)
		if (strcmp(name, a->name) == 0)
			return a;
	return NULL;
}

static int check_argument(
	const struct api_call *call, const char *name, const json_t *value, struct error *err)
{
	const struct api_argument *argument = find_argument(call, name);

	if (!argument)
		return error_set(err, EINVAL, "%s has no argument '%.40s'", call->name, name);
	if (argument->type == API_TEXT && !json_string_length(value))
		return error_set(err, EINVAL, "%s: %s is a text", call->name, name);
	if (argument->type == API_NUMBER &&
		(!json_is_integer(value) || json_integer_value(value) < 0))
		return error_set(
			err, EINVAL, "%s: %s is a whole number from 0 on", call->name, name);
	return 0;
}

static int check_required(const struct api_call *call, const json_t *object, struct error *err)
{
	for (const struct api_argument *a = call->argument; a->name; a++)
		if (a->required && !json_object_get(object, a->name))
			return error_set(err, EINVAL, "%s wants %s", call->name, a->name);
	return 0;
}

static int check(struct api_request *request, struct error *err)
{
	const char *wanted = json_string_value(json_object_get(request->object, "do")), *name;
	json_t *value;
	int status = 0;

	if (!wanted)
		return error_set(err, EINVAL, "a request is an object such as {\"do\":\"status\"}");
	if (find_call(wanted, &request->call) < 0)
		return error_set(err, EINVAL, "there is no call '%.40s'", wanted);
	json_object_foreach(request->object, name, value) {
		if (status == 0 && strcmp(name, "do"))
			status = check_argument(&api_calls[request->call], name, value, err);
	}
	return status < 0 ? status
			  : check_required(&api_calls[request->call], request->object, err);
}

int api_request_parse(
	const char *text, size_t bytes, struct api_request *ret_request, struct error *err)
{
	struct api_request request = {0};
	json_error_t why;

	request.object = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &why);
	if (!request.object)
		return error_set(err, EINVAL, "that is no JSON: %s", why.text);
	int status = check(&request, err);
	if (status < 0)
		api_request_done(&request);
	else
		*ret_request = request;
	return status;
}

void api_request_done(struct api_request *request)
{
	json_decref(request->object);
	*request = (struct api_request){0};
}

const char *api_request_text(const struct api_request *request, const char *name)
{
	return json_string_value(json_object_get(request->object, name));
}

bool api_request_number(const struct api_request *request, const char *name, uint64_t *ret_number)
{
	const json_t *value = json_object_get(request->object, name);

	*ret_number = (uint64_t)json_integer_value(value);
	return value;
}

/* ---- replies ---- */

json_t *api_reply_ok(void)
{
	return json_pack("{s:b}", "ok", 1);
}

/* What is no UTF-8, such as the name of a file or half a character, is not shown. */
static json_t *text_of(const char *text)
{
	json_t *whole = json_string(text);

	if (whole)
		return whole;
	AUTO_FREE char *copy = strdup(text);
	for (char *c = copy; c && *c; c++)
		if ((unsigned char)*c >= 0x80)
			*c = '?';
	return copy ? json_string(copy) : NULL;
}

json_t *api_reply_error(const char *text)
{
	return json_pack("{s:b, s:o}", "ok", 0, "error", text_of(text));
}
