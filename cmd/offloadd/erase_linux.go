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

	"github.com/offloadd/offloadd/cmd/offloadd/internal/custody"
	"github.com/offloadd/offloadd/ktls"
)

// What became of the keys in a socket that was revoked.
const (
	keysErased = "erased"
	keysKept   = "kept"
	keysGone   = "gone" // nobody holds the socket
)

// eraseKeys overwrites the keys of revoked sockets, in whichever processes hold them.
// This command does it and not the daemon, since fetching a descriptor from another
// process takes CAP_SYS_PTRACE, which the daemon must not have. All holders share the
// socket, so one descriptor is enough; who else holds it is told.
func eraseKeys(results []*revokeResult) error {
	wanted := make(map[uint64]*revokeResult)
	for _, r := range results {
		if r.Outcome == custody.Ended {
			r.Keys = keysGone
			wanted[r.Socket] = r
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	var failed error
	for _, p := range processes {
		pid, err := strconv.Atoi(filepath.Base(p))
		if err == nil {
			err = eraseKeysIn(pid, wanted)
		}
		// A process that has ended holds nothing.
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
			failed = errors.Join(failed, fmt.Errorf("process %d: %w", pid, err))
		}
	}
	return failed
}

// eraseKeysIn looks through the sockets of one process.
func eraseKeysIn(pid int, wanted map[uint64]*revokeResult) error {
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
		} else if err != nil {
			return os.NewSyscallError("pidfd_getfd", err)
		}
		eraseKeysOf(os.NewFile(uintptr(copied), "socket"), pid, wanted)
	}
	return nil
}

// eraseKeysOf takes a duplicate of a descriptor, and closes it.
func eraseKeysOf(sock *os.File, pid int, wanted map[uint64]*revokeResult) {
	defer sock.Close()
	cookie, err := ktls.Cookie(sock)
	r := wanted[cookie]
	if err != nil || r == nil {
		return
	}
	r.Holders = append(r.Holders, pid)
	if r.Keys == keysErased {
		return
	}
	if err := ktls.Erase(sock); err != nil {
		r.Keys, r.KeysDetail = keysKept, err.Error()
		return
	}
	r.Keys, r.KeysDetail = keysErased, ""
}
