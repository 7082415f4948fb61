// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Nobody but a KEYHOLDER gets or sets the keys of a managed socket, or brings it into a state from which its sequence
 * numbers could start again. Reads, writes and all other options are left alone, and so is every other socket.
 *
 * The hooks are before the call does anything (net/socket.c: do_sock_getsockopt, do_sock_setsockopt, __sys_connect_file,
 * __sys_listen), whatever way it came: native, 32 bit, or by io_uring. Programs of cgroup/getsockopt would come too late.
 */
#include "maps.h"

char LICENSE[] SEC("license") = "GPL";

/* include/uapi/linux/tls.h, include/uapi/linux/tcp.h, include/linux/socket.h */
enum {
	SOL_TLS = 282,
	TLS_TX = 1,
	TLS_RX = 2,

	IPPROTO_TCP = 6,
	TCP_REPAIR = 19,
	TCP_REPAIR_QUEUE = 20,
	TCP_QUEUE_SEQ = 21,
	TCP_REPAIR_OPTIONS = 22,
	TCP_REPAIR_WINDOW = 29,
	TCP_ULP = 31,
	TCP_ZEROCOPY_RECEIVE = 35,

	AF_UNSPEC = 0,
};

/* guard denies something on a managed socket. */
static __always_inline int guard(struct socket *sock, __u32 reason)
{
	struct sock *sk = sock->sk;
	__u64 cookie = sk ? cookie_of(sk) : 0;
	struct managed *managed = managed_by(cookie);

	if (!managed)
		return 0;
	if (managed->flags & PROBE)
		return -EPERM;
	return current_is(KEYHOLDER) ? 0 : refuse(reason, cookie, 0);
}

/* tcp_reason says why an option of TCP is guarded, or 0. In repair mode the kernel tells and sets sequence numbers and
 * queues; a zero-copy receive takes records out below TLS; and the ULP is the daemon's to attach.
 */
static __always_inline __u32 tcp_reason(int option)
{
	switch (option) {
	case TCP_REPAIR:
	case TCP_REPAIR_QUEUE:
	case TCP_QUEUE_SEQ:
	case TCP_REPAIR_OPTIONS:
	case TCP_REPAIR_WINDOW:
		return STOPPED_REPAIR;
	case TCP_ZEROCOPY_RECEIVE:
		return STOPPED_ZEROCOPY_RECEIVE;
	}
	return 0;
}

static __always_inline int is_key(int level, int option)
{
	return level == SOL_TLS && (option == TLS_TX || option == TLS_RX);
}

SEC("lsm/socket_getsockopt")
int BPF_PROG(key_get, struct socket *sock, int level, int option, int ret)
{
	__u32 reason = 0;

	if (ret)
		return ret;
	if (is_key(level, option))
		reason = STOPPED_KEY_GET;
	else if (level == IPPROTO_TCP)
		reason = tcp_reason(option);
	return reason ? guard(sock, reason) : 0;
}

SEC("lsm/socket_setsockopt")
int BPF_PROG(key_set, struct socket *sock, int level, int option, int ret)
{
	__u32 reason = 0;

	if (ret)
		return ret;
	if (is_key(level, option))
		reason = STOPPED_KEY_SET;
	else if (level == IPPROTO_TCP)
		reason = option == TCP_ULP ? STOPPED_ULP : tcp_reason(option);
	return reason ? guard(sock, reason) : 0;
}

/* Connecting to no address disconnects, and a socket that is not connected can begin anew. */
SEC("lsm/socket_connect")
int BPF_PROG(key_connect, struct socket *sock, struct sockaddr *address, int length, int ret)
{
	if (ret)
		return ret;
	return address->sa_family == AF_UNSPEC ? guard(sock, STOPPED_DISCONNECT) : 0;
}

SEC("lsm/socket_listen")
int BPF_PROG(key_listen, struct socket *sock, int backlog, int ret)
{
	return ret ? ret : guard(sock, STOPPED_LISTEN);
}

/* A socket leaves the map when the kernel frees it, after the last descriptor and the last segment. */
SEC("fentry/security_sk_free")
int BPF_PROG(key_free, struct sock *sk)
{
	__u64 cookie = cookie_of(sk);

	if (cookie)
		bpf_map_delete_elem(&sockets, &cookie);
	return 0;
}
