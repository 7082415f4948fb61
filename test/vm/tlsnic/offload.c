// SPDX-License-Identifier: GPL-2.0-only
/*
 * The kernel's side of the device (struct tlsdev_ops), and what happens to packets.
 *
 * Sending: what continues a stream is encrypted by the device; anything else, like a
 * retransmission, by the kernel (tls_encrypt_skb), and after a gap the kernel is asked
 * where the next record begins. Receiving: what continues a stream is decrypted;
 * anything else is left as it is, until the kernel says by itself where the next
 * record begins (TLS_OFFLOAD_SYNC_TYPE_CORE_NEXT_HINT).
 */
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <net/inet_sock.h>
#include <net/ipv6.h>
#include <net/tcp.h>

#include "tlsnic.h"

/* row is where the kernel keeps our pointer for one direction of a socket. */
static struct tlsnic_entry **row(struct tls_context *ctx, enum tls_offload_ctx_dir direction)
{
	return __tls_driver_ctx(ctx, direction);
}

static void socket_flow(const struct sock *sk, struct tlsnic_flow *flow)
{
	const struct inet_sock *inet = inet_sk(sk);

	flow->local_port = inet->inet_sport;
	flow->peer_port = inet->inet_dport;
	if (sk->sk_family == AF_INET6 && !ipv6_addr_v4mapped(&sk->sk_v6_daddr)) {
		flow->family = AF_INET6;
		flow->local = inet6_sk(sk)->saddr;
		flow->peer = sk->sk_v6_daddr;
		return;
	}
	flow->family = AF_INET;
	ipv6_addr_set_v4mapped(inet->inet_saddr, &flow->local);
	ipv6_addr_set_v4mapped(inet->inet_daddr, &flow->peer);
}

/* packet_flow reads the addresses of a received TCP segment; false if it is none. */
static bool packet_flow(struct sk_buff *skb, struct tlsnic_flow *flow)
{
	if (skb->protocol == htons(ETH_P_IP) && ip_hdr(skb)->protocol == IPPROTO_TCP) {
		flow->family = AF_INET;
		ipv6_addr_set_v4mapped(ip_hdr(skb)->daddr, &flow->local);
		ipv6_addr_set_v4mapped(ip_hdr(skb)->saddr, &flow->peer);
	} else if (skb->protocol == htons(ETH_P_IPV6) && ipv6_hdr(skb)->nexthdr == IPPROTO_TCP) {
		flow->family = AF_INET6;
		flow->local = ipv6_hdr(skb)->daddr;
		flow->peer = ipv6_hdr(skb)->saddr;
	} else {
		return false;
	}
	flow->local_port = tcp_hdr(skb)->dest;
	flow->peer_port = tcp_hdr(skb)->source;
	return true;
}

/* tlsnic_payload is how many bytes of TCP data a packet carries. */
u32 tlsnic_payload(struct sk_buff *skb)
{
	struct tlsnic_flow flow;

	return packet_flow(skb, &flow) ? skb->len - skb_tcp_all_headers(skb) : 0;
}

static struct tlsnic_entry *new_entry(struct net_device *dev, struct sock *sk, enum tls_offload_ctx_dir direction,
				      struct tls_crypto_info *info, u32 seq)
{
	const struct tls12_crypto_info_aes_gcm_128 *small = (void *)info;
	const struct tls12_crypto_info_aes_gcm_256 *large = (void *)info;
	struct tlsnic_entry *entry;
	int err = -EOPNOTSUPP;

	entry = kzalloc(sizeof(*entry), GFP_KERNEL);
	if (!entry)
		return ERR_PTR(-ENOMEM);
	entry->port = netdev_priv(dev);
	entry->direction = direction;
	entry->cookie = atomic64_read(&sk->sk_cookie);
	socket_flow(sk, &entry->flow);
	if (info->version == TLS_1_2_VERSION && info->cipher_type == TLS_CIPHER_AES_GCM_128) {
		err = tlsnic_key_set(&entry->key, small->key, sizeof(small->key), small->salt);
		tlsnic_stream_begin(&entry->stream, seq, small->rec_seq);
	} else if (info->version == TLS_1_2_VERSION && info->cipher_type == TLS_CIPHER_AES_GCM_256) {
		err = tlsnic_key_set(&entry->key, large->key, sizeof(large->key), large->salt);
		tlsnic_stream_begin(&entry->stream, seq, large->rec_seq);
	}
	if (!err)
		return entry;
	kfree_sensitive(entry);
	return ERR_PTR(err);
}

static int dev_add(struct net_device *dev, struct sock *sk, enum tls_offload_ctx_dir direction,
		   struct tls_crypto_info *info, u32 seq)
{
	struct tlsnic_entry *entry;
	int err;

	entry = new_entry(dev, sk, direction, info, seq);
	if (IS_ERR(entry))
		return PTR_ERR(entry);
	spin_lock_bh(&tlsnic_lock);
	err = tlsnic_refused(direction);
	if (!err && !tlsnic_entry_add(entry))
		err = -ENOMEM;
	tlsnic_event(err ? "refuse" : "add", entry, err);
	if (!err)
		*row(tls_get_ctx(sk), direction) = entry;
	spin_unlock_bh(&tlsnic_lock);
	if (err)
		kfree_sensitive(entry);
	else if (direction == TLS_OFFLOAD_CTX_DIR_RX)
		tls_offload_rx_resync_set_type(sk, TLS_OFFLOAD_SYNC_TYPE_CORE_NEXT_HINT);
	return err;
}

static void dev_del(struct net_device *dev, struct tls_context *ctx, enum tls_offload_ctx_dir direction)
{
	struct tlsnic_entry *entry = *row(ctx, direction);

	spin_lock_bh(&tlsnic_lock);
	/* A second delete, or one of the wrong device, would be a fault of the kernel's: a test looks for it. */
	tlsnic_event("del", entry, entry->held && entry->port->dev == dev ? 0 : -EINVAL);
	tlsnic_entry_destroy(entry);
	spin_unlock_bh(&tlsnic_lock);
}

static int dev_resync(struct net_device *dev, struct sock *sk, u32 seq, u8 *record,
		      enum tls_offload_ctx_dir direction)
{
	struct tlsnic_entry *entry = *row(tls_get_ctx(sk), direction);

	spin_lock_bh(&tlsnic_lock);
	tlsnic_stream_begin(&entry->stream, seq, record);
	entry->resyncs++;
	tlsnic_event("resync", entry, 0);
	spin_unlock_bh(&tlsnic_lock);
	return 0;
}

const struct tlsdev_ops tlsnic_tlsdev_ops = {
	.tls_dev_add = dev_add,
	.tls_dev_del = dev_del,
	.tls_dev_resync = dev_resync,
};

static bool is_offloaded(struct sk_buff *skb)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 6, 0)
	return tls_is_skb_tx_device_offloaded(skb);
#else
	return skb->sk && tls_is_sk_tx_device_offloaded(skb->sk);
#endif
}

/* private_copy is linear, so that it can be changed: TCP keeps the original for retransmissions. */
static struct sk_buff *private_copy(struct sk_buff *skb)
{
	struct sk_buff *copy = skb_copy(skb, GFP_ATOMIC);

	consume_skb(skb);
	if (copy)
		copy->decrypted = 0;
	return copy;
}

/* continues says whether the device may encrypt the packet; after a gap it asks for a new beginning. */
static bool continues(struct tlsnic_entry *entry, struct sk_buff *skb, u32 seq)
{
	bool asked = tls_offload_tx_resync_pending(skb->sk);
	struct tlsnic_stream *s = &entry->stream;

	if (!asked && entry->held && !s->lost && seq == s->next)
		return true;
	entry->bypassed++;
	if (!asked && (s->lost || after(seq, s->next)))
		tls_offload_tx_resync_request(skb->sk, seq, s->next);
	return false;
}

/* encrypt returns a packet as it goes over the wire, or NULL: never one in clear. */
static struct sk_buff *encrypt(struct tlsnic_port *port, struct sk_buff *skb)
{
	struct tlsnic_entry *entry = *row(tls_get_ctx(skb->sk), TLS_OFFLOAD_CTX_DIR_TX);
	u32 head = skb_tcp_all_headers(skb), seq = ntohl(tcp_hdr(skb)->seq);
	bool ours, sealed = true;

	spin_lock_bh(&tlsnic_lock);
	ours = entry->port == port && continues(entry, skb, seq);
	if (ours) {
		skb = private_copy(skb);
		sealed = skb && tlsnic_stream_run(&entry->stream, &entry->key, true, skb->data + head,
						  skb->data + head, skb->len - head);
		entry->packets += sealed;
	}
	spin_unlock_bh(&tlsnic_lock);
	if (!ours) {
		skb = tls_encrypt_skb(skb);
		return skb ? private_copy(skb) : NULL;
	}
	if (sealed)
		return skb;
	kfree_skb(skb);
	return NULL;
}

/* tlsnic_transmit turns what the stack sends into what is on the wire. */
struct sk_buff *tlsnic_transmit(struct tlsnic_port *port, struct sk_buff *skb)
{
	if (is_offloaded(skb) && tlsnic_payload(skb))
		return encrypt(port, skb);
	return private_copy(skb);
}

static struct tlsnic_entry *find_entry(struct tlsnic_port *port, const struct tlsnic_flow *flow)
{
	struct tlsnic_entry *entry;

	list_for_each_entry(entry, &tlsnic_entries, list) {
		const struct tlsnic_flow *f = &entry->flow;

		if (entry->held && entry->direction == TLS_OFFLOAD_CTX_DIR_RX && entry->port == port &&
		    f->family == flow->family && f->local_port == flow->local_port && f->peer_port == flow->peer_port &&
		    ipv6_addr_equal(&f->local, &flow->local) && ipv6_addr_equal(&f->peer, &flow->peer))
			return entry;
	}
	return NULL;
}

/* decrypt replaces the data if all of it continues the stream and no tag is wrong. */
static bool decrypt(struct tlsnic_entry *entry, u32 seq, u8 *data, u32 len)
{
	struct tlsnic_stream *s = &entry->stream;
	bool opened;
	u8 *plain;

	if (s->lost || seq != s->next)
		return false;
	plain = kmalloc(len, GFP_ATOMIC);
	if (!plain)
		return false;
	opened = tlsnic_stream_run(s, &entry->key, false, data, plain, len);
	if (opened)
		memcpy(data, plain, len);
	kfree_sensitive(plain);
	return opened;
}

/* tlsnic_receive marks what the device could decrypt, and vouches for checksums. */
void tlsnic_receive(struct tlsnic_port *port, struct sk_buff *skb)
{
	u32 head, len = tlsnic_payload(skb);
	struct tlsnic_entry *entry;
	struct tlsnic_flow flow;

	if (!len || !packet_flow(skb, &flow))
		return;
	skb->ip_summed = CHECKSUM_UNNECESSARY;
	head = skb_tcp_all_headers(skb);
	spin_lock_bh(&tlsnic_lock);
	entry = find_entry(port, &flow);
	if (entry && decrypt(entry, ntohl(tcp_hdr(skb)->seq), skb->data + head, len)) {
		skb->decrypted = 1;
		entry->packets++;
	} else if (entry) {
		entry->bypassed++;
	}
	spin_unlock_bh(&tlsnic_lock);
}
