// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"encoding/binary"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// The kernel's tracing tells of three calls, by an event at the beginning and one at
// the end, which belong together by the thread: only a key that was accepted counts.
//
// The names of the events. The kernel's own for a line of the trace marker is
// tracing_mark_write.
const (
	eventSet      = "set" // tls_setsockopt
	eventSetEnd   = "set_end"
	eventULP      = "ulp" // tls_init
	eventULPEnd   = "ulp_end"
	eventDevice   = "device"    // the end of tls_set_device_offload, for writing,
	eventDeviceRX = "device_rx" // and of tls_set_device_offload_rx
	eventMark     = "tracing_mark_write"
	// eventFields are common to both beginnings; the third is where the offset of
	// tcp_sock.write_seq goes. struct sock begins with struct sock_common.
	eventFields = "net=+%d(%%di):x64 local=+%d(%%di):u16 peer=+%d(%%di):u16 seq=+%d(%%di):u32"
	// setFields: level, optname, the length of the value, and its words, w0 to w6, by a
	// user pointer within struct sockptr_t (System V calling convention). There are no
	// arrays of user memory.
	setFields = "level=%si:s32 option=%dx:s32 size=%r9:u32 w0=+u0(%cx):x64 w1=+u8(%cx):x64 w2=+u16(%cx):x64 " +
		"w3=+u24(%cx):x64 w4=+u32(%cx):x64 w5=+u40(%cx):x64 w6=+u48(%cx):x64"
	wordSize = 8
)

// Numbers of the kernel's interface.
const (
	levelTLS = 282
	optionTX = 1
	optionRX = 2
)

// A socket is what an event tells about one.
type socket struct {
	net      uint64 // address of its network namespace
	ports    ports  // its own and the peer's
	writeSeq uint32
}

// A call is one that has begun.
type call struct {
	socket socket
	option int    // optionTX or optionRX; 0: the ULP
	value  []byte // the key
	device bool   // the key went into a network device
}

// A tracer turns lines of the trace into calls that succeeded and announcements.
type tracer struct {
	pending map[int]*call // by thread
	done    func(*call) error
	expect  func(Kind, uint16)
}

var (
	traceLine = regexp.MustCompile(`-(\d+) +\[\d+\] \S+ +[\d.]+: (\w+): (.*)$`)
	lostLine  = regexp.MustCompile(`^CPU:\d+ \[LOST \d+ EVENTS\]`)
	markLine  = regexp.MustCompile(`^expect (\S+) on port (\d+)$`)
)

func (t *tracer) line(line string) error {
	if lostLine.MatchString(line) {
		return fmt.Errorf("the kernel's trace lost events: %s", line)
	}
	match := traceLine.FindStringSubmatch(line)
	if match == nil {
		return fmt.Errorf("unknown line in the trace: %d bytes", len(line)) // it might hold a key
	}
	thread, err := strconv.Atoi(match[1])
	if err != nil {
		return err
	}
	name, text := match[2], match[3]
	switch name {
	case eventSet, eventULP:
		return t.begin(thread, name, fields(text))
	case eventDevice, eventDeviceRX:
		if c := t.pending[thread]; c != nil && fields(text)["ret"] == "0" {
			c.device = true
		}
	case eventSetEnd, eventULPEnd:
		c := t.pending[thread]
		delete(t.pending, thread)
		if c != nil && fields(text)["ret"] == "0" {
			return t.done(c)
		}
	case eventMark:
		return t.mark(text)
	}
	return nil
}

// fields reads "(place) a=1 b=0x2".
func fields(text string) map[string]string {
	all := map[string]string{}
	for _, word := range strings.Fields(text) {
		if name, value, found := strings.Cut(word, "="); found {
			all[name] = value
		}
	}
	return all
}

func (t *tracer) begin(thread int, name string, f map[string]string) error {
	number := func(field string, bits int) uint64 {
		n, err := strconv.ParseUint(f[field], 0, bits)
		if err != nil && f["bad"] == "" {
			f["bad"] = field
		}
		return n
	}
	c := &call{socket: socket{net: number("net", 64), writeSeq: uint32(number("seq", 32))}}
	peer := uint16(number("peer", 16)) // in network order
	c.socket.ports = ports{uint16(number("local", 16)), peer>>8 | peer<<8}
	delete(t.pending, thread)
	if name == eventSet {
		// The ULP passes other levels on to TCP, which has options 1 and 2 as well.
		option := f["option"]
		if f["level"] != strconv.Itoa(levelTLS) || option != strconv.Itoa(optionTX) && option != strconv.Itoa(optionRX) {
			return nil
		}
		c.option = int(option[0] - '0')
		for i := range min(number("size", 32)/wordSize, 7) {
			c.value = binary.NativeEndian.AppendUint64(c.value, number(fmt.Sprintf("w%d", i), 64))
		}
	}
	if f["bad"] != "" {
		return fmt.Errorf("field %q of event %q is no number", f["bad"], name)
	}
	t.pending[thread] = c
	return nil
}

func (t *tracer) mark(text string) error {
	match := markLine.FindStringSubmatch(text)
	if match == nil {
		return fmt.Errorf("an announcement is not understood: %q", text)
	}
	port, err := strconv.ParseUint(match[2], 10, 16)
	if err != nil {
		return fmt.Errorf("an announcement is not understood: %q", text)
	}
	kind := Kind(match[1])
	switch kind {
	case SecondInstall, Clear, Gap, Repeat, Forged, Late:
		t.expect(kind, uint16(port))
		return nil
	}
	return fmt.Errorf("an announcement of an unknown kind: %q", text)
}
