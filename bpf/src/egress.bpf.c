// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* The backstop of the plaintext guard, where packets leave: whatever way the bytes came into a managed socket, also those
 * that no process sends (a sockmap, a kernel thread), and also from a HANDSHAKER that went wrong. While a socket is
 * PENDING only bytes leave that have the framing of TLS records; once it has ENDED no byte does. What carries no byte
 * (SYN, ACK, FIN, RST) always leaves.
 *
 * A packet is a part of a stream, cut anywhere, and may be sent again. So the framing is followed by sequence number: all
 * before `next` was looked at, and the state is the one there. New bytes leave in order, since TCP does not take what was
 * not sent for sent; a gap cannot be judged, and does not leave.
 *
 * TCP keeps what was dropped, and tries again. A stream that broke the framing once therefore stays broken, also when the
 * socket becomes READY, so that what is still queued does not leave then. Its connection can only be ended: the event says
 * which. Of the first packet, one: the counter has the others.
 *
 * What this does not see: records are not opened, so a HANDSHAKER may put into them what it likes. And under IPsec the
 * packet is no longer TCP when it passes here.
 */
#include "maps.h"

char LICENSE[] SEC("license") = "GPL";

/* include/uapi/linux/bpf.h; this one is not relocated */
struct __sk_buff {
	__u32 len;
	__u32 before_sk[41];
	struct bpf_sock *sk;
};

struct tcp_sock {
	__u32 write_seq;
} __attribute__((preserve_access_index));

enum {
	DROP = 0,
	PASS = 1,

	BPF_MAP_TYPE_SK_STORAGE = 24,
	BPF_SK_STORAGE_GET_F_CREATE = 1,

	/* include/uapi/linux/in.h, in6.h, ip.h; RFC 9293, section 3.1 */
	IPPROTO_HOPOPTS = 0,
	IPPROTO_TCP = 6,
	IPPROTO_ROUTING = 43,
	IPPROTO_FRAGMENT = 44,
	IPPROTO_DSTOPTS = 60,
	IPV4_PROTOCOL = 9,
	IPV6_NEXT = 6,
	IPV6_HEADER = 40,
	TCP_SEQUENCE = 4,
	TCP_OFFSET = 12,
	TCP_FLAGS = 13,
	TCP_SYN = 2,

	/* RFC 8446, section 5.1 and 5.2; RFC 5246, section 6.2.3 allows 1024 more, which no suite of ours needs */
	RECORD_HEADER = 5,
	RECORD_MAX = 16384 + 256,
	CHANGE_CIPHER_SPEC = 20,
	APPLICATION_DATA = 23,

	/* A packet is shorter than 512 KiB (GSO_MAX_SIZE, include/linux/netdevice.h). A step of `follow` takes one byte at least. */
	MAX_STEPS = 512 * 1024,
};

/* framing of what a socket has sent, up to a sequence number. It is kept at the socket and ends with it. */
struct framing {
	__u32 next;  /* the sequence number of the first byte that was not looked at */
	__u32 limit; /* of a READY socket: what was written before it was first seen READY ends here */
	__u16 left;  /* of the record's body */
	__u8 header; /* bytes of the record's header before next */
	__u8 length; /* the first of the header's two */
	__u8 begun;
	__u8 broken;
	__u8 told;
	__u8 settled; /* READY, and limit was reached */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __s32);
	__type(value, struct framing);
} framings SEC(".maps");

/* payload is where the bytes of a packet are, and where in the stream. */
struct payload {
	struct __sk_buff *skb;
	struct framing *framing;
	__u32 at; /* in the packet, from its network header */
	__u32 end;
	__u32 sequence;
};

enum found { NONE, FOUND, LOST };

/* drop counts the packet, and tells of the first of its socket. Nobody knows here which process sent it. */
static __always_inline int drop(__u32 reason, __u64 cookie, struct framing *framing)
{
	struct stop *event;

	count(reason);
	if (framing) {
		if (framing->told)
			return DROP;
		framing->told = 1;
	}
	event = bpf_ringbuf_reserve(&stops, sizeof(*event), 0);
	if (!event) {
		count(LOST_EVENTS);
		return DROP;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->time = bpf_ktime_get_boot_ns();
	event->cookie = cookie;
	event->reason = reason;
	bpf_ringbuf_submit(event, 0);
	return DROP;
}

/* header_byte takes the next byte of a record's header, and says whether it can be one. */
static __always_inline int header_byte(struct framing *f, __u8 byte)
{
	switch (f->header++) {
	case 0:
		return byte >= CHANGE_CIPHER_SPEC && byte <= APPLICATION_DATA;
	case 1:
		return byte == 3;
	case 2:
		return byte >= 1 && byte <= 3;
	case 3:
		f->length = byte;
		return 1;
	}
	f->header = 0;
	f->left = f->length << 8 | byte;
	return f->left <= RECORD_MAX;
}

/* follow takes one step in the payload: the rest of a body, or one byte of a header. */
static long follow(__u64 step, void *context)
{
	struct payload *p = context;
	struct framing *f = p->framing;
	__u32 n = p->end - p->at;
	__u8 byte;

	if (p->at >= p->end || f->broken)
		return 1;
	if (!f->left) {
		if (bpf_skb_load_bytes(p->skb, p->at, &byte, 1) || !header_byte(f, byte))
			f->broken = 1;
		n = 1;
	} else {
		if (n > f->left)
			n = f->left;
		f->left -= n;
	}
	p->at += n;
	f->next += n;
	return 0;
}

/* framed says whether all of the payload that was not seen before goes on with the framing. */
static __always_inline int framed(struct payload *p)
{
	struct framing *f = p->framing;
	__s32 seen;

	if (!f->begun) {
		f->begun = 1;
		f->next = p->sequence;
	}
	seen = f->next - p->sequence; /* modulo 2^32, RFC 9293, section 3.4 */
	if (seen < 0 || f->broken)
		return 0;
	if ((__u32)seen >= p->end - p->at)
		return 1;
	p->at += seen;
	bpf_loop(MAX_STEPS, follow, p, 0);
	if (p->at < p->end)
		f->broken = 1;
	return !f->broken;
}

/* locate finds the payload. */
static __always_inline enum found locate(struct payload *p)
{
	__u8 first, protocol, offset, flags;
	__be32 sequence;
	__u32 tcp;

	if (bpf_skb_load_bytes(p->skb, 0, &first, 1))
		return LOST;
	tcp = first >> 4 == 4 ? (first & 15) * 4 : IPV6_HEADER;
	if (bpf_skb_load_bytes(p->skb, first >> 4 == 4 ? IPV4_PROTOCOL : IPV6_NEXT, &protocol, 1))
		return LOST;
	switch (protocol) {
	case IPPROTO_TCP:
		break;
	case IPPROTO_HOPOPTS: /* whoever holds an IPv6 socket can have these before its TCP */
	case IPPROTO_ROUTING:
	case IPPROTO_FRAGMENT:
	case IPPROTO_DSTOPTS:
		return LOST;
	default:
		return NONE;
	}
	if (bpf_skb_load_bytes(p->skb, tcp + TCP_SEQUENCE, &sequence, 4) || bpf_skb_load_bytes(p->skb, tcp + TCP_OFFSET, &offset, 1) ||
	    bpf_skb_load_bytes(p->skb, tcp + TCP_FLAGS, &flags, 1))
		return LOST;
	p->at = tcp + (offset >> 4) * 4;
	p->end = p->skb->len;
	p->sequence = __builtin_bswap32(sequence) + !!(flags & TCP_SYN); /* a SYN has a number of its own */
	return p->at < p->end ? FOUND : NONE;
}

/* settled says whether all that a socket was given before it became READY has been judged. What it is given later comes
 * from the record layer. One of which nothing was seen while it was PENDING is not judged: where its records begin is not
 * known.
 */
static __always_inline int settled(struct framing *f, struct tcp_sock *tcp)
{
	if (!f || f->settled)
		return 1;
	if (!f->limit)
		f->limit = tcp->write_seq;
	if (!f->broken && (__s32)(f->next - f->limit) >= 0)
		f->settled = 1;
	return f->settled;
}

SEC("cgroup_skb/egress")
int egress(struct __sk_buff *skb)
{
	struct payload payload = { .skb = skb };
	struct bpf_sock *sk = skb->sk;
	struct managed *managed;
	struct tcp_sock *tcp;
	enum found found;
	__u64 cookie;

	if (!sk)
		return PASS;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return PASS;
	cookie = cookie_of((struct sock *)tcp);
	managed = managed_by(cookie);
	if (!managed)
		return PASS;
	if (managed->phase == READY && settled(bpf_sk_storage_get(&framings, tcp, NULL, 0), tcp))
		return PASS;
	found = locate(&payload);
	if (found == NONE)
		return PASS;
	if (managed->flags & PROBE)
		return DROP;
	payload.framing = bpf_sk_storage_get(&framings, tcp, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (managed->phase != PENDING && managed->phase != READY)
		return drop(DROPPED_LATE, cookie, payload.framing);
	if (found == LOST || !payload.framing)
		return drop(DROPPED_UNREADABLE, cookie, payload.framing);
	return framed(&payload) ? PASS : drop(DROPPED_EARLY, cookie, payload.framing);
}
