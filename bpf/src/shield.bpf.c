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

/* shield puts the shield, and no other role, at a task that is or will be a leader. */
static __always_inline int shield(struct task_struct *task)
{
	__u32 *roles = bpf_task_storage_get(&tasks, task, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (!roles)
		return -EAGAIN;
	*roles = SHIELDED;
	return 0;
}

/* A new process begins in the memory of its parent (vfork) or with a copy of it, and so under the same shield. Its other
 * roles are not inherited.
 */
SEC("lsm/task_alloc")
int BPF_PROG(shield_fork, struct task_struct *task, unsigned long flags, int ret)
{
	if (ret || flags & CLONE_THREAD || !current_is(SHIELDED))
		return ret;
	return shield(task);
}

/* A thread that executes a program becomes the leader (fs/exec.c: de_thread), and what was kept at the old one is gone.
 * If the program cannot be executed after all, nobody looks at what is kept at a thread.
 */
SEC("lsm/bprm_creds_for_exec")
int BPF_PROG(shield_exec, struct linux_binprm *bprm, int ret)
{
	struct task_struct *current = bpf_get_current_task_btf();

	if (ret || current->pid == current->tgid || !current_is(SHIELDED))
		return ret;
	return shield(current);
}

/* The other roles were given to the program that is no more. */
SEC("fentry/security_bprm_committed_creds")
int BPF_PROG(shield_executed)
{
	__u32 *roles = bpf_task_storage_get(&tasks, bpf_get_current_task_btf(), NULL, 0);

	if (roles)
		*roles &= SHIELDED;
	return 0;
}
