// SPDX-License-Identifier: GPL-2.0-only
/*
 * The key table and the log of events, and how they read in debugfs: a line for each,
 * of name=value separated by tabs. No key is ever shown, only its digest.
 */
#include <crypto/sha2.h>
#include <linux/debugfs.h>
#include <linux/seq_file.h>

#include "tlsnic.h"

#define MAX_ENTRIES	8192
#define MAX_EVENTS	32768

struct event {
	struct list_head list;
	u64 when;	/* in ns, of the monotonic clock */
	const char *what;
	u32 id;
	const char *port;
	enum tls_offload_ctx_dir direction;
	u64 cookie;
	int error;
	struct tlsnic_actor actor;
};

DEFINE_SPINLOCK(tlsnic_lock);
LIST_HEAD(tlsnic_entries);
static LIST_HEAD(events);
static u32 last_id, event_count, events_lost;

static const char *const direction_names[] = {
	[TLS_OFFLOAD_CTX_DIR_RX] = "rx",
	[TLS_OFFLOAD_CTX_DIR_TX] = "tx",
};

/* current_actor is who runs now; a thread counts as its process. */
static struct tlsnic_actor current_actor(void)
{
	struct tlsnic_actor actor = { .pid = task_tgid_nr(current) };

	strscpy(actor.comm, current->comm, sizeof(actor.comm));
	return actor;
}

/* tlsnic_event appends to the log. An entry that was refused has the id 0. */
void tlsnic_event(const char *what, const struct tlsnic_entry *entry, int error)
{
	struct event *event;

	event = event_count < MAX_EVENTS ? kzalloc(sizeof(*event), GFP_ATOMIC) : NULL;
	if (!event) {
		events_lost++;
		return;
	}
	event_count++;
	*event = (struct event){
		.when = ktime_get_ns(), .what = what, .id = entry->id, .port = entry->port->dev->name,
		.direction = entry->direction, .cookie = entry->cookie, .error = error,
		.actor = current_actor(),
	};
	list_add_tail(&event->list, &events);
}

/* tlsnic_entry_digest names the key: the beginning of SHA-256 over key and salt. */
void tlsnic_entry_digest(struct tlsnic_entry *entry)
{
	u8 sum[SHA256_DIGEST_SIZE], material[sizeof(entry->key.key) + sizeof(entry->key.salt)];

	memcpy(material, entry->key.key, entry->key.size);
	memcpy(material + entry->key.size, entry->key.salt, sizeof(entry->key.salt));
	sha256(material, entry->key.size + sizeof(entry->key.salt), sum);
	memcpy(entry->digest, sum, sizeof(entry->digest));
	memzero_explicit(material, sizeof(material));
}

struct tlsnic_entry *tlsnic_entry_add(struct tlsnic_entry *entry)
{
	if (last_id >= MAX_ENTRIES)
		return NULL;
	entry->id = ++last_id;
	entry->held = true;
	entry->added = current_actor();
	tlsnic_entry_digest(entry);
	list_add_tail(&entry->list, &tlsnic_entries);
	return entry;
}

/* tlsnic_entry_destroy erases the key; the row stays. */
void tlsnic_entry_destroy(struct tlsnic_entry *entry)
{
	memzero_explicit(&entry->key, sizeof(entry->key));
	memzero_explicit(&entry->stream.mask, sizeof(entry->stream.mask));
	memzero_explicit(&entry->stream.pad, sizeof(entry->stream.pad));
	entry->held = false;
	entry->deleted = current_actor();
}

u32 tlsnic_entries_held(void)
{
	struct tlsnic_entry *entry;
	u32 held = 0;

	list_for_each_entry(entry, &tlsnic_entries, list)
		held += entry->held;
	return held;
}

static void show_entry(struct seq_file *file, const struct tlsnic_entry *entry)
{
	seq_printf(file, "id=%u\tdevice=%s\tdirection=%s\tstate=%s\tdigest=%*phN", entry->id, entry->port->dev->name,
		   direction_names[entry->direction], entry->held ? "held" : "destroyed", TLSNIC_DIGEST, entry->digest);
	seq_printf(file, "\tcookie=%llu\trecord=%llu\tpackets=%llu\tbypassed=%llu\tresyncs=%u", entry->cookie,
		   entry->stream.record, entry->packets, entry->bypassed, entry->resyncs);
	seq_printf(file, "\tadded_by=%s\tadded_pid=%d\tdeleted_by=%s\tdeleted_pid=%d\n", entry->added.comm,
		   entry->added.pid, entry->deleted.comm, entry->deleted.pid);
}

static int keys_show(struct seq_file *file, void *unused)
{
	struct tlsnic_entry *entry;

	spin_lock_bh(&tlsnic_lock);
	list_for_each_entry(entry, &tlsnic_entries, list)
		show_entry(file, entry);
	spin_unlock_bh(&tlsnic_lock);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(keys);

static int events_show(struct seq_file *file, void *unused)
{
	struct event *event;

	spin_lock_bh(&tlsnic_lock);
	list_for_each_entry(event, &events, list)
		seq_printf(file, "time=%llu\tevent=%s\tid=%u\tdevice=%s\tdirection=%s\tcookie=%llu\terror=%d\tby=%s\tpid=%d\n",
			   event->when, event->what, event->id, event->port, direction_names[event->direction],
			   event->cookie, event->error, event->actor.comm, event->actor.pid);
	if (events_lost)
		seq_printf(file, "lost=%u\n", events_lost);
	spin_unlock_bh(&tlsnic_lock);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(events);

void tlsnic_table_show(struct dentry *dir)
{
	debugfs_create_file("keys", 0400, dir, NULL, &keys_fops);
	debugfs_create_file("events", 0400, dir, NULL, &events_fops);
}

void tlsnic_table_free(void)
{
	struct tlsnic_entry *entry, *next_entry;
	struct event *event, *next_event;

	list_for_each_entry_safe(entry, next_entry, &tlsnic_entries, list)
		kfree_sensitive(entry);
	list_for_each_entry_safe(event, next_event, &events, list)
		kfree(event);
}
