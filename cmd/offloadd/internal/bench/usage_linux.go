// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// processorTime returns the time of this process in microseconds.
func processorTime() (user, system int64) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0, 0
	}
	return u.Utime.Nano() / 1000, u.Stime.Nano() / 1000
}

// syscallCounter counts the system calls of all threads of this process, by the tracepoint
// that each passes (perf_event_open(2)).
type syscallCounter struct{ events []int }

// tracefs is where it is on systems of today, and where it was.
var tracefs = []string{"/sys/kernel/tracing", "/sys/kernel/debug/tracing"}

func countSyscalls() (*syscallCounter, error) {
	id, err := tracepoint("raw_syscalls/sys_enter")
	if err != nil {
		return nil, err
	}
	c := &syscallCounter{}
	counted := make(map[int]bool)
	// A thread that a counted one starts inherits the event. Those that a thread started
	// before it was counted are found by looking again.
	for range 10 {
		ids, err := threads()
		if err != nil {
			c.close()
			return nil, err
		}
		found := false
		for _, thread := range ids {
			if counted[thread] {
				continue
			}
			counted[thread], found = true, true
			if err := c.add(id, thread); err != nil {
				c.close()
				return nil, err
			}
		}
		if !found {
			break
		}
	}
	return c, nil
}

func (c *syscallCounter) add(id uint64, thread int) error {
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_TRACEPOINT, Config: id, Bits: unix.PerfBitInherit}
	attr.Size = uint32(binary.Size(attr))
	fd, err := unix.PerfEventOpen(&attr, thread, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
	switch {
	case errors.Is(err, unix.ESRCH): // it has ended
		return nil
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("perf_event_open: %w; be root, or have CAP_PERFMON", err)
	case err != nil:
		return fmt.Errorf("perf_event_open: %w", err)
	}
	c.events = append(c.events, fd)
	return nil
}

// read returns the calls so far.
func (c *syscallCounter) read() (sum int64, err error) {
	for _, fd := range c.events {
		var count [8]byte
		if n, err := unix.Read(fd, count[:]); n != len(count) {
			return 0, fmt.Errorf("read a counter of system calls: %d bytes, %v", n, err)
		}
		sum += int64(binary.NativeEndian.Uint64(count[:]))
	}
	return sum, nil
}

func (c *syscallCounter) close() {
	for _, fd := range c.events {
		unix.Close(fd)
	}
	c.events = nil
}

// tracepoint returns the number of a tracepoint.
func tracepoint(name string) (uint64, error) {
	var last error
	for _, dir := range tracefs {
		text, err := os.ReadFile(dir + "/events/" + name + "/id")
		if err == nil {
			return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
		}
		if last == nil || !errors.Is(err, syscall.ENOENT) {
			last = err
		}
	}
	if errors.Is(last, syscall.ENOENT) {
		return 0, fmt.Errorf("%w; \"mount -t tracefs tracefs %s\", or a kernel with CONFIG_FTRACE_SYSCALLS", last, tracefs[0])
	}
	return 0, last
}
