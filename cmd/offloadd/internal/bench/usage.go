// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
)

// Usage is what a process has used since its start.
type Usage struct {
	PID      int   `json:"pid"`
	Path     Path  `json:"path"`
	UserUS   int64 `json:"user_us"`
	SystemUS int64 `json:"system_us"`
	// Syscalls is counted from the first question on; nil where that is not allowed.
	Syscalls    *int64 `json:"syscalls"`
	SyscallsWhy string `json:"syscalls_why,omitempty"`
	RSSBytes    int64  `json:"rss_bytes"`
	// Connections are open now; the others are sums.
	Connections int64 `json:"connections"`
	Accepted    int64 `json:"accepted"`
	Failed      int64 `json:"failed"`
}

// Usage is that of the server's process now.
func (s *Server) Usage() Usage {
	u := s.usage.now()
	u.Path, u.Connections, u.Accepted, u.Failed = s.Path, int64(s.count()), s.accepted.Load(), s.failed.Load()
	return u
}

// usageOf asks for the usage of this process.
type usageOf struct {
	mu       sync.Mutex
	counter  *syscallCounter // guarded by mu
	why      string          // guarded by mu: there is none
	counting bool            // guarded by mu: it was tried
}

func newUsageOf() *usageOf { return &usageOf{} }

func (o *usageOf) now() Usage {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.counting {
		// Not earlier: counting costs each system call some time, and whoever counts
		// instructions by other means never asks.
		o.counting = true
		counter, err := countSyscalls()
		if err != nil {
			o.why = err.Error()
		}
		o.counter = counter
	}
	u := Usage{PID: os.Getpid(), SyscallsWhy: o.why, RSSBytes: residentBytes()}
	u.UserUS, u.SystemUS = processorTime()
	if o.counter != nil {
		n, err := o.counter.read()
		if err != nil {
			u.SyscallsWhy = err.Error()
		} else {
			u.Syscalls = &n
		}
	}
	return u
}

func (o *usageOf) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.counter != nil {
		o.counter.close()
	}
	o.counter, o.why = nil, "closed"
}

// residentBytes is 0 where /proc does not tell.
func residentBytes() int64 {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text))
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

// threads are those of this process.
func threads() ([]int, error) {
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil, err
	}
	var ids []int
	for _, e := range entries {
		id, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, fmt.Errorf("/proc/self/task: %w", err)
		}
		ids = append(ids, id)
	}
	return ids, nil
}
