// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* A managed socket sends nothing in clear: while it is PENDING only a HANDSHAKER sends, whose bytes are those of the
 * handshake, and once it has ENDED nobody does. READY is for everybody: whoever writes then, the record layer encrypts.
 *
 * All that a process sends of its own passes sock_sendmsg (net/socket.c), whichever call it came by and whichever thread
 * of an io_uring made it. Linux before 6.5 has a second way into TCP, by pages, which sendfile, splice and vmsplice take
 * and which asks nobody but rw_verify_area (fs/read_write.c).
 */
#include "maps.h"

char LICENSE[] SEC("license") = "GPL";

/* include/linux/fs.h */
enum { MAY_WRITE = 2 };

struct file;
struct msghdr;

struct proto_ops {
	void *sendpage; /* the way by pages, while there was one */
} __attribute__((preserve_access_index));

/* guard denies sending on a managed socket. A phase that it does not know is no phase to send in. */
static __always_inline int guard(struct socket *sock)
{
	struct sock *sk = sock->sk;
	__u64 cookie = sk ? cookie_of(sk) : 0;
	struct managed *managed = managed_by(cookie);

	if (!managed)
		return 0;
	if (managed->flags & PROBE)
		return -EPERM;
	switch (managed->phase) {
	case READY:
		return 0;
	case PENDING:
		return current_is(HANDSHAKER) ? 0 : refuse(STOPPED_EARLY, cookie, 0);
	}
	return refuse(STOPPED_LATE, cookie, 0);
}

SEC("lsm/socket_sendmsg")
int BPF_PROG(plaintext_send, struct socket *sock, struct msghdr *message, int size, int ret)
{
	return ret ? ret : guard(sock);
}

/* This hook is asked for each read and write of each file of the machine, so it looks no further than it must. Where the
 * kernel has no way by pages the loader leaves it out.
 */
SEC("lsm/file_permission")
int BPF_PROG(plaintext_write, struct file *file, int mask, int ret)
{
	struct socket *sock;

	if (ret || !(mask & MAY_WRITE) || !bpf_core_field_exists(struct proto_ops, sendpage))
		return ret;
	sock = bpf_sock_from_file(file);
	return sock ? guard(sock) : 0;
}
