// SPDX-License-Identifier: Apache-2.0

package adversary

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// placeWays write as anybody would, but by another descriptor, or from another place.
func placeWays() []*Way {
	elsewhere := func(name string, attr *syscall.SysProcAttr) *Way {
		return &Way{Name: "write from " + name, Kind: Send, Elsewhere: true, do: func(t *target) error { return t.again("write", attr) }}
	}
	asRoot := func(w *Way) *Way { w.unprivileged = unix.EPERM; return w }
	return []*Way{
		elsewhere("a child process", nil),
		elsewhere("a new session", &syscall.SysProcAttr{Setsid: true}),
		elsewhere("a new user namespace", newUserNamespace()),
		asRoot(elsewhere("a new network namespace", &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET})),
		asRoot(elsewhere("a new PID namespace", &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID})),
		asRoot(elsewhere("another user", &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65533, Gid: 65533}})),
		asRoot(&Way{Name: "write from another cgroup", Kind: Send, Elsewhere: true, do: writeFromCgroup}),
		{Name: "write by a fork without exec", Kind: Send, Elsewhere: true, do: writeFromFork},
		sender("write by a duplicate", func(t *target) (int, error) {
			fd, err := unix.Dup(t.fd)
			if err != nil {
				return 0, err
			}
			return unix.Write(fd, t.text)
		}),
		sender("write by a descriptor that was passed on", func(t *target) (int, error) {
			fd, err := t.passOn()
			if err != nil {
				return 0, err
			}
			return unix.Write(fd, t.text)
		}),
		sender("write by a descriptor fetched with pidfd_getfd", func(t *target) (int, error) {
			self, err := unix.PidfdOpen(os.Getpid(), 0)
			if err != nil {
				return 0, err
			}
			fd, err := unix.PidfdGetfd(self, t.fd, 0)
			if err != nil {
				return 0, err
			}
			return unix.Write(fd, t.text)
		}),
	}
}

// writeFromCgroup makes a cgroup of its own below the root's.
func writeFromCgroup(t *target) error {
	dir := filepath.Join("/sys/fs/cgroup", fmt.Sprintf("offloadd-attack-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return errnoOf(err)
	}
	defer unix.Rmdir(dir)
	cgroup, err := os.Open(dir)
	if err != nil {
		return errnoOf(err)
	}
	defer cgroup.Close()
	return t.again("write", &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd())})
}

// errnoOf is the kernel's answer in an error of package os. For the file system EACCES is what EPERM is elsewhere.
func errnoOf(err error) error {
	if os.IsPermission(err) {
		return unix.EPERM
	}
	return err
}

// writeFromFork makes a process that shares nothing and keeps the name, and only writes.
func writeFromFork(t *target) error {
	text, n := t.put(t.text), uintptr(len(t.text))
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if pid == 0 && errno == 0 {
		_, _, errno = unix.RawSyscall(unix.SYS_WRITE, uintptr(t.fd), text, n)
		for {
			unix.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(errno), 0, 0)
		}
	}
	if errno != 0 {
		return errno
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(int(pid), &status, 0, nil); err != nil {
		return err
	}
	if status.ExitStatus() != 0 {
		return unix.Errno(status.ExitStatus())
	}
	return nil
}

// passOn sends the descriptor over a unix socket and returns the one that arrived.
func (t *target) passOn() (int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return 0, err
	}
	if err := unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(t.fd), nil, 0); err != nil {
		return 0, err
	}
	control := make([]byte, unix.CmsgSpace(4))
	if _, _, _, _, err = unix.Recvmsg(pair[1], make([]byte, 1), control, 0); err != nil {
		return 0, err
	}
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return 0, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return 0, err
	}
	return fds[0], nil
}

// newUserNamespace is for a process that is root of one.
func newUserNamespace() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}}
}
