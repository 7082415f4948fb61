// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// workerConfinement is that of "offloadd handshake".
//
// What is not in the list ends the worker, and the daemon's log says "bad system call":
// nothing of ours, of the Go runtime or of crypto/tls would ask for it, only somebody
// who has taken the worker over. Those are above all the calls that make a descriptor
// (socket, accept, pipe, memfd, eventfd, ...), a process or a privilege, and those that
// reach into another process. What the libraries may try by themselves, and do without,
// is refused with an errno.
func workerConfinement() confinement {
	return confinement{role: "handshake", syscalls: slices.Concat(
		// On descriptors that it was given. Those of the runtime's poller were made before.
		allow(unix.SYS_READ, unix.SYS_WRITE, unix.SYS_CLOSE, unix.SYS_PREAD64,
			unix.SYS_RECVMSG, unix.SYS_SENDMSG, unix.SYS_RECVFROM, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT,
			unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME,
			unix.SYS_GETRANDOM, unix.SYS_GETPID, unix.SYS_GETPPID),
		socketOptions(),
		runtimeSyscalls(os.Getpid()),
	)}
}

// relayConfinement is that of "offloadd relay": what a worker has, and what carries data
// between a TCP connection and a unix stream. The one descriptor that it makes itself is a
// pair of unix streams. There is no
// level SOL_TLS here either.
func relayConfinement() confinement {
	worker := workerConfinement()
	return confinement{role: "relay", syscalls: slices.Concat(worker.syscalls,
		allow(unix.SYS_PPOLL, unix.SYS_SHUTDOWN),
		allowIf(unix.SYS_SOCKETPAIR, is(0, unix.AF_UNIX), is(1, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)),
		allowIf(unix.SYS_IOCTL, is(1, unix.SIOCOUTQ)),
		allowIf(unix.SYS_SETSOCKOPT, is(1, unix.SOL_SOCKET), is(2, unix.SO_LINGER)),
	)}
}

// socketOptions are those that net.FileConn (through newTCPConn), handoff.Conn and the
// handshaker touch. There is no level SOL_TLS or option TCP_ULP among them: no key
// can be asked for or set.
func socketOptions() []rule {
	list := slices.Concat(
		allowIf(unix.SYS_GETSOCKOPT, is(1, unix.SOL_SOCKET)),
		allowIf(unix.SYS_SETSOCKOPT, is(1, unix.SOL_SOCKET), is(2, unix.SO_KEEPALIVE)),
	)
	for _, option := range []uint64{unix.TCP_NODELAY, unix.TCP_KEEPIDLE, unix.TCP_KEEPINTVL, unix.TCP_KEEPCNT} {
		list = append(list, allowIf(unix.SYS_SETSOCKOPT, is(1, unix.IPPROTO_TCP), is(2, option))...)
	}
	for _, command := range []uint64{unix.F_DUPFD_CLOEXEC, unix.F_GETFL, unix.F_SETFL} {
		list = append(list, allowIf(unix.SYS_FCNTL, is(1, command))...)
	}
	return list
}

// threadFlags are those of the Go runtime (runtime/os_linux.go, sys_linux_amd64.s).
const threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM |
	unix.CLONE_THREAD | unix.CLONE_SETTLS

// runtimeSyscalls are what any Go program needs once it runs: memory that is never
// executable, threads, signals to itself.
func runtimeSyscalls(pid int) []rule {
	return slices.Concat(
		allow(unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_BRK,
			unix.SYS_FUTEX, unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP,
			unix.SYS_CLOCK_GETTIME, unix.SYS_GETTIMEOFDAY,
			unix.SYS_GETTID, unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ,
			unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_RESTART_SYSCALL,
			unix.SYS_EXIT, unix.SYS_EXIT_GROUP),
		allowIf(unix.SYS_MMAP, hasNone(2, unix.PROT_EXEC)),
		allowIf(unix.SYS_MPROTECT, hasNone(2, unix.PROT_EXEC)),
		allowIf(unix.SYS_CLONE, is(0, threadFlags)),
		// The same by glibc's pthread_create, where cgo is.
		allowIf(unix.SYS_CLONE, is(0, threadFlags|unix.CLONE_PARENT_SETTID|unix.CLONE_CHILD_CLEARTID)),
		// Its arguments are in memory, where a filter cannot look. glibc goes on with clone.
		refuse(unix.ENOSYS, unix.SYS_CLONE3),
		// Preemption, and the end by a signal after a crash.
		allowIf(unix.SYS_TGKILL, is(0, uint64(pid))),
		// Of os, time (the zone) and net, at first use; the runtime names memory by prctl.
		refuse(unix.EPERM, unix.SYS_OPEN, unix.SYS_OPENAT, unix.SYS_STAT, unix.SYS_NEWFSTATAT, unix.SYS_READLINKAT, unix.SYS_UNAME, unix.SYS_PRCTL),
	)
}
