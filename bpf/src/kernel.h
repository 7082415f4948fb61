/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What we touch of the kernel: only the members that are used. Where they lie is found when an object is loaded (CO-RE),
 * so one object serves all kernels. Nothing here may be read with bpf_probe_read, which lockdown=confidentiality forbids:
 * plain loads through pointers that the verifier knows are allowed.
 */
#ifndef OFFLOADD_KERNEL_H
#define OFFLOADD_KERNEL_H

typedef unsigned char __u8;
typedef signed char __s8;
typedef unsigned short __u16;
typedef short __s16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#define EPERM 1
#define EAGAIN 11

/* include/uapi/linux/bpf.h */
enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_RINGBUF = 27,
	BPF_MAP_TYPE_TASK_STORAGE = 29,

	BPF_F_NO_PREALLOC = 1U << 0,
	BPF_LOCAL_STORAGE_GET_F_CREATE = 1U << 0,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	__s64 counter;
} atomic64_t;

struct sock_common {
	volatile unsigned char skc_state;
	unsigned short skc_family;
	atomic64_t skc_cookie;
};

struct sock {
	struct sock_common __sk_common;
};

struct socket {
	struct sock *sk;
};

struct sockaddr {
	__u16 sa_family;
};

struct linux_binprm;

struct task_struct {
	struct task_struct *group_leader;
	__s32 pid;
	__s32 tgid;
};

#pragma clang attribute pop

#endif
