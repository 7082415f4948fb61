/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * An emulated network device with TLS offload, for tests: two interfaces, back to
 * back, each of which encrypts what it sends and decrypts what it receives with its
 * own copy of the keys (Documentation/networking/tls-offload.rst).
 */
#ifndef TLSNIC_H
#define TLSNIC_H

#include <crypto/aes.h>
#include <linux/in6.h>
#include <linux/netdevice.h>
#include <linux/version.h>
#include <net/tls.h>

#define TLSNIC_NONCE	8 /* the explicit part, RFC 5288, Section 3 */
#define TLSNIC_HEAD	(TLS_HEADER_SIZE + TLSNIC_NONCE)
#define TLSNIC_DIGEST	16

/* Linux 7 has a type for a key that only encrypts, which is all that GCM needs. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 0, 0)
typedef struct aes_enckey tlsnic_aes;
#define tlsnic_aes_prepare aes_prepareenckey
#else
typedef struct crypto_aes_ctx tlsnic_aes;
#define tlsnic_aes_prepare aes_expandkey
#endif

/* struct tlsnic_key is the device's own copy of a key. */
struct tlsnic_key {
	u8 key[AES_KEYSIZE_256];
	u32 size;
	u8 salt[TLS_CIPHER_AES_GCM_128_SALT_SIZE];
	tlsnic_aes aes;
	u64 hash[2];	/* H of GCM: the encrypted block of zeros */
};

/* struct tlsnic_stream is how far the device is in the records of one direction. */
struct tlsnic_stream {
	u32 next;	/* TCP sequence number of the byte that continues it */
	bool lost;	/* until the kernel says where a record begins */
	u64 record;	/* number of the record in which it is */
	u32 at;		/* bytes of that record that have passed */
	u32 length;	/* of the whole record, from the header */
	u8 head[TLSNIC_HEAD];
	u8 counter[AES_BLOCK_SIZE];
	u8 pad[AES_BLOCK_SIZE];
	u8 block[AES_BLOCK_SIZE];	/* ciphertext that is not hashed yet */
	u64 hash[2];
	u8 mask[AES_BLOCK_SIZE];	/* the encrypted first counter */
	u8 tag[TLS_TAG_SIZE];
	u8 wrong;	/* bits in which the tag on the wire differs */
};

/* struct tlsnic_flow names a connection as its local end sees it. */
struct tlsnic_flow {
	u16 family;
	__be16 local_port, peer_port;
	struct in6_addr local, peer;	/* IPv4 addresses are mapped */
};

struct tlsnic_actor {
	char comm[TASK_COMM_LEN];
	pid_t pid;
};

struct tlsnic_port {
	struct net_device *dev;
	struct tlsnic_port *peer;
};

/*
 * struct tlsnic_entry is a row of the key table. Rows are never freed before the
 * module goes, so that the table tells what became of each key.
 */
struct tlsnic_entry {
	struct list_head list;
	u32 id;
	bool held;
	enum tls_offload_ctx_dir direction;
	struct tlsnic_port *port;
	struct tlsnic_key key;
	u8 digest[TLSNIC_DIGEST];	/* stays when the key is destroyed */
	u64 cookie;
	struct tlsnic_flow flow;
	struct tlsnic_stream stream;
	u64 packets;	/* that the device encrypted or decrypted */
	u64 bypassed;	/* that it left to the kernel */
	u32 resyncs;
	struct tlsnic_actor added, deleted;
};

/* struct tlsnic_faults is what a test has asked for; control.c tells how. */
struct tlsnic_faults {
	u32 capacity;		/* of the key table; 0: no limit */
	int refuse_errno;
	u32 refuse_count;
	u32 refuse_directions;	/* bits, by enum tls_offload_ctx_dir */
	u32 drop_every;
	u32 reorder_every;
	u32 tamper_count;
	u32 seen;		/* data packets since the faults were set */
	struct sk_buff *late;	/* the packet that is overtaken */
};

/* tlsnic_lock guards the table, the events and the faults. */
extern spinlock_t tlsnic_lock;
extern struct list_head tlsnic_entries;
extern struct tlsnic_faults tlsnic_faults;

/* stream.c */
int tlsnic_key_set(struct tlsnic_key *key, const u8 *raw, u32 size, const u8 *salt);
void tlsnic_stream_begin(struct tlsnic_stream *s, u32 seq, const u8 *record);
bool tlsnic_stream_run(struct tlsnic_stream *s, const struct tlsnic_key *key,
		       bool seal, const u8 *in, u8 *out, u32 len);

/* table.c; but for init and exit with the lock held */
struct tlsnic_entry *tlsnic_entry_add(struct tlsnic_entry *entry);
void tlsnic_entry_digest(struct tlsnic_entry *entry);
void tlsnic_entry_destroy(struct tlsnic_entry *entry);
u32 tlsnic_entries_held(void);
void tlsnic_event(const char *what, const struct tlsnic_entry *entry, int error);
void tlsnic_table_show(struct dentry *dir);
void tlsnic_table_free(void);

/* control.c */
int tlsnic_refused(enum tls_offload_ctx_dir direction);
bool tlsnic_drops(struct sk_buff *skb, u32 payload);
struct sk_buff *tlsnic_overtaken(struct sk_buff **skb, u32 payload);
void tlsnic_control_show(struct dentry *dir);
void tlsnic_control_free(void);

/* offload.c */
extern const struct tlsdev_ops tlsnic_tlsdev_ops;
struct sk_buff *tlsnic_transmit(struct tlsnic_port *port, struct sk_buff *skb);
void tlsnic_receive(struct tlsnic_port *port, struct sk_buff *skb);
u32 tlsnic_payload(struct sk_buff *skb);

#endif
