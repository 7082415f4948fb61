// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* No process looks into the memory of a SHIELDED one, or takes its descriptors, root neither: ptrace, pidfd_getfd,
 * /proc/PID/mem and process_vm_readv all ask this hook with PTRACE_MODE_ATTACH. Within one process the kernel does not
 * ask it. What asks with PTRACE_MODE_READ goes on, so ss -p and lsof work.
 */
#include "maps.h"

char LICENSE[] SEC("license") = "GPL";

/* include/linux/ptrace.h */
enum { PTRACE_MODE_ATTACH = 0x02 };

/* include/uapi/linux/sched.h */
enum { CLONE_THREAD = 0x00010000 };

SEC("lsm/ptrace_access_check")
int BPF_PROG(shield_access, struct task_struct *child, unsigned int mode, int ret)
{
	__u32 roles;

	if (ret || !(mode & PTRACE_MODE_ATTACH))
		return ret;
	roles = roles_of(child);
	if (!(roles & SHIELDED))
		return 0;
	return roles & PROBED ? -EPERM : refuse(STOPPED_ATTACH, 0, child->tgid);
}

/* A new process begins in the memory of its parent (vfork) or with a copy of it, and so under the same shield. Its other
 * roles are not inherited.
 */
SEC("lsm/task_alloc")
int BPF_PROG(shield_fork, struct task_struct *task, unsigned long flags, int ret)
{
	__u32 *roles;

	if (ret || flags & CLONE_THREAD || !current_is(SHIELDED))
		return ret;
	roles = bpf_task_storage_get(&tasks, task, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!roles)
		return -EAGAIN;
	*roles = SHIELDED;
	return 0;
}
