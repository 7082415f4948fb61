// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/ktls"
)

// holder is a process that has a descriptor of a socket.
type holder struct {
	PID  int    `json:"pid"`
	Name string `json:"name"` // comm
}

func (h holder) String() string { return fmt.Sprintf("%s pid %d", printable([]byte(h.Name)), h.PID) }

// eachHolder calls f with a duplicate of each wanted socket's descriptor that it finds
// in a process, and closes it afterwards. A process that holds a socket in several
// descriptors is met as often. A command does this and not the daemon: it takes
// CAP_SYS_PTRACE, which the daemon must not have.
func eachHolder(wanted func(socket uint64) bool, f func(socket uint64, sock *os.File, h holder)) error {
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	var failed error
	for _, p := range processes {
		pid, err := strconv.Atoi(filepath.Base(p))
		if err == nil {
			err = eachSocket(pid, func(sock *os.File) {
				if cookie, err := ktls.Cookie(sock); err == nil && wanted(cookie) {
					name, _ := os.ReadFile(filepath.Join(p, "comm"))
					f(cookie, sock, holder{pid, strings.TrimSuffix(string(name), "\n")})
				}
			})
		}
		// A process that has ended holds nothing.
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
			failed = errors.Join(failed, fmt.Errorf("process %d: %w", pid, err))
		}
	}
	return failed
}

// eachSocket goes through the sockets of one process.
func eachSocket(pid int, f func(*os.File)) error {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) == 0 {
		return err
	}
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(process)
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil || !strings.HasPrefix(target, "socket:") {
			continue
		}
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		copied, err := unix.PidfdGetfd(process, fd, 0)
		if errors.Is(err, unix.EBADF) {
			continue // closed meanwhile
		} else if errors.Is(err, unix.EPERM) && os.Geteuid() == 0 {
			// It is shielded: a process of the daemon's, which holds no connection for longer
			// than a moment.
			return nil
		} else if err != nil {
			return os.NewSyscallError("pidfd_getfd", err)
		}
		sock := os.NewFile(uintptr(copied), "socket")
		f(sock)
		sock.Close()
	}
	return nil
}

// findHolders returns who holds each of the sockets.
func findHolders(sockets []uint64) (map[uint64][]holder, error) {
	found := make(map[uint64][]holder)
	for _, s := range sockets {
		found[s] = nil
	}
	err := eachHolder(func(socket uint64) bool { _, ok := found[socket]; return ok },
		func(socket uint64, _ *os.File, h holder) { found[socket] = addHolder(found[socket], h) })
	return found, err
}

// addHolder names a process once. Its descriptors are met one after the other.
func addHolder(list []holder, h holder) []holder {
	if n := len(list); n > 0 && list[n-1] == h {
		return list
	}
	return append(list, h)
}
