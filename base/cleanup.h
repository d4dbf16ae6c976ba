/*
 * Cleanup attributes: what a variable holds is released when it goes out of scope.
 *
 *	AUTO_CLOSE int fd = open(...);
 *	AUTO_FREE char *name = strdup(...);
 *	*ret_fd = take_fd(&fd);		// hand it over: nothing is closed here
 *
 * Invariant: such a variable is always initialised where it is declared (-1, NULL).
 */
#ifndef LODGE_BASE_CLEANUP_H
#define LODGE_BASE_CLEANUP_H

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define CLEANUP(fn) __attribute__((cleanup(fn)))

static inline void cleanup_free(void *slot)
{
	free(*(void **)slot);
}

/* Closing keeps errno: it runs on the way out of an error path. */
static inline void cleanup_close(int *fd)
{
	int saved = errno;

	if (*fd >= 0)
		close(*fd);
	errno = saved;
}

static inline void cleanup_fclose(FILE **file)
{
	int saved = errno;

	if (*file)
		fclose(*file);
	errno = saved;
}

static inline void cleanup_closedir(DIR **dir)
{
	int saved = errno;

	if (*dir)
		closedir(*dir);
	errno = saved;
}

static inline void cleanup_unlock(pthread_mutex_t **lock)
{
	if (*lock)
		pthread_mutex_unlock(*lock);
}

static inline pthread_mutex_t *cleanup_lock(pthread_mutex_t *lock)
{
	pthread_mutex_lock(lock);
	return lock;
}

#define AUTO_FREE     CLEANUP(cleanup_free)
#define AUTO_CLOSE    CLEANUP(cleanup_close)
#define AUTO_FCLOSE   CLEANUP(cleanup_fclose)
#define AUTO_CLOSEDIR CLEANUP(cleanup_closedir)

/* Holds the mutex until the end of the enclosing block. Once a block: the name is fixed. */
#define AUTO_LOCK(lock)         \
	CLEANUP(cleanup_unlock) \
	pthread_mutex_t *auto_lock_ __attribute__((unused)) = cleanup_lock(lock)

/* Make a cleanup function for a type that has its own: DEFINE_AUTO(disk, struct disk *, disk_free)
 * gives CLEANUP(cleanup_disk). */
#define DEFINE_AUTO(name, type, fn)                   \
	static inline void cleanup_##name(type *slot) \
	{                                             \
		if (*slot)                            \
			fn(*slot);                    \
	}

/* Takes the value out of a cleanup variable, whose scope then releases nothing. */
static inline int take_fd(int *fd)
{
	int taken = *fd;

	*fd = -1;
	return taken;
}

#define take_ptr(slot)                                             \
	({                                                         \
		__typeof__(slot) take_slot_ = (slot);              \
		__typeof__(*take_slot_) take_value_ = *take_slot_; \
		*take_slot_ = NULL;                                \
		take_value_;                                       \
	})

#endif
