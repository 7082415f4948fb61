// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// confineWorker gives up what a worker must not have, and refuses to go on with
// what it cannot give up: the daemon starts it with a user of its own.
func confineWorker() error {
	if os.Getuid() == 0 || os.Geteuid() == 0 {
		return errors.New("will not parse a stranger's bytes as root; \"offloadd serve\" starts workers as worker_user")
	}
	if err := shield(); err != nil {
		return err
	}
	// It belongs to a thread, so it must be there before the Go runtime makes the
	// second one.
	if set, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || set != 1 {
		return fmt.Errorf("started without no_new_privs (%d, %v)", set, err)
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&head, &sets[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	for _, s := range sets {
		if s.Effective|s.Permitted|s.Inheritable != 0 {
			return fmt.Errorf("has capabilities %#x, wants none", s.Effective|s.Permitted|s.Inheritable)
		}
	}
	return nil
}

// startUnprivileged starts a child that can never gain privileges, as the given
// user and no other group.
func startUnprivileged(cmd *exec.Cmd, uid, gid uint32) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uid, Gid: gid, Groups: []uint32{}},
		Setpgid:    true, // a Ctrl-C is for the daemon to handle, which ends its workers
	}
	started := make(chan error, 1)
	go func() {
		// no_new_privs is inherited from the thread that forks. The thread is not unlocked,
		// and so ends with this goroutine.
		runtime.LockOSThread()
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			started <- os.NewSyscallError("prctl PR_SET_NO_NEW_PRIVS", err)
			return
		}
		started <- cmd.Start()
	}()
	return <-started
}

// shield keeps the memory of this process from debuggers of the same user and from
// core dumps.
func shield() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_DUMPABLE", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return os.NewSyscallError("setrlimit RLIMIT_CORE", err)
	}
	return nil
}

// isSocket reports why fd is no socket.
func isSocket(fd int) error {
	_, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	return err
}
