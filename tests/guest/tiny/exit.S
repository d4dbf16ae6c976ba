/* Ends at once with status 42. */
#include "tiny.h"
	DONE 42
