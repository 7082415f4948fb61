/* SPDX-License-Identifier: Apache-2.0
 *
 * A file server over TLS that knows nothing of TLS: the protocol of PROTOCOL.md in C.
 *
 *     cc -O2 -o fileserver fileserver.c
 *     ./fileserver /run/offloadd/web.sock /srv/files
 *
 * A peer sends one line, "GET NAME" or "PUT NAME". GET is answered by "OK SIZE" and the file;
 * what follows PUT, to the end of the stream, becomes the file. One connection at a time.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { CONNECTION = 7, ASKED = 11, ANSWER = 12 };                 /* types of messages */
enum { MET = 1, QUIET = 8 };                                      /* flags of a question */
enum { GO_ON = 0, END = 1, ALERT = 2, ENDED = 3, OWED = 1 };      /* verdicts of an answer, and a flag */
enum { TLS = 282, RECORD_TYPE = 1, RECORD_ALERT = 21 };           /* linux/tls.h */
enum { HEAD = 22, MESSAGE = 131072 };

static struct ucred daemon_is;
static int *waiting, waiters;                                     /* connections that came before an answer */

static void die(const char *what) { perror(what); exit(1); }

static int receive(int channel, unsigned char *message, size_t *size)
{
	union { char room[256]; struct cmsghdr align; } control;
	struct iovec part = { message, MESSAGE };
	struct msghdr m = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control };
	ssize_t n = recvmsg(channel, &m, MSG_CMSG_CLOEXEC);
	if (n < HEAD) { fprintf(stderr, "the daemon is gone\n"); exit(1); }
	int fd = -1;
	struct ucred from = { 0 };
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) memcpy(&fd, CMSG_DATA(c), sizeof fd);
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_CREDENTIALS) memcpy(&from, CMSG_DATA(c), sizeof from);
	}
	uint64_t cookie;
	if (m.msg_flags & (MSG_TRUNC | MSG_CTRUNC) || from.pid != daemon_is.pid || message[0] != 1
	    || (fd >= 0 && (getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &(socklen_t){ sizeof cookie })
	                    || htobe64(cookie) != *(uint64_t *)memcpy(&(uint64_t){ 0 }, message + 2, 8)))) {
		fprintf(stderr, "not a message of the daemon\n");
		exit(1);
	}
	*size = n;
	return fd;
}

static int next_connection(int channel)
{
	static unsigned char message[MESSAGE];
	if (waiters) {
		int fd = waiting[0];
		memmove(waiting, waiting + 1, --waiters * sizeof *waiting);
		return fd;
	}
	size_t size;
	int fd;
	while (fd = receive(channel, message, &size), message[1] != CONNECTION || fd < 0)
		if (fd >= 0) close(fd);                                   /* of a relay: see section 9 */
	return fd;
}

/* question asks once, and returns the verdict. */
static int question(int channel, int fd, int flags, int *owed)
{
	uint64_t cookie;
	if (getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &(socklen_t){ sizeof cookie })) die("SO_COOKIE");
	cookie = htobe64(cookie);
	static unsigned char message[MESSAGE];
	memset(message, 0, HEAD);
	message[0] = 1, message[1] = ASKED, message[21] = 1, message[22] = flags;
	memcpy(message + 2, &cookie, 8);
	union { char room[CMSG_SPACE(sizeof fd)]; struct cmsghdr align; } control = { { 0 } };
	struct iovec part = { message, HEAD + 1 };
	struct msghdr m = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control };
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(c), &fd, sizeof fd);
	if (sendmsg(channel, &m, 0) < 0) die("ask the daemon");
	for (;;) {
		size_t size;
		struct pollfd answer = { .fd = channel, .events = POLLIN };
		if (poll(&answer, 1, 10000) <= 0) { fprintf(stderr, "the daemon does not answer\n"); exit(1); }
		int other = receive(channel, message, &size);
		if (message[1] == CONNECTION && other >= 0) {             /* keep it for later */
			waiting = reallocarray(waiting, waiters + 1, sizeof *waiting);
			if (!waiting) die("reallocarray");
			waiting[waiters++] = other;
		} else if (message[1] == ANSWER && size >= HEAD + 3 && !memcmp(message + 2, &cookie, 8)) {
			int verdict = message[HEAD];
			*owed = message[HEAD + 1] & OWED;
			if (verdict >= ALERT)
				fprintf(stderr, "%s %d %.*s\n", verdict == ALERT ? "alert" : "ended", message[HEAD + 2],
				        (int)size - HEAD - 3, message + HEAD + 3);
			return verdict;
		}
	}
}

/* ask tells what made a read fail, when the daemon has seen to it. Nobody else uses the connection meanwhile. */
static int ask(int channel, int fd)
{
	int owed, verdict = question(channel, fd, MET | QUIET, &owed);
	while (owed) {                                                /* before the next write, and there was no room for it */
		struct pollfd room = { .fd = fd, .events = POLLOUT };
		if (poll(&room, 1, 60000) <= 0) { fprintf(stderr, "the peer does not read\n"); return ENDED; }
		int now = question(channel, fd, QUIET, &owed);
		if (now != GO_ON) return now;
	}
	return verdict;
}

/* take is read, with 0 only at the end of the stream, and -1 when the connection was cut. */
static ssize_t take(int channel, int fd, char *into, size_t room)
{
	for (;;) {
		ssize_t n = read(fd, into, room);
		if (n > 0) return n;
		if (n == 0) { fprintf(stderr, "cut off: the peer did not say that this is the end\n"); return -1; }
		if (errno != EIO) { perror("read"); return -1; }
		int verdict = ask(channel, fd);
		if (verdict != GO_ON) return verdict == END ? 0 : -1;
	}
}

static int finish(int fd)
{
	char close_notify[2] = { 1, 0 };
	union { char room[CMSG_SPACE(1)]; struct cmsghdr align; } control = { { 0 } };
	struct iovec part = { close_notify, sizeof close_notify };
	struct msghdr m = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control };
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	c->cmsg_level = TLS, c->cmsg_type = RECORD_TYPE, c->cmsg_len = CMSG_LEN(1);
	*CMSG_DATA(c) = RECORD_ALERT;
	return sendmsg(fd, &m, 0) < 0 ? -1 : shutdown(fd, SHUT_WR);
}

static void get(int channel, int fd, int file)
{
	struct stat is;
	if (fstat(file, &is)) die("fstat");
	off_t at = 0;
	if (dprintf(fd, "OK %lld\n", (long long)is.st_size) < 0) { perror("write"); return; }
	while (at < is.st_size)
		if (sendfile(fd, file, &at, is.st_size - at) <= 0) { perror("sendfile"); return; }
	if (finish(fd)) { perror("close_notify"); return; }
	printf("sent %lld bytes\n", (long long)at);
	char rest[4096];
	while (take(channel, fd, rest, sizeof rest) > 0) {}           /* what is unread at the close would cut what we sent */
}

static void put(int channel, int fd, int file, const char *part, const char *name)
{
	static char data[1 << 16];
	long long size = 0;
	ssize_t n;
	while ((n = take(channel, fd, data, sizeof data)) > 0) {
		if (write(file, data, n) != n) die("write the file");
		size += n;
	}
	if (n < 0) {
		printf("refused %s after %lld bytes\n", name, size);
		return;
	}
	if (rename(part, name)) die("rename");
	printf("stored %s, %lld bytes\n", name, size);
	dprintf(fd, "OK %lld\n", size);
	finish(fd);                                                   /* the peer may have left */
}

static void serve(int channel, int fd)
{
	char line[256] = "", name[256], part[264];
	for (size_t n = 0; !strchr(line, '\n') && n < sizeof line - 1; n++)
		if (take(channel, fd, line + n, 1) <= 0) return;
	int wants_put = sscanf(line, "PUT %250s", name) == 1;
	if ((!wants_put && sscanf(line, "GET %250s", name) != 1) || name[0] == '.' || strchr(name, '/')) return;
	snprintf(part, sizeof part, ".%s.part", name);
	int file = wants_put ? open(part, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600) : open(name, O_RDONLY | O_CLOEXEC);
	if (file < 0) { perror(name); return; }
	if (wants_put) put(channel, fd, file, part, name);
	else get(channel, fd, file);
	close(file);
}

int main(int argc, char **argv)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	int channel = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (argc != 3 || strlen(argv[1]) >= sizeof to.sun_path) { fprintf(stderr, "usage: %s SOCKET DIRECTORY\n", argv[0]); return 2; }
	strcpy(to.sun_path, argv[1]);
	signal(SIGPIPE, SIG_IGN);
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (channel < 0 || setsockopt(channel, SOL_SOCKET, SO_PASSCRED, &(int){ 1 }, sizeof(int))
	    || connect(channel, (struct sockaddr *)&to, sizeof to)
	    || getsockopt(channel, SOL_SOCKET, SO_PEERCRED, &daemon_is, &(socklen_t){ sizeof daemon_is })) die(argv[1]);
	if (chdir(argv[2])) die(argv[2]);
	for (;;) {
		int fd = next_connection(channel);
		/* It comes non-blocking, and what a non-blocking sender has queued may be lost at the close. A peer that
		 * stands still for a minute is left. */
		struct timeval minute = { .tv_sec = 60 };
		if (fcntl(fd, F_SETFL, 0) || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &minute, sizeof minute)) die("fcntl");
		serve(channel, fd);
		close(fd);
	}
}
