// SPDX-License-Identifier: GPL-2.0-only
/*
 * The faults of the device, asked for by a line written to the file "control":
 *
 *   refuse rx|tx|any ERRNO COUNT   the next COUNT keys are not taken
 *   capacity COUNT                 no more keys are held at a time; 0: no limit
 *   drop N                         every Nth packet with TCP data is lost; 0: none
 *   reorder N                      every Nth is overtaken by the next one; 0: none
 *   tamper COUNT                   the last bit of the next COUNT of them is flipped
 *   spoil ID                       the device's copy of a key is changed
 *   lose ID                        the device forgets where it is in the records
 */
#include <linux/debugfs.h>
#include <linux/uaccess.h>

#include "tlsnic.h"

struct tlsnic_faults tlsnic_faults;

/* tlsnic_refused says with which error a key is not taken. */
int tlsnic_refused(enum tls_offload_ctx_dir direction)
{
	struct tlsnic_faults *f = &tlsnic_faults;

	if (f->refuse_count && f->refuse_directions & BIT(direction)) {
		f->refuse_count--;
		return -f->refuse_errno;
	}
	if (f->capacity && tlsnic_entries_held() >= f->capacity)
		return -ENOSPC;
	return 0;
}

/* tlsnic_drops decides what becomes of a packet on the wire: it may tamper with it, or tell to drop it. */
bool tlsnic_drops(struct sk_buff *skb, u32 payload)
{
	struct tlsnic_faults *f = &tlsnic_faults;

	if (!payload)
		return false;
	f->seen++;
	if (f->tamper_count) {
		f->tamper_count--;
		skb->data[skb->len - 1] ^= 1;
	}
	return f->drop_every && f->seen % f->drop_every == 0;
}

/*
 * tlsnic_overtaken returns the packet that goes out after *skb, if one was held back.
 * If it is *skb itself that has to wait, that becomes NULL.
 */
struct sk_buff *tlsnic_overtaken(struct sk_buff **skb, u32 payload)
{
	struct tlsnic_faults *f = &tlsnic_faults;
	struct sk_buff *late = f->late;

	f->late = NULL;
	if (!late && payload && f->reorder_every && f->seen % f->reorder_every == 0) {
		f->late = *skb;
		*skb = NULL;
	}
	return late;
}

static struct tlsnic_entry *held_entry(u32 id)
{
	struct tlsnic_entry *entry;

	list_for_each_entry(entry, &tlsnic_entries, list)
		if (entry->id == id && entry->held)
			return entry;
	return NULL;
}

static int spoil(u32 id)
{
	struct tlsnic_entry *entry = held_entry(id);
	int err;

	if (!entry)
		return -ENOENT;
	entry->key.key[0] ^= 1;
	err = tlsnic_key_set(&entry->key, entry->key.key, entry->key.size, entry->key.salt);
	tlsnic_entry_digest(entry);
	tlsnic_event("spoil", entry, err);
	return err;
}

static int lose(u32 id)
{
	struct tlsnic_entry *entry = held_entry(id);

	if (!entry)
		return -ENOENT;
	entry->stream.lost = true;
	tlsnic_event("lose", entry, 0);
	return 0;
}

static int refuse(const char *directions, u32 error, u32 count)
{
	struct tlsnic_faults *f = &tlsnic_faults;

	if (!strcmp(directions, "rx"))
		f->refuse_directions = BIT(TLS_OFFLOAD_CTX_DIR_RX);
	else if (!strcmp(directions, "tx"))
		f->refuse_directions = BIT(TLS_OFFLOAD_CTX_DIR_TX);
	else if (!strcmp(directions, "any"))
		f->refuse_directions = BIT(TLS_OFFLOAD_CTX_DIR_RX) | BIT(TLS_OFFLOAD_CTX_DIR_TX);
	else
		return -EINVAL;
	if (!error || error > MAX_ERRNO)
		return -EINVAL;
	f->refuse_errno = error;
	f->refuse_count = count;
	return 0;
}

static int obey(const char *line)
{
	struct tlsnic_faults *f = &tlsnic_faults;
	char directions[4];
	u32 error, n;

	f->seen = 0;
	if (sscanf(line, "refuse %3s %u %u", directions, &error, &n) == 3)
		return refuse(directions, error, n);
	if (sscanf(line, "spoil %u", &n) == 1)
		return spoil(n);
	if (sscanf(line, "lose %u", &n) == 1)
		return lose(n);
	if (sscanf(line, "capacity %u", &n) == 1)
		f->capacity = n;
	else if (sscanf(line, "drop %u", &n) == 1)
		f->drop_every = n;
	else if (sscanf(line, "reorder %u", &n) == 1)
		f->reorder_every = n;
	else if (sscanf(line, "tamper %u", &n) == 1)
		f->tamper_count = n;
	else
		return -EINVAL;
	return 0;
}

static ssize_t control_write(struct file *file, const char __user *from, size_t size, loff_t *at)
{
	char line[64] = {};
	int err;

	if (size >= sizeof(line))
		return -EINVAL;
	if (copy_from_user(line, from, size))
		return -EFAULT;
	spin_lock_bh(&tlsnic_lock);
	err = obey(line);
	spin_unlock_bh(&tlsnic_lock);
	return err ? err : size;
}

static const struct file_operations control_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.write = control_write,
};

void tlsnic_control_show(struct dentry *dir)
{
	debugfs_create_file("control", 0200, dir, NULL, &control_fops);
}

void tlsnic_control_free(void)
{
	kfree_skb(tlsnic_faults.late);
}
