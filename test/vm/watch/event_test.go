// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
)

// traced is a line as the kernel prints it.
func traced(thread int, text string) string {
	return fmt.Sprintf("  my prog: x-1-%-7d [001] ...1.    17.056631: %s", thread, text)
}

const socketText = "net=0xffff888003b5c000 local=443 peer=36895 seq=4000000000" // the peer's port is 8080

// setText is the event of a setsockopt.
func setText(level, option int, value []byte) string {
	text := fmt.Sprintf("set: (tls_setsockopt+0x0/0x70 [tls]) %s level=%d option=%d size=%d", socketText, level, option, len(value))
	for i := range 7 {
		word := uint64(0xdeadbeef)
		if len(value) >= 8*(i+1) {
			word = binary.NativeEndian.Uint64(value[8*i:])
		}
		text += fmt.Sprintf(" w%d=%#x", i, word)
	}
	return text
}

func TestTheTraceTellsOfCallsThatSucceeded(t *testing.T) {
	value := []byte(strings.Repeat("01234567", 7))
	setEnd := func(ret int) string {
		return fmt.Sprintf("set_end: (do_sock_setsockopt+0xaf/0x1a0 <- tls_setsockopt) ret=%d", ret)
	}
	const attach = "ulp: (tls_init+0x0/0x1c0 [tls]) " + socketText
	const device = "device: (do_tls_setsockopt_conf+0x1/0x2 <- tls_set_device_offload) ret="
	for name, c := range map[string]struct {
		lines []string // "N text": of thread N
		want  string
	}{
		"TLS_TX":               {[]string{traced(1, setText(282, 1, value)), traced(1, setEnd(0))}, "1:56:false "},
		"TLS_RX of 40 bytes":   {[]string{traced(1, setText(282, 2, value[:40])), traced(1, setEnd(0))}, "2:40:false "},
		"refused":              {[]string{traced(1, setText(282, 1, value)), traced(1, setEnd(-16))}, ""},
		"another option":       {[]string{traced(1, setText(282, 4, value[:4])), traced(1, setEnd(0))}, ""},
		"TCP_NODELAY":          {[]string{traced(1, setText(6, 1, value[:4])), traced(1, setEnd(0))}, ""},
		"in a device":          {[]string{traced(1, setText(282, 1, value)), traced(1, device+"0"), traced(1, setEnd(0))}, "1:56:true "},
		"refused by a device":  {[]string{traced(1, setText(282, 1, value)), traced(1, device+"-22"), traced(1, setEnd(0))}, "1:56:false "},
		"the ULP":              {[]string{traced(1, attach), traced(1, "ulp_end: (a <- tls_init) ret=0")}, "0:0:false "},
		"the ULP refused":      {[]string{traced(1, attach), traced(1, "ulp_end: (a <- tls_init) ret=-107")}, ""},
		"two threads":          {[]string{traced(1, setText(282, 1, value)), traced(2, setText(282, 2, value)), traced(1, setEnd(0)), traced(2, setEnd(-1))}, "1:56:false "},
		"announced":            {[]string{traced(1, "tracing_mark_write: expect gap on port 443")}, "gap on 443 "},
		"announced wrongly":    {[]string{traced(1, "tracing_mark_write: expect nonsense on port 443")}, "error"},
		"nonsense":             {[]string{"nonsense"}, "error"},
		"a value not readable": {[]string{traced(1, strings.Replace(setText(282, 1, value), "w3=0x", "w3=(fault)", 1))}, "error"},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			tr := &tracer{pending: map[int]*call{}}
			tr.expect = func(k Kind, port uint16) { got += fmt.Sprintf("%s on %d ", k, port) }
			tr.done = func(c *call) error {
				got += fmt.Sprintf("%d:%d:%v ", c.option, len(c.value), c.device)
				if c.socket != (socket{0xffff888003b5c000, ports{443, 8080}, 4000000000}) || !bytes.HasPrefix(value, c.value) {
					t.Errorf("%+v", c)
				}
				return nil
			}
			for _, line := range c.lines {
				if err := tr.line(line); err != nil {
					if bytes.Contains([]byte(err.Error()), value[:8]) || strings.Contains(err.Error(), "0x3736353433323130") {
						t.Errorf("%v tells a secret", err)
					}
					got = "error"
				}
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestLostEventsAreAnError(t *testing.T) {
	err := (&tracer{}).line("CPU:1 [LOST 12 EVENTS]")
	if err == nil || !strings.Contains(err.Error(), "LOST 12") {
		t.Error(err)
	}
}

func TestOtherKeysAreErrors(t *testing.T) {
	good := newWriter(t, suites[0]).info(0)
	for name, b := range map[string][]byte{
		"nothing": nil, "short": good[:39], "another cipher": append([]byte{4, 3, 53, 0}, good[4:]...), "SSL 3": append([]byte{0, 3}, good[2:]...),
	} {
		if _, err := parseKey(b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
