// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// A guestMount is a file system every Linux system has. /tmp and /run are not in the list: the root file system is a
// tmpfs itself, and the files of a run may lie below /tmp.
type guestMount struct {
	kind, path, options string
	flags               uintptr
	required            bool
}

var guestMounts = []guestMount{
	{kind: "proc", path: "/proc", flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, required: true},
	{kind: "sysfs", path: "/sys", flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, required: true},
	{kind: "devtmpfs", path: "/dev", options: "mode=755", flags: unix.MS_NOSUID, required: true},
	{kind: "devpts", path: "/dev/pts", options: "mode=620,gid=5,ptmxmode=666", flags: unix.MS_NOSUID | unix.MS_NOEXEC,
		required: true},
	{kind: "tmpfs", path: "/dev/shm", options: "mode=1777", flags: unix.MS_NOSUID | unix.MS_NODEV, required: true},
	{kind: "cgroup2", path: "/sys/fs/cgroup", flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	{kind: "bpf", path: "/sys/fs/bpf", options: "mode=700", flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	{kind: "securityfs", path: "/sys/kernel/security", flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	{kind: "debugfs", path: "/sys/kernel/debug", flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	{kind: "tracefs", path: "/sys/kernel/tracing", flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
}

func (m guestMount) mount() error {
	// Below /sys the directory exists or the kernel does without this file system.
	_ = os.MkdirAll(m.path, 0o755)
	err := unix.Mount(m.kind, m.path, m.kind, m.flags, m.options)
	if err != nil && m.required {
		return fmt.Errorf("mount %s on %s: %w", m.kind, m.path, err)
	}
	return nil
}

// guestFiles is the limit on open files: load tests hold tens of thousands of connections.
const guestFiles = 65536

// configureGuest makes the rest of a system: directories, links, host name, loopback, limits.
func configureGuest() error {
	for path, mode := range map[string]uint32{"/tmp": 0o1777, "/run": 0o755, "/root": 0o700, "/var/tmp": 0o1777} {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		if err := unix.Chmod(path, mode); err != nil { // os.Chmod would not set the sticky bit this way
			return err
		}
	}
	for link, target := range map[string]string{"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2", "/var/run": "/run"} {
		if err := os.Symlink(target, link); err != nil && !os.IsExist(err) {
			return err
		}
	}
	if err := unix.Sethostname([]byte(guestHostname)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	// By way of package syscall: Go gives children the limits from before the program's start, unless set by this call.
	limit := syscall.Rlimit{Cur: guestFiles, Max: guestFiles}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("raise the limit on open files: %w", err)
	}
	return loopbackUp()
}

// loopbackUp also gives lo its addresses, 127.0.0.1 and ::1: the kernel adds them by itself.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING | unix.IFF_LOOPBACK)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}
