// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"time"
)

// summary are the lines above the table.
func (m *topModel) summary() []string {
	lines := []string{"offloadd top"}
	s := m.sample
	switch {
	case s == nil && m.err == nil:
		return append(lines, "looking...", "", "")
	case s == nil:
		return append(lines, red(m.err.Error()), "", "")
	}
	lines[0] += "  " + s.Time.Local().Format(time.TimeOnly) + "  every " + m.interval.String()
	if m.paused {
		lines[0] += "  " + reversed("PAUSED")
	}
	if m.err != nil {
		lines[0] += "  " + red(m.err.Error())
	}
	if s.Daemon.Error != "" {
		lines[0] += "  without the daemon all sockets are foreign"
	} else {
		lines[0] += fmt.Sprintf("  daemon %d", s.Daemon.PID)
	}
	return append(lines, m.nowLine(), m.sumLine(), m.alarmLine())
}

// nowLine is about the sockets that there are.
func (m *topModel) nowLine() string {
	var foreign, device int
	var out, in, outRecords, inRecords float64
	for i := range m.sample.Sockets {
		r := &m.sample.Sockets[i]
		if r.Foreign {
			foreign++
		}
		if r.Sent.Path == "device" || r.Received.Path == "device" {
			device++
		}
		out, in = out+max(0, rateOf(r.Sent.ByteRate)), in+max(0, rateOf(r.Received.ByteRate))
		outRecords, inRecords = outRecords+max(0, rateOf(r.Sent.RecordRate)), inRecords+max(0, rateOf(r.Received.RecordRate))
	}
	return fmt.Sprintf("%d sockets, %d foreign, %d in a device; out %sB/s %s rec/s; in %sB/s %s rec/s", len(m.sample.Sockets), foreign, device,
		shortNumber(out, 1024), shortNumber(outRecords, 1000), shortNumber(in, 1024), shortNumber(inRecords, 1000))
}

// sumLine is about all that there were.
func (m *topModel) sumLine() string {
	s := &m.sample.Sums
	var errors, broken uint64
	for _, n := range s.Errors {
		errors += n
	}
	for name, n := range s.Ends {
		if name != "proper" {
			broken += n
		}
	}
	line := fmt.Sprintf("since load: %d connections, out %sB, in %sB, %d ended badly, errors ", s.Connections,
		shortNumber(float64(s.Sent.Bytes), 1024), shortNumber(float64(s.Received.Bytes), 1024), broken)
	if errors > 0 {
		return line + red(fmt.Sprint(errors))
	}
	return line + "0"
}

// alarmLine is about keys that come near their end, and about what this view misses.
func (m *topModel) alarmLine() string {
	var parts []string
	if n := len(m.sample.Alarms); n > 0 {
		a := m.sample.Alarms[0]
		parts = append(parts, red(fmt.Sprintf("%d keys near their end, as of socket %d: %s", n, a.Socket, a.Reason)))
	}
	if n := m.sample.Sums.Unlisted; n > 0 {
		parts = append(parts, fmt.Sprintf("%d connections not counted, for want of room", n))
	}
	return strings.Join(parts, "; ")
}

// helpPage is the page of keys.
func (m *topModel) helpPage() []string {
	return strings.Split(`offloadd top: the kernel TLS sockets of this network namespace

  left right     sort by another column
  r              reverse the order
  /              show only rows that have a text; enter keeps it, esc drops it
  p or space     pause
  up down        scroll, also pgup, pgdn, home, end
  ? or h         this page
  q              quit

OWNER is the daemon's listener, or foreign: a socket of another program, which offloadd
does not manage. APP is the process that the daemon gave the socket to.
OUT and IN are bytes inside the records, or, with ~, those of TCP: the socket had its
keys before the observer was loaded.
SEQ is the number of the next record. KEY % is how much of what one key may protect is
spent, for AES-GCM 2^24.5 records (RFC 8446, Section 5.5).`, "\n")
}

func red(s string) string { return "\x1b[31m" + s + "\x1b[39m" }

func reversed(s string) string { return "\x1b[7m" + s + "\x1b[27m" }

// cutVisible cuts a line of ASCII to width columns and keeps its colours.
func cutVisible(s string, width int) string {
	var b strings.Builder
	for visible, i := 0, 0; i < len(s); i++ {
		if s[i] == '\x1b' {
			if end := strings.IndexByte(s[i:], 'm'); end > 0 {
				b.WriteString(s[i : i+end+1])
				i += end
				continue
			}
		}
		if visible < width {
			b.WriteByte(s[i])
			visible++
		}
	}
	return b.String()
}
