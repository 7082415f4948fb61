// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// confinement is what the process of a role is left with, beside the descriptors it
// was given: no file, no network of its own, no other process, and of the kernel's
// calls those in the list.
type confinement struct {
	role     string
	syscalls []rule
}

// The parts of a confinement that the tests can leave out, by name.
const (
	partSeccomp  = "seccomp"
	partLandlock = "landlock"
	partMemory   = "memory lock"
)

// enter confines all threads, for good. Before it the role has taken what it needs:
// afterwards it gets no new descriptor but by its channel. Without Landlock it goes on,
// since seccomp alone denies the same calls, and the daemon's log says so; without
// seccomp it does not.
func (c confinement) enter(env *environment) error {
	if !env.leavesOut(partMemory) {
		if err := lockMemory(); err != nil {
			fmt.Fprintf(env.stderr, "offloadd %s: %v\n", c.role, err)
		}
	}
	if !env.leavesOut(partLandlock) {
		if err := denyAll(); err != nil && !errors.Is(err, errNoLandlock) {
			return err
		}
	}
	if env.leavesOut(partSeccomp) {
		return nil
	}
	if err := seccompReady(); err != nil {
		return err
	}
	return loadFilter(c.syscalls)
}

func (e *environment) leavesOut(part string) bool { return slices.Contains(e.leaveOut, part) }

// checkUnprivileged refuses to go on with what a role that meets strangers cannot give
// up by itself: the daemon starts it with a user of its own.
func checkUnprivileged() error {
	if os.Getuid() == 0 || os.Geteuid() == 0 {
		return errors.New("will not parse a stranger's bytes as root; \"offloadd serve\" starts workers as worker_user")
	}
	return unprivileged()
}

// confineSigner is the same for a signer, and all there is: it must be able to open
// devices and to load a token's library, so its user is what confines it.
func confineSigner() error {
	if os.Getuid() == 0 || os.Geteuid() == 0 {
		return errors.New("will not run a token's library as root; \"offloadd serve\" starts the signer as signer_user")
	}
	return unprivileged()
}

// unprivileged shields this process and refuses what it was given too much.
func unprivileged() error {
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

// confineDaemon takes from the daemon what only its start needed: its sockets are
// open, and nobody has connected yet.
func confineDaemon(env *environment, listeners []*listener, log *slog.Logger) error {
	if err := seccompReady(); err != nil {
		return machineError("workers cannot be confined: %w", err)
	}
	if _, err := landlockABI(); err != nil {
		log.Warn("workers have no second fence: seccomp alone keeps them from files", "error", err, "remedy", landlockRemedy)
	}
	// Workers inherit the limit.
	err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY})
	if err == nil {
		err = lockMemory()
	}
	if err != nil {
		log.Warn("the memory of the daemon and its workers is not locked", "error", err, "remedy", "start serve with CAP_SYS_RESOURCE or LimitMEMLOCK=infinity, or encrypt the swap")
	}
	keep := slices.DeleteFunc(daemonCapabilities(), func(c capability) bool { return env.leavesOut(c.value.String()) })
	if err := keepCapabilities(keep); err != nil {
		return err
	}
	for _, l := range listeners {
		if dir := filepath.Dir(l.Application); unix.Access(dir, unix.W_OK) != nil {
			l.log.Warn("the application socket cannot be removed at the end, only replaced at the next start", "socket", l.Application, "remedy", "chown root "+dir)
		}
	}
	return nil
}

// lockMemory keeps what this process has and will have in memory out of the swap,
// page by page as it is used (MCL_ONFAULT): the Go heap reserves far more. Under a
// limit, memory would run out when the reserve reaches it.
func lockMemory() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return os.NewSyscallError("getrlimit RLIMIT_MEMLOCK", err)
	}
	if limit.Cur != unix.RLIM_INFINITY {
		return fmt.Errorf("memory is not locked, and secrets may reach the swap: RLIMIT_MEMLOCK is %d bytes, want unlimited", limit.Cur)
	}
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("memory is not locked, and secrets may reach the swap: mlockall: %w", err)
	}
	return nil
}

// startUnprivileged starts a child that can never gain privileges, as the given
// user and in no group but those.
func startUnprivileged(cmd *exec.Cmd, uid, gid uint32, groups ...uint32) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uid, Gid: gid, Groups: append([]uint32{}, groups...)},
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
