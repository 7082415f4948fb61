/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The maps that all objects share, by name, and what is in them. The loader makes each once, for the first object that
 * names it. Their Go side is in maps.go.
 *
 * No object may have global variables: each would be a map of its own, made anew by every load.
 */
#ifndef OFFLOADD_MAPS_H
#define OFFLOADD_MAPS_H

#include "kernel.h"

enum phase {
	PENDING = 1, /* TLS is expected and no key is in: only a HANDSHAKER may send */
	READY = 2,   /* the keys are in: whoever holds the socket may send */
	ENDED = 3,   /* nobody may send */
};

/* A PROBE is a socket of the self-test: what is denied on it is denied to all, and is not counted. */
enum { PROBE = 1 };

/* A socket is managed as long as it is in the map. It is in there as a number that the kernel never gives twice
 * (SO_COOKIE), since storage at the socket itself is not to be had from fmod_ret programs.
 */
struct managed {
	__u32 phase;
	__u32 flags;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, __u64);
	__type(value, struct managed);
} sockets SEC(".maps");

enum role {
	KEYHOLDER = 1,  /* may get and set keys */
	HANDSHAKER = 2, /* may send on a PENDING socket */
	SHIELDED = 4,   /* no other process may look into its memory, or take its descriptors */
	PROBED = 8,     /* a SHIELDED one of the self-test: what is denied is not counted */
};

/* Roles are those of a process, and so kept at the leader of its threads. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __s32);
	__type(value, __u32);
} tasks SEC(".maps");

/* Why something was stopped. Never renumbered: counters outlive an upgrade. */
enum reason {
	LOST_EVENTS = 0, /* not a reason: stops that were counted, and of which the ring had no room to tell */

	/* key guard and process shield */
	STOPPED_KEY_GET = 1,
	STOPPED_KEY_SET = 2,
	STOPPED_REPAIR = 3,
	STOPPED_ZEROCOPY_RECEIVE = 4,
	STOPPED_ULP = 5,
	STOPPED_DISCONNECT = 6,
	STOPPED_LISTEN = 7,
	STOPPED_ATTACH = 8,

	/* plaintext guard: before the keys, and after the end */
	STOPPED_EARLY = 16,
	STOPPED_LATE = 17,
	/* its backstop: packets, each as often as TCP tries */
	DROPPED_EARLY = 18,
	DROPPED_LATE = 19,
	DROPPED_UNREADABLE = 20,

	REASONS = 64,
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, REASONS);
	__type(key, __u32);
	__type(value, __u64);
} stopped SEC(".maps");

struct stop {
	__u64 time;   /* CLOCK_BOOTTIME, in ns */
	__u64 cookie; /* of the socket, or 0 */
	__u32 pid;    /* of the process that was stopped, and its user */
	__u32 uid;
	__u32 reason;
	__u32 target; /* pid of the process that was protected, or 0 */
	char comm[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} stops SEC(".maps");

static __always_inline void count(__u32 reason)
{
	__u64 *counter = bpf_map_lookup_elem(&stopped, &reason);

	if (counter)
		__sync_fetch_and_add(counter, 1);
}

/* refuse counts a stop, tells of it, and is the program's answer. */
static __always_inline int refuse(__u32 reason, __u64 cookie, __u32 target)
{
	struct stop *event;

	count(reason);
	event = bpf_ringbuf_reserve(&stops, sizeof(*event), 0);
	if (!event) {
		count(LOST_EVENTS);
		return -EPERM;
	}
	event->time = bpf_ktime_get_boot_ns();
	event->cookie = cookie;
	event->pid = bpf_get_current_pid_tgid() >> 32;
	event->uid = (__u32)bpf_get_current_uid_gid();
	event->reason = reason;
	event->target = target;
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	bpf_ringbuf_submit(event, 0);
	return -EPERM;
}

/* cookie_of a socket nobody asked for its cookie is 0, and such a socket is not managed. */
static __always_inline __u64 cookie_of(struct sock *sk)
{
	return sk->__sk_common.skc_cookie.counter;
}

static __always_inline struct managed *managed_by(__u64 cookie)
{
	return cookie ? bpf_map_lookup_elem(&sockets, &cookie) : NULL;
}

/* roles of a process, by any of its threads. */
static __always_inline __u32 roles_of(struct task_struct *task)
{
	__u32 *roles = bpf_task_storage_get(&tasks, task->group_leader, NULL, 0);

	return roles ? *roles : 0;
}

/* current_is says whether the process that calls has one of the roles. Kernel threads of an io_uring have those of the
 * process that made it.
 */
static __always_inline int current_is(__u32 roles)
{
	return roles_of(bpf_get_current_task_btf()) & roles;
}

#endif
