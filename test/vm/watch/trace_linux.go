// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

const (
	tracefs = "/sys/kernel/tracing"
	// Instance is our own trace; its file trace_marker takes announcements.
	Instance = tracefs + "/instances/offloadd-watch"
	group    = "offloadd_watch"
	// traceBuffer is for each CPU, in KiB: thousands of keys.
	traceBuffer = "4096"
	// concurrentCalls may be under way at a time before the end of one is missed.
	concurrentCalls = 256
)

// trace is the running trace.
type trace struct {
	pipe    int
	rest    []byte // a line not yet complete
	buffer  []byte
	tracer  *tracer
	lastNet uint64
}

func startTrace(t *table) (*trace, error) {
	definitions, err := definitions()
	if err != nil {
		return nil, err
	}
	tr := &trace{pipe: -1, buffer: make([]byte, 64<<10)}
	tr.tracer = &tracer{pending: map[int]*call{}, expect: func(k Kind, port uint16) { t.ledger.expect(k, port) }}
	tr.tracer.done = func(c *call) error {
		tr.lastNet = c.socket.net
		return t.call(c)
	}
	if err := tr.open(definitions); err != nil {
		return nil, errors.Join(err, tr.close())
	}
	return tr, nil
}

// definitions are the lines for kprobe_events.
func definitions() ([]string, error) {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, err
	}
	offset := func(name, member string) uint32 {
		var s *btf.Struct
		if e := kernel.TypeByName(name, &s); e != nil {
			err = errors.Join(err, e)
			return 0
		}
		at, e := memberOffset(s.Members, member)
		err = errors.Join(err, e)
		return at
	}
	common := fmt.Sprintf(eventFields, offset("sock_common", "skc_net"), offset("sock_common", "skc_num"),
		offset("sock_common", "skc_dport"), offset("tcp_sock", "write_seq"))
	probe := func(event, function, fields string) string {
		return fmt.Sprintf("p:%s/%s %s %s", group, event, function, fields)
	}
	probeEnd := func(event, function string) string {
		return fmt.Sprintf("r%d:%s/%s %s ret=$retval:s32", concurrentCalls, group, event, function)
	}
	return []string{
		probe(eventSet, "tls_setsockopt", common+" "+setFields), probeEnd(eventSetEnd, "tls_setsockopt"),
		probe(eventULP, "tls_init", common), probeEnd(eventULPEnd, "tls_init"),
		probeEnd(eventDevice, "tls_set_device_offload"), probeEnd(eventDeviceRX, "tls_set_device_offload_rx"),
	}, err
}

// memberOffset looks into members without a name too.
func memberOffset(members []btf.Member, name string) (uint32, error) {
	for _, m := range members {
		var inner []btf.Member
		switch t := m.Type.(type) {
		case *btf.Struct:
			inner = t.Members
		case *btf.Union:
			inner = t.Members
		}
		if m.Name == name {
			return m.Offset.Bytes(), nil
		}
		if m.Name == "" {
			if at, err := memberOffset(inner, name); err == nil {
				return m.Offset.Bytes() + at, nil
			}
		}
	}
	return 0, fmt.Errorf("this kernel's BTF has no member %s where it is expected", name)
}

func (t *trace) open(definitions []string) error {
	for _, line := range definitions {
		if err := write(tracefs+"/kprobe_events", line); err != nil {
			return fmt.Errorf("%w (probe %.30s...)", err, line)
		}
	}
	if err := os.Mkdir(Instance, 0o700); err != nil {
		return err
	}
	if err := write(Instance+"/buffer_size_kb", traceBuffer); err != nil {
		return err
	}
	var err error
	if t.pipe, err = unix.Open(Instance+"/trace_pipe", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
		return &os.PathError{Op: "open", Path: Instance + "/trace_pipe", Err: err}
	}
	return write(filepath.Join(Instance, "events", group, "enable"), "1")
}

// write does not truncate: that would clear kprobe_events.
func write(path, text string) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteString(text + "\n")
	return errors.Join(err, file.Close())
}

// read files what is there.
func (t *trace) read() error {
	for {
		n, err := unix.Read(t.pipe, t.buffer)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EAGAIN || n == 0 {
			return nil
		}
		if err != nil {
			return os.NewSyscallError("read trace_pipe", err)
		}
		t.rest = append(t.rest, t.buffer[:n]...)
		for {
			line, rest, whole := bytes.Cut(t.rest, []byte{'\n'})
			if !whole {
				break
			}
			if err := t.tracer.line(string(line)); err != nil {
				return err
			}
			t.rest = rest
		}
	}
}

// missed is an error if the kernel skipped a probe: too many calls at a time.
func (t *trace) missed() error {
	profile, err := os.ReadFile(tracefs + "/kprobe_profile")
	if err != nil {
		return err
	}
	ours := map[string]bool{eventSet: true, eventSetEnd: true, eventULP: true, eventULPEnd: true, eventDevice: true, eventDeviceRX: true}
	for line := range strings.Lines(string(profile)) {
		if f := strings.Fields(line); len(f) == 3 && ours[f[0]] && f[2] != "0" {
			return fmt.Errorf("the kernel skipped event %s %s times", f[0], f[2])
		}
	}
	return nil
}

// close removes what was made, also after half a start.
func (t *trace) close() error {
	var errs []error
	if t.pipe >= 0 {
		errs = append(errs, write(filepath.Join(Instance, "events", group, "enable"), "0"))
		unix.Close(t.pipe)
		t.pipe = -1
	}
	if err := os.Remove(Instance); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	for _, event := range []string{eventSet, eventSetEnd, eventULP, eventULPEnd, eventDevice, eventDeviceRX} {
		if _, err := os.Stat(filepath.Join(tracefs, "events", group, event)); err == nil {
			errs = append(errs, write(tracefs+"/kprobe_events", "-:"+group+"/"+event))
		}
	}
	return errors.Join(errs...)
}
