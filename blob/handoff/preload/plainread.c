/* SPDX-License-Identifier: Apache-2.0
 *
 * Plain reads for programs that cannot be changed: a library to preload into what "offloadd inetd" starts.
 *
 *     cc -O2 -shared -fPIC -o plainread.so plainread.c
 *     offloadd inetd --application SOCKET -- env LD_PRELOAD=$PWD/plainread.so PROGRAM
 *
 * A read from the connection that fails with EIO has met a record that is no data. This asks inetd about it, by the
 * pipes that inetd gave the program, and then reads again, or returns 0 at the end of the stream, or fails with
 * ECONNRESET (the peer ended the connection by an alert, or it was cut) or ECONNABORTED (we ended it). Reads of
 * everything else, and reads that bring data, pass as they are.
 *
 * It does not reach programs that are linked statically, make system calls themselves, or read by stdio, whose calls
 * stay inside the C library; nor recvmmsg, io_uring and aio. While a thread of the program reads, another may not write
 * at the moment the peer changes its keys and asks for ours: the write could go out under the old key, which ends the
 * connection. Processes that share the connection ask one at a time.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { ANSWERS = 3, QUESTIONS = 4, PATIENCE = 5000 /* ms */ };

static uint64_t connection;          /* SO_COOKIE */
static ino_t answers, questions;     /* the pipes: a program may have closed them, and opened other files there */
static atomic_bool broken;           /* no answer came: what would come now could be to an earlier question */
static pthread_mutex_t asking = PTHREAD_MUTEX_INITIALIZER;

/* The calls below this library, found when it is loaded: dlsym may allocate. */
static ssize_t (*real_read)(int, void *, size_t);
static ssize_t (*real_readv)(int, const struct iovec *, int);
static ssize_t (*real_recv)(int, void *, size_t, int);
static ssize_t (*real_recvfrom)(int, void *, size_t, int, struct sockaddr *, socklen_t *);
static ssize_t (*real_recvmsg)(int, struct msghdr *, int);
static ssize_t (*real_splice)(int, off64_t *, int, off64_t *, size_t, unsigned);

static void lock(void) { pthread_mutex_lock(&asking); }
static void unlock(void) { pthread_mutex_unlock(&asking); }

/* load may be called before its turn, by a constructor of another library that reads. */
__attribute__((constructor)) static void load(void)
{
	if (real_read) return;
	real_readv = (ssize_t (*)(int, const struct iovec *, int))dlsym(RTLD_NEXT, "readv");
	real_recv = (ssize_t (*)(int, void *, size_t, int))dlsym(RTLD_NEXT, "recv");
	real_recvfrom = (ssize_t (*)(int, void *, size_t, int, struct sockaddr *, socklen_t *))dlsym(RTLD_NEXT, "recvfrom");
	real_recvmsg = (ssize_t (*)(int, struct msghdr *, int))dlsym(RTLD_NEXT, "recvmsg");
	real_splice = (ssize_t (*)(int, off64_t *, int, off64_t *, size_t, unsigned))dlsym(RTLD_NEXT, "splice");
	real_read = (ssize_t (*)(int, void *, size_t))dlsym(RTLD_NEXT, "read");
	const char *cookie = getenv("OFFLOADD_COOKIE"), *pipes = getenv("OFFLOADD_PIPES");
	char *end = NULL;
	if (!cookie || !pipes) return;
	answers = strtoull(pipes, &end, 10);
	questions = *end == ',' ? strtoull(end + 1, NULL, 10) : 0;
	connection = strtoull(cookie, NULL, 10);
	pthread_atfork(lock, unlock, unlock);
}

static int is_connection(int fd)
{
	uint64_t cookie = 0;
	socklen_t size = sizeof cookie;
	return connection && !getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &size) && cookie == connection;
}

static int is_pipe(int fd, ino_t number)
{
	struct stat is;
	return !fstat(fd, &is) && S_ISFIFO(is.st_mode) && is.st_ino == number;
}

/* ready waits until a pipe can be used, up to a time of CLOCK_MONOTONIC in ms. */
static int ready(int fd, short events, long long until)
{
	for (;;) {
		struct timespec now;
		clock_gettime(CLOCK_MONOTONIC, &now);
		long long left = until - (now.tv_sec * 1000LL + now.tv_nsec / 1000000);
		struct pollfd p = { .fd = fd, .events = events };
		int n = left > 0 ? poll(&p, 1, left) : 0;
		if (n > 0) return !!(p.revents & events);
		if (n == 0 || errno != EINTR) return 0;
	}
}

/* talk sends a question and reads the first bytes of the answer's line, to its end. */
static int talk(const char *question, char *line, size_t room)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	long long until = now.tv_sec * 1000LL + now.tv_nsec / 1000000 + PATIENCE;
	ssize_t size = strlen(question);
	if (!is_pipe(ANSWERS, answers) || !is_pipe(QUESTIONS, questions) || !ready(QUESTIONS, POLLOUT, until)
	    || write(QUESTIONS, question, size) != size) return 0;
	size_t n = 0;
	for (char c = 0; c != '\n';) {
		if (!ready(ANSWERS, POLLIN, until)) return 0;
		ssize_t got = real_read(ANSWERS, &c, 1);
		if (got == 0 || (got < 0 && errno != EINTR && errno != EAGAIN)) return 0;
		if (got == 1 && c != '\n' && n < room - 1) line[n++] = c;
	}
	line[n] = 0;
	return 1;
}

/* ask returns what the answer means: -1 to call again, or 0, or an error number. No signal interrupts it, so that a
 * handler that reads finds nobody asking, and SIGPIPE from a pipe without inetd is taken away. */
static int ask(const char *question)
{
	char line[64] = "";
	sigset_t all, before, pending, pipe;
	struct timespec none = { 0 };
	sigfillset(&all);
	sigemptyset(&pipe);
	sigaddset(&pipe, SIGPIPE);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	lock();
	sigpending(&pending);
	if (broken || !talk(question, line, sizeof line)) {
		broken = 1;
		if (!sigismember(&pending, SIGPIPE)) sigtimedwait(&pipe, NULL, &none);
	}
	unlock();
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!strcmp(line, "go on")) return -1;
	if (!strcmp(line, "end")) return 0;
	return !strncmp(line, "alert ", 6) || !strcmp(line, "cut") ? ECONNRESET : ECONNABORTED;
}

/* look_ahead asks about what lies behind the data of a read, for programs that poll before they read again. The kernel
 * opens a KeyUpdate together with the data before it, and from then on does not say that the socket is readable
 * (net/tls/tls_main.c, tls_sk_poll). Whatever ends the connection is made readable by ending our reading. */
static void look_ahead(int fd)
{
	char next;
	int flags = fcntl(fd, F_GETFL);
	if (flags < 0 || !(flags & O_NONBLOCK) || !is_connection(fd)) return;
	if (real_recv(fd, &next, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EIO && ask("met\n") >= 0) shutdown(fd, SHUT_RD);
}

/* resolve says whether to call again. Else *n, and errno with it, is what the program gets. */
static int resolve(int fd, size_t wanted, ssize_t *n)
{
	int error = errno;
	/* Behind the end, the peer may have closed its side, and have answered what we sent by a reset; and behind a
	 * KeyUpdate that nobody could follow no record can be opened. */
	int over = *n < 0 && (error == ECONNRESET || error == EPIPE || error == EBADMSG || error == EKEYEXPIRED);
	if (*n > 0) look_ahead(fd);
	if (*n > 0 || (*n < 0 && error != EIO && !over) || (*n == 0 && wanted == 0) || !is_connection(fd)) {
		errno = error;
		return 0;
	}
	int answer = ask(*n < 0 && !over ? "met\n" : "end\n");
	errno = answer > 0 ? answer : error;
	if (answer < 0) return 1;
	*n = answer ? -1 : 0;
	return 0;
}

static size_t room_of(const struct iovec *parts, size_t count)
{
	size_t room = 0;
	for (size_t i = 0; i < count; i++) room += parts[i].iov_len;
	return room;
}

ssize_t read(int fd, void *into, size_t room)
{
	ssize_t n;
	load();
	do n = real_read(fd, into, room);
	while (resolve(fd, room, &n));
	return n;
}

ssize_t readv(int fd, const struct iovec *parts, int count)
{
	ssize_t n;
	load();
	do n = real_readv(fd, parts, count);
	while (resolve(fd, n == 0 ? room_of(parts, count) : 0, &n));
	return n;
}

ssize_t recv(int fd, void *into, size_t room, int flags)
{
	ssize_t n;
	load();
	do n = real_recv(fd, into, room, flags);
	while (resolve(fd, room, &n));
	return n;
}

ssize_t recvfrom(int fd, void *into, size_t room, int flags, struct sockaddr *from, socklen_t *size)
{
	ssize_t n;
	load();
	do n = real_recvfrom(fd, into, room, flags, from, size);
	while (resolve(fd, room, &n));
	return n;
}

/* recvmsg with room for control data gets records of every type, so its caller knows of them. */
ssize_t recvmsg(int fd, struct msghdr *m, int flags)
{
	ssize_t n;
	load();
	do n = real_recvmsg(fd, m, flags);
	while (resolve(fd, n == 0 ? room_of(m->msg_iov, m->msg_iovlen) : 0, &n));
	return n;
}

/* splice says EINVAL where read says EIO, and for its own reasons: then it says so again. */
ssize_t splice(int from, off64_t *from_at, int to, off64_t *to_at, size_t room, unsigned flags)
{
	load();
	ssize_t n = real_splice(from, from_at, to, to_at, room, flags);
	if (n < 0 && errno == EINVAL && is_connection(from)) {
		errno = EIO;
		if (resolve(from, room, &n)) n = real_splice(from, from_at, to, to_at, room, flags);
		return n;
	}
	if (n == 0) resolve(from, room, &n);
	return n;
}

/* What _FORTIFY_SOURCE makes of some of these calls. */
ssize_t __read_chk(int fd, void *into, size_t room, size_t size)
{
	if (room > size) abort();
	return read(fd, into, room);
}

ssize_t __recv_chk(int fd, void *into, size_t room, size_t size, int flags)
{
	if (room > size) abort();
	return recv(fd, into, room, flags);
}

ssize_t __recvfrom_chk(int fd, void *into, size_t room, size_t size, int flags, struct sockaddr *from, socklen_t *length)
{
	if (room > size) abort();
	return recvfrom(fd, into, room, flags, from, length);
}
