/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the observer needs of TCP and TLS sockets, in the manner of kernel.h. The kernel keeps the TLS context behind a
 * pointer to void, which the verifier does not follow: this much needs bpf_probe_read_kernel, so under
 * lockdown=confidentiality the observer does not load.
 *
 * struct tls_context has the keys as well, in crypto_send and crypto_recv. They are not declared here, and nothing reads a
 * range of the context larger than one sequence number.
 */
#ifndef OFFLOADD_TLS_H
#define OFFLOADD_TLS_H

#include "kernel.h"

/* include/uapi/linux/bpf.h */
enum {
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_NOEXIST = 1,
};

/* include/uapi/linux/tls.h, include/linux/socket.h */
enum {
	SOL_TLS = 282,
	TLS_TX = 1,
	TLS_RX = 2,

	AF_INET = 2,
	AF_INET6 = 10,
	MSG_PEEK = 2,
};

/* include/net/tls.h; the numbers that inet_diag tells are greater by one */
enum {
	TLS_BASE = 0,
	TLS_SW = 1,
	TLS_HW = 2,
};

/* include/net/tcp_states.h */
enum {
	TCP_CLOSE = 7,
	TCP_CLOSE_WAIT = 8,
	TCP_LAST_ACK = 9,
	TCP_CLOSING = 11,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

enum sock_flags {
	SOCK_DONE = 1,
	SOCK_LINGER = 4,
};

struct in6_addr {
	union {
		__u8 u6_addr8[16];
	} in6_u;
};

struct sock_common___addresses {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	unsigned long skc_flags;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};

struct inode {
	unsigned long i_ino;
};

struct file {
	struct inode *f_inode;
};

struct socket___file {
	struct file *file;
};

struct sock___observed {
	struct socket___file *sk_socket;
	unsigned long sk_lingertime;
	int sk_err;
};

struct tcp_ulp_ops {
	char name[16];
};

struct inet_connection_sock {
	const struct tcp_ulp_ops *icsk_ulp_ops;
	void *icsk_ulp_data;
};

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u32 rcv_nxt;
	__u32 copied_seq;
	__u64 bytes_sent;
	__u64 bytes_acked;
	__u64 bytes_received;
	__u64 bytes_retrans;
};

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
	__u32 uid;
};

struct cipher_context {
	char rec_seq[8];
};

/* Before Linux 6.8 the number lies elsewhere. */
struct cipher_context___apart {
	char *rec_seq;
};

struct tls_prot_info {
	__u16 version;
	__u16 cipher_type;
};

struct tls_context {
	struct tls_prot_info prot_info;
	__u8 tx_conf : 3;
	__u8 rx_conf : 3;
	void *priv_ctx_rx;
	struct cipher_context tx;
	struct cipher_context rx;
};

struct tls_context___apart {
	struct cipher_context___apart tx;
	struct cipher_context___apart rx;
};

struct sk_buff_head {
	__u32 qlen;
};

struct tls_sw_context_rx {
	struct sk_buff_head rx_list;
};

#pragma clang attribute pop

/* tls_of is the TLS context of a socket that has one. */
static __always_inline struct tls_context *tls_of(void *sk)
{
	return BPF_CORE_READ((struct tcp_sock *)sk, inet_conn.icsk_ulp_data);
}

/* sequence_of is the number of the next record of a direction that has a key. */
static __always_inline __u64 sequence_of(struct tls_context *tls, int direction)
{
	__u64 number = 0;
	void *at;

	/* Two pointers are 16 bytes; the arrays are more. */
	if (bpf_core_type_size(struct cipher_context) == 16) {
		struct tls_context___apart *apart = (void *)tls;

		if (direction)
			at = BPF_CORE_READ(apart, rx.rec_seq);
		else
			at = BPF_CORE_READ(apart, tx.rec_seq);
	} else {
		if (direction)
			at = __builtin_preserve_access_index(&tls->rx.rec_seq);
		else
			at = __builtin_preserve_access_index(&tls->tx.rec_seq);
	}
	bpf_probe_read_kernel(&number, sizeof(number), at);
	return __builtin_bswap64(number);
}

/* path_of is TLS_BASE, TLS_SW or TLS_HW. */
static __always_inline __u8 path_of(struct tls_context *tls, int direction)
{
	return direction ? BPF_CORE_READ_BITFIELD_PROBED(tls, rx_conf) : BPF_CORE_READ_BITFIELD_PROBED(tls, tx_conf);
}

#endif
