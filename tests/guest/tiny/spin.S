/* Never leaves guest code. */
#include "tiny.h"
1:	jmp 1b
