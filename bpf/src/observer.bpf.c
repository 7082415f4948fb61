// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* The observer counts what kernel TLS sockets do, tells of what happens to them, and lists them all. It changes nothing,
 * and reads of the TLS context the version, the cipher's name, the path and the sequence numbers, never a key.
 *
 * What a record costs is nothing: numbers of records are taken from the kernel's own sequence numbers after each call.
 * A connection is known by its cookie, since storage at the socket is not to be had on functions of a module.
 */
#include "observer.h"
#include "tls.h"

char LICENSE[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, __u64);
	__type(value, struct connection);
} observed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sums);
} observed_sums SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1024 * 1024);
} observed_events SEC(".maps");

/* A task can be preempted, and a softirq come in between, so that also one CPU's own counters are added to atomically. */
#define ADD(counter, n) __sync_fetch_and_add(&(counter), n)

static __always_inline struct sums *sums_here(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&observed_sums, &zero);
}

static __always_inline __u64 cookie_of(struct sock *sk)
{
	return sk->__sk_common.skc_cookie.counter;
}

static __always_inline struct connection *connection_of(struct sock *sk)
{
	__u64 cookie = cookie_of(sk);

	return bpf_map_lookup_elem(&observed, &cookie);
}

static __always_inline void fill_address(struct address *a, struct sock_common *common)
{
	struct sock_common___addresses *from = (void *)common;

	a->family = from->skc_family;
	a->local_port = from->skc_num;
	a->peer_port = __builtin_bswap16(from->skc_dport);
	if (a->family == AF_INET) {
		*(__u32 *)a->local = from->skc_rcv_saddr;
		*(__u32 *)a->peer = from->skc_daddr;
	} else {
		BPF_CORE_READ_INTO(&a->local, from, skc_v6_rcv_saddr.in6_u.u6_addr8);
		BPF_CORE_READ_INTO(&a->peer, from, skc_v6_daddr.in6_u.u6_addr8);
	}
}

static __always_inline void tell(struct sums *sums, __u64 cookie, struct connection *c, __u32 kind, __u32 direction,
				 __s32 error, __u32 layer)
{
	struct event *event = bpf_ringbuf_reserve(&observed_events, sizeof(*event), 0);

	if (!event) {
		ADD(sums->lost, 1);
		return;
	}
	event->time = bpf_ktime_get_boot_ns();
	event->cookie = cookie;
	event->kind = kind;
	event->direction = direction;
	event->error = error;
	event->layer = layer;
	event->connection = *c;
	bpf_ringbuf_submit(event, 0);
}

/* advance counts the records up to the kernel's sequence number. Calls that end at the same time on other CPUs do so too:
 * whoever sees the highest number counts, and whoever comes too late leaves the rest to the next call.
 */
static __always_inline void advance(struct sums *sums, struct connection *c, struct tls_context *tls, int direction)
{
	__u64 now = sequence_of(tls, direction);

#pragma unroll
	for (int i = 0; i < 4; i++) {
		__u64 seen = *(volatile __u64 *)&c->sequence[direction];

		if (now <= seen)
			return;
		if (__sync_val_compare_and_swap(&c->sequence[direction], seen, now) == seen) {
			ADD(c->records[direction], now - seen);
			ADD(sums->records[direction], now - seen);
			return;
		}
	}
}

static __always_inline int kind_of_error(__s64 error)
{
	switch (-error) {
	case 74: /* EBADMSG */
		return ERROR_BADMSG;
	case 5: /* EIO */
		return ERROR_IO;
	case 90: /* EMSGSIZE */
		return ERROR_MSGSIZE;
	case 22: /* EINVAL */
		return ERROR_INVAL;
	case 32:  /* EPIPE */
	case 103: /* ECONNABORTED */
	case 104: /* ECONNRESET */
	case 107: /* ENOTCONN */
		return ERROR_RESET;
	case 110: /* ETIMEDOUT */
		return ERROR_TIMEDOUT;
	case 127: /* EKEYEXPIRED */
		return ERROR_KEYEXPIRED;
	case 4:   /* EINTR, and below what the kernel makes of it: include/linux/errno.h */
	case 512: /* ERESTARTSYS */
	case 513:
	case 514:
	case 516:
	case EAGAIN:
		return -1;
	}
	return ERROR_OTHER;
}

/* called counts one call into the record layer, which returned bytes or an error. */
static __always_inline int called(struct sock *sk, int direction, __s64 result, int peek)
{
	struct sums *sums = sums_here();
	struct connection *c = connection_of(sk);
	int kind;

	if (!sums)
		return 0;
	ADD(sums->calls[direction], 1);
	if (c) {
		ADD(c->calls[direction], 1);
		advance(sums, c, tls_of(sk), direction);
	}
	if (result >= 0) {
		if (peek || !result)
			return 0;
		ADD(sums->bytes[direction], result);
		if (c)
			ADD(c->bytes[direction], result);
		return 0;
	}
	kind = kind_of_error(result);
	if (kind < 0 || kind >= ERRORS)
		return 0;
	ADD(sums->errors[kind], 1);
	/* Programs may repeat what fails: the first error of each kind is told of, all are counted. */
	if (c && !ADD(c->errors[kind], 1))
		tell(sums, cookie_of(sk), c, EVENT_ERROR, direction, result, 0);
	return 0;
}

/* The result of a function, wherever its number of arguments puts it. */
static __always_inline __s64 result_of(void *ctx)
{
	__u64 result = 0;

	bpf_get_func_ret(ctx, &result);
	return (__s64)result;
}

static __always_inline int called_int(__u64 *ctx, int direction, int peek)
{
	return called((struct sock *)ctx[0], direction, (__s32)result_of(ctx), peek);
}

SEC("fexit/tls_sw_sendmsg")
int observe_sw_sendmsg(__u64 *ctx)
{
	return called_int(ctx, TX, 0);
}

SEC("fexit/tls_device_sendmsg")
int observe_device_sendmsg(__u64 *ctx)
{
	return called_int(ctx, TX, 0);
}

/* Until Linux 6.5 sendfile has functions of its own, and since then its end has. */
SEC("fexit/tls_sw_sendpage")
int observe_sw_sendpage(__u64 *ctx)
{
	return called_int(ctx, TX, 0);
}

SEC("fexit/tls_device_sendpage")
int observe_device_sendpage(__u64 *ctx)
{
	return called_int(ctx, TX, 0);
}

/* The end of a sendfile closes the record that was left open. */
static __always_inline int splice_eof(struct socket *sock)
{
	struct sock *sk = sock->sk;
	struct connection *c = connection_of(sk);
	struct sums *sums = sums_here();

	if (sums && c)
		advance(sums, c, tls_of(sk), TX);
	return 0;
}

SEC("fexit/tls_sw_splice_eof")
int observe_sw_splice_eof(__u64 *ctx)
{
	return splice_eof((struct socket *)ctx[0]);
}

SEC("fexit/tls_device_splice_eof")
int observe_device_splice_eof(__u64 *ctx)
{
	return splice_eof((struct socket *)ctx[0]);
}

SEC("fexit/tls_sw_recvmsg")
int observe_sw_recvmsg(__u64 *ctx)
{
	return called_int(ctx, RX, (int)ctx[3] & MSG_PEEK);
}

SEC("fexit/tls_sw_splice_read")
int observe_sw_splice_read(__u64 *ctx)
{
	struct socket *sock = (void *)ctx[0];

	return called(sock->sk, RX, result_of(ctx), 0);
}

/* Programs in the kernel (NFS, NVMe) read so. */
SEC("fexit/tls_sw_read_sock")
int observe_sw_read_sock(__u64 *ctx)
{
	return called_int(ctx, RX, 0);
}

/* tls_err_abort ends the stream: a record that was forged, cut or too long, or ciphertext that could not be sent. */
SEC("fentry/tls_err_abort")
int observe_err_abort(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	struct connection *c = connection_of(sk);
	struct sums *sums = sums_here();
	__s32 error = (__s32)ctx[1];

	if (!sums)
		return 0;
	ADD(sums->failures, 1);
	if (!c)
		return 0;
	ADD(c->failures, 1);
	c->failure = error;
	tell(sums, cookie_of(sk), c, EVENT_ERROR, 0, error, 1);
	return 0;
}

/* Every socket that becomes a TLS socket has a cookie from here on, asked for or not. Functions of a module cannot make one. */
SEC("fentry/tcp_set_ulp")
int observe_ulp(__u64 *ctx)
{
	bpf_get_socket_cookie((struct sock *)ctx[0]);
	return 0;
}

/* key_set takes over where a new key begins, with the socket locked: no call can have used it. */
static __always_inline int key_set(struct sock *sk, int direction, __s32 result)
{
	struct tls_context *tls = tls_of(sk);
	struct connection *c = connection_of(sk);

	if (result)
		return 0;
	if (!c) {
		struct connection new = {};
		__u64 cookie = cookie_of(sk);

		/* A socket that had keys before the observer came has no entry, and gets none. */
		if (path_of(tls, TX) > TLS_BASE || path_of(tls, RX) > TLS_BASE)
			return 0;
		new.since = bpf_ktime_get_boot_ns();
		fill_address(&new.address, &sk->__sk_common);
		bpf_map_update_elem(&observed, &cookie, &new, BPF_NOEXIST);
		c = bpf_map_lookup_elem(&observed, &cookie);
		if (!c)
			return 0;
	}
	c->sequence[direction] = sequence_of(tls, direction);
	return 0;
}

/* The place of the direction among the arguments is another since Linux 6.2. */
static __always_inline int direction_of(void *ctx)
{
	__u64 tx = 0;

	bpf_get_func_arg(ctx, bpf_core_type_size(struct cipher_context) == 16 ? 2 : 1, &tx);
	return (__s32)tx ? TX : RX;
}

/* A new key begins at another number: count up to where the old one ends. */
SEC("fentry/tls_set_sw_offload")
int observe_sw_offload_begin(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	struct connection *c = connection_of(sk);
	struct sums *sums = sums_here();
	int direction = direction_of(ctx);

	if (!sums || !c)
		return 0;
	if (direction == TX && c->path[TX] > TLS_BASE)
		advance(sums, c, tls_of(sk), TX);
	if (direction == RX && c->path[RX] > TLS_BASE)
		advance(sums, c, tls_of(sk), RX);
	return 0;
}

/* Of a device's read key too, which has a software context beside it. */
SEC("fexit/tls_set_sw_offload")
int observe_sw_offload(__u64 *ctx)
{
	__s32 result = result_of(ctx);
	struct sock *sk = (void *)ctx[0];

	return direction_of(ctx) == TX ? key_set(sk, TX, result) : key_set(sk, RX, result);
}

SEC("fexit/tls_set_device_offload")
int observe_device_offload(__u64 *ctx)
{
	return key_set((struct sock *)ctx[0], TX, result_of(ctx));
}

static __always_inline void installed(struct sock *sk, struct sums *sums, int direction)
{
	struct tls_context *tls = tls_of(sk);
	struct connection *c = connection_of(sk);
	__u8 path = path_of(tls, direction);

	if (path < TLS_SW)
		return;
	if (c && c->path[direction] > TLS_BASE) {
		ADD(c->rekeys[direction], 1);
		ADD(sums->rekeys[direction], 1);
		tell(sums, cookie_of(sk), c, EVENT_REKEYED, direction, 0, 0);
		return;
	}
	ADD(sums->installs[direction][path == TLS_HW], 1);
	/* The first key of a connection is the one beside which there is no other. */
	if (path_of(tls, !direction) <= TLS_BASE)
		ADD(sums->connections, 1);
	if (!c) {
		if (path_of(tls, !direction) <= TLS_BASE)
			ADD(sums->unlisted, 1);
		return;
	}
	c->version = BPF_CORE_READ(tls, prot_info.version);
	c->cipher = BPF_CORE_READ(tls, prot_info.cipher_type);
	c->path[direction] = path;
	tell(sums, cookie_of(sk), c, EVENT_INSTALLED, direction, 0, 0);
}

/* Only here is it known that all went well, and on which path. The option's value, which is the key, is not looked at. */
SEC("fexit/tls_setsockopt")
int observe_setsockopt(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	struct sums *sums = sums_here();

	if (!sums || (int)ctx[1] != SOL_TLS || (__s32)result_of(ctx))
		return 0;
	if ((int)ctx[2] == TLS_TX)
		installed(sk, sums, TX);
	else if ((int)ctx[2] == TLS_RX)
		installed(sk, sums, RX);
	return 0;
}

/* TCP ends a connection before its socket is closed, and the program may take the errno out of the socket (SO_ERROR). */
SEC("tp_btf/inet_sock_set_state")
int observe_state(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	struct connection *c;

	if ((int)ctx[2] != TCP_CLOSE)
		return 0;
	c = connection_of(sk);
	if (c)
		c->ended = ((struct sock___observed *)sk)->sk_err;
	return 0;
}

static __always_inline int end_of_error(__s32 error)
{
	switch (error) {
	case 0:
		return END_PROPER;
	case 32:  /* EPIPE: after the peer's FIN */
	case 104: /* ECONNRESET */
		return END_RESET;
	case 103: /* ECONNABORTED */
		return END_ABORTED;
	case 110: /* ETIMEDOUT */
	case 113: /* EHOSTUNREACH */
	case 101: /* ENETUNREACH */
		return END_TIMEOUT;
	}
	return END_OTHER;
}

/* how_ended decides as tcp_close (net/ipv4/tcp.c) is about to. */
static __always_inline void how_ended(struct sock *sk, struct tls_context *tls, struct connection *c)
{
	struct sock___observed *s = (void *)sk;
	struct tls_sw_context_rx *rx = BPF_CORE_READ(tls, priv_ctx_rx);
	__u8 state = sk->__sk_common.skc_state;
	unsigned long flags = ((struct sock_common___addresses *)&sk->__sk_common)->skc_flags;

	c->unread = BPF_CORE_READ((struct tcp_sock *)sk, rcv_nxt) - BPF_CORE_READ((struct tcp_sock *)sk, copied_seq);
	if (c->unread && flags & 1UL << SOCK_DONE)
		c->unread--; /* the FIN has a number too */
	if (c->path[RX] > TLS_BASE)
		c->unread_records = BPF_CORE_READ(rx, rx_list.qlen);
	c->peer_first = state == TCP_CLOSE_WAIT || state == TCP_LAST_ACK || state == TCP_CLOSING;
	if (state == TCP_CLOSE)
		c->end = end_of_error(c->ended);
	else if (c->unread)
		c->end = END_UNREAD;
	else if (flags & 1UL << SOCK_LINGER && !s->sk_lingertime)
		c->end = END_ABORTED;
	else
		c->end = END_PROPER;
}

/* The last descriptor was closed, and nobody can call any more. The socket may live on, without keys in software. */
SEC("fentry/tls_sk_proto_close")
int observe_close(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	__u64 cookie = cookie_of(sk);
	struct connection *c = connection_of(sk);
	struct tls_context *tls = tls_of(sk);
	struct sums *sums = sums_here();

	if (!sums || !c)
		return 0;
	if (c->path[TX] > TLS_BASE)
		advance(sums, c, tls, TX);
	if (c->path[RX] > TLS_BASE)
		advance(sums, c, tls, RX);
	if (c->path[TX] > TLS_BASE || c->path[RX] > TLS_BASE) {
		how_ended(sk, tls, c);
		if (c->end < ENDS)
			ADD(sums->ends[c->end], 1);
		tell(sums, cookie, c, EVENT_CLOSED, 0, 0, 0);
	}
	bpf_map_delete_elem(&observed, &cookie);
	return 0;
}

/* The iterator holds the socket's lock. It lists those of the network namespace of whoever opens it. */
SEC("iter/tcp")
int observe_list(struct bpf_iter__tcp *ctx)
{
	struct sock_common *common = ctx->sk_common;
	struct tcp_sock *tcp;
	struct sock___observed *s;
	struct tls_context *tls;
	struct listed l = {};

	if (!common)
		return 0;
	tcp = bpf_skc_to_tcp_sock(common);
	if (!tcp || !tcp->inet_conn.icsk_ulp_ops || *(__u32 *)tcp->inet_conn.icsk_ulp_ops->name != 0x736c74) /* "tls" */
		return 0;
	tls = tcp->inet_conn.icsk_ulp_data;
	s = (void *)tcp;
	if (!tls)
		return 0;
	l.cookie = bpf_get_socket_cookie((void *)tcp);
	l.path[TX] = path_of(tls, TX);
	l.path[RX] = path_of(tls, RX);
	if (l.path[TX] > TLS_BASE)
		l.sequence[TX] = sequence_of(tls, TX);
	if (l.path[RX] > TLS_BASE)
		l.sequence[RX] = sequence_of(tls, RX);
	l.version = BPF_CORE_READ(tls, prot_info.version);
	l.cipher = BPF_CORE_READ(tls, prot_info.cipher_type);
	l.sent = tcp->bytes_sent;
	l.acked = tcp->bytes_acked;
	l.received = tcp->bytes_received;
	l.retransmitted = tcp->bytes_retrans;
	l.uid = ctx->uid;
	l.state = common->skc_state;
	if (s->sk_socket && s->sk_socket->file)
		l.inode = s->sk_socket->file->f_inode->i_ino;
	fill_address(&l.address, common);
	bpf_seq_write(ctx->meta->seq, &l, sizeof(l));
	return 0;
}
