// SPDX-License-Identifier: Apache-2.0

package adversary

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// errOther is of a way that read something else than what the victim hides.
var errOther = errors.New("other bytes")

// Of include/uapi/asm/unistd_32.h.
const ptraceI386, readvI386, writevOfI386, getfdI386 = 26, 347, 348, 438

func processWays() []*Way {
	way := func(name string, do func(*target) error) *Way {
		return &Way{Name: name, Kind: Process, do: do, unprivileged: unix.EPERM}
	}
	return []*Way{
		way("pidfd_getfd", func(t *target) error { return t.fetch(call, unix.SYS_PIDFD_GETFD) }),
		way("i386 pidfd_getfd", func(t *target) error { return t.fetch(call32, getfdI386) }),
		way("PTRACE_ATTACH", func(t *target) error { return t.trace(call, unix.SYS_PTRACE, unix.PTRACE_ATTACH, t.pid) }),
		way("PTRACE_SEIZE", func(t *target) error { return t.trace(call, unix.SYS_PTRACE, unix.PTRACE_SEIZE, t.pid) }),
		way("PTRACE_ATTACH to a thread", func(t *target) error { return t.trace(call, unix.SYS_PTRACE, unix.PTRACE_ATTACH, t.tid) }),
		way("PTRACE_SEIZE of a thread", func(t *target) error { return t.trace(call, unix.SYS_PTRACE, unix.PTRACE_SEIZE, t.tid) }),
		way("i386 PTRACE_ATTACH", func(t *target) error { return t.trace(call32, ptraceI386, unix.PTRACE_ATTACH, t.pid) }),
		way("read /proc/PID/mem", func(t *target) error { return t.readFile(fmt.Sprintf("/proc/%d/mem", t.pid)) }),
		way("read /proc/PID/task/TID/mem", func(t *target) error { return t.readFile(fmt.Sprintf("/proc/%d/task/%d/mem", t.pid, t.tid)) }),
		way("read /proc/PID/mem opened by io_uring", readOpenedByRing),
		way("write /proc/PID/mem", writeMemoryFile),
		way("process_vm_readv", func(t *target) error { return t.readMemory(call, unix.SYS_PROCESS_VM_READV, t.pid, false) }),
		way("process_vm_readv of a thread", func(t *target) error { return t.readMemory(call, unix.SYS_PROCESS_VM_READV, t.tid, false) }),
		way("process_vm_writev", func(t *target) error { return t.move(call, unix.SYS_PROCESS_VM_WRITEV, t.pid, t.put(t.text), false) }),
		way("read /proc/PID/syscall", func(t *target) error {
			_, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", t.pid))
			return errnoOf(err)
		}),
	}
}

type caller func(number uintptr, args ...uintptr) (int, error)

// fetch takes a socket from the other process.
func (t *target) fetch(do caller, number uintptr) error {
	pidfd, err := unix.PidfdOpen(t.pid, 0)
	if err != nil {
		return err
	}
	_, err = do(number, uintptr(pidfd), uintptr(t.theirs), 0)
	return err
}

// trace becomes the tracer of a thread, and lets go of it. The locked thread of the attacker is the tracer.
func (t *target) trace(do caller, number uintptr, request, tid int) error {
	if _, err := do(number, uintptr(request), uintptr(tid), 0, 0); err != nil {
		return err
	}
	if request == unix.PTRACE_SEIZE {
		if _, err := call(unix.SYS_PTRACE, unix.PTRACE_INTERRUPT, uintptr(tid), 0, 0); err != nil {
			return err
		}
	}
	if _, err := unix.Wait4(tid, nil, unix.WALL, nil); err != nil {
		return err
	}
	return unix.PtraceDetach(tid)
}

func (t *target) readFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return errnoOf(err)
	}
	defer f.Close()
	return t.readFrom(int(f.Fd()))
}

func (t *target) readFrom(fd int) error {
	got := make([]byte, len(t.text))
	n, err := unix.Pread(fd, got, int64(t.address))
	return t.compare(got, n, err)
}

func (t *target) compare(got []byte, n int, err error) error {
	if err == nil && !bytes.Equal(got, t.text) {
		return errOther
	}
	return t.all(n, err)
}

func readOpenedByRing(t *target) error {
	r, err := t.newRing(0, false)
	if err != nil {
		return err
	}
	path := t.put(append([]byte(fmt.Sprintf("/proc/%d/mem", t.pid)), 0))
	at := unix.AT_FDCWD
	fd, err := r.do(&sqe{op: opOpenat, fd: at, addr: path, opFlags: unix.O_RDONLY})
	if err != nil {
		return errnoOf(err)
	}
	return t.readFrom(fd)
}

func writeMemoryFile(t *target) error {
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", t.pid), os.O_WRONLY, 0)
	if err != nil {
		return errnoOf(err)
	}
	defer f.Close()
	return t.all(unix.Pwrite(int(f.Fd()), t.text, int64(t.address)))
}

func (t *target) readMemory(do caller, number uintptr, pid int, compat bool) error {
	got := t.take(len(t.text))
	if err := t.move(do, number, pid, address(got), compat); err != nil {
		return err
	}
	return t.compare(got, len(got), nil)
}

// move copies between here and the secret's place there.
func (t *target) move(do caller, number uintptr, pid int, here uintptr, compat bool) error {
	n := uintptr(len(t.text))
	local := t.put(layout{}.word(here, compat).word(n, compat))
	remote := t.put(layout{}.word(t.address, compat).word(n, compat))
	return t.all(do(number, uintptr(pid), local, 1, remote, 1, 0))
}
