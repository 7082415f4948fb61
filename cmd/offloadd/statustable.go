// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/offloadd/offloadd/cmd/offloadd/internal/custody"
)

// statusTable prints a line per connection. Columns are aligned in blocks, so that
// the first lines come before the last connection is known.
type statusTable struct {
	w     *bufio.Writer
	t     *tabwriter.Writer
	color func(code, s string) string
	rows  int
	// traffic: the observer is loaded, and its numbers have columns.
	traffic bool
	notes   []string // of the block, one per row and what is said after it
	block   strings.Builder
}

// statusBlock is how many lines are aligned with each other.
const statusBlock = 1000

func newStatusTable(w io.Writer, color func(code, s string) string) *statusTable {
	s := &statusTable{w: bufio.NewWriter(w), color: color}
	s.t = tabwriter.NewWriter(&s.block, 0, 0, 2, ' ', 0)
	return s
}

func (s *statusTable) connection(r *controlReply) error {
	e := r.Connection
	if s.rows++; s.rows == 1 {
		s.traffic = r.Traffic != nil
		s.row(s.withTraffic([]string{"SOCKET", "LISTENER", "PEER", "VERSION", "SUITE", "READ KEY", "WRITE KEY", "APPLICATION", "AGE"}, "OUT", "IN", "ERRORS", "")...)
	}
	application := "-"
	if a := e.Application(); a != nil {
		application = fmt.Sprint(a.PID)
	}
	out, in, errors := r.Traffic.cells()
	s.row(s.withTraffic([]string{fmt.Sprint(e.Socket), printable([]byte(e.Listener)), e.Peer.String(), e.Version, strings.TrimPrefix(e.Suite, "TLS_"),
		placeOf(&e.Read), placeOf(&e.Write), application, age(e.Accepted)}, out, in, errors, s.note(e))...)
	if s.rows%statusBlock == 0 {
		return s.flush()
	}
	return nil
}

// withTraffic puts the numbers of the observer, if it is loaded, and the note behind the others.
func (s *statusTable) withTraffic(cells []string, out, in, errors, note string) []string {
	if s.traffic {
		cells = append(cells, out, in, errors)
	}
	return append(cells, note)
}

// row ends with a note, which is outside of the columns: colours have no width.
func (s *statusTable) row(cells ...string) {
	last := len(cells) - 1
	fmt.Fprintln(s.t, strings.Join(cells[:last], "\t"))
	s.notes = append(s.notes, cells[last])
}

// note says what an operator should see first.
func (s *statusTable) note(e *custody.Entry) string {
	var notes []string
	if e.Condition != custody.Live {
		notes = append(notes, s.color("33", string(e.Condition)))
	}
	if e.Degraded() {
		notes = append(notes, s.color("31", "degraded"))
	}
	return strings.Join(notes, ", ")
}

// placeOf is short: "software", "eth0".
func placeOf(k *custody.Key) string {
	switch {
	case k.Place == custody.Device && k.Device != "":
		return k.Device
	case k.Place == custody.Software:
		return "software"
	}
	return string(k.Place)
}

// flush prints a block and puts the notes behind their lines.
func (s *statusTable) flush() error {
	if err := s.t.Flush(); err != nil {
		return err
	}
	i := 0
	for line := range strings.Lines(s.block.String()) {
		line = strings.TrimRight(line, " \n")
		if s.notes[i] != "" {
			line += "  " + s.notes[i]
		}
		fmt.Fprintln(s.w, line)
		i++
	}
	s.notes = s.notes[:0]
	s.block.Reset()
	return s.w.Flush()
}

func (s *statusTable) end(d *controlSummary) error {
	if err := s.flush(); err != nil {
		return err
	}
	if s.rows > 0 {
		fmt.Fprintln(s.w)
	}
	printTotals(s.w, d)
	return s.w.Flush()
}

// printTotals prints a line of now, a line since the start, and what is not shown.
func printTotals(w io.Writer, d *controlSummary) {
	n := d.Totals
	fmt.Fprintf(w, "%d live: %d in a device, %d in part, %d in kernel software", n.Live, n.Device, n.Mixed, n.Software)
	if n.UserSpace > 0 {
		fmt.Fprintf(w, ", %d in user space", n.UserSpace)
	}
	if n.Unknown > 0 {
		fmt.Fprintf(w, ", %d unknown", n.Unknown)
	}
	fmt.Fprintf(w, "; %d degraded\n", n.Degraded)
	if n.Over > 0 {
		fmt.Fprintf(w, "%d over, with the dead socket still held\n", n.Over)
	}
	fmt.Fprintf(w, "daemon %d, since %s: %d ended, %d revoked, %d degraded\n",
		d.PID, d.Started.Local().Format(time.DateTime), n.Ended, n.Revoked, n.DegradedEver)
	if n.ReadKeys+n.WriteKeys > 0 {
		fmt.Fprintf(w, "%d read keys and %d write keys were changed\n", n.ReadKeys, n.WriteKeys)
	}
	if n.Unfollowed > 0 {
		fmt.Fprintf(w, "%d ended because nobody could follow the peer's KeyUpdate; \"offloadd check\" tells of \"rekey rx\"\n", n.Unfollowed)
	}
	if n.Unrecorded > 0 {
		fmt.Fprintf(w, "%d connections were not recorded: the table was full\n", n.Unrecorded)
	}
	switch {
	case d.Foreign > 0:
		fmt.Fprintf(w, "%d more kernel TLS sockets are of other programs, or from before this start\n", d.Foreign)
	case d.Foreign < 0:
		fmt.Fprintln(w, "other kernel TLS sockets could not be counted")
	}
}

// statusDetail prints all of each connection.
type statusDetail struct {
	w       io.Writer
	holders map[uint64][]holder
}

func (s *statusDetail) end(*controlSummary) error { return nil }

func (s *statusDetail) connection(r *controlReply) error {
	e := r.Connection
	t := tabwriter.NewWriter(s.w, 0, 0, 2, ' ', 0)
	since := ""
	if e.Over != nil {
		since = fmt.Sprintf(" since %s; somebody holds the dead socket", clock(*e.Over))
	}
	fmt.Fprintf(t, "socket %d\t%s%s\n", e.Socket, e.Condition, since)
	fmt.Fprintf(t, "  connection\t%v from %v, listener %s, accepted %s\n", e.Local, e.Peer, printable([]byte(e.Listener)), clock(e.Accepted))
	fmt.Fprintf(t, "  handshake\t%s, %s%s%s%s\n", e.Version, e.Suite, map[bool]string{true: ", resumed"}[e.Resumed],
		optional(", ALPN ", e.ALPN), optional(", server name ", e.ServerName))
	if held := s.holders[e.Socket]; len(held) > 0 {
		fmt.Fprintf(t, "  held by\t%s\n", joined(held))
	}
	for _, d := range []struct {
		name string
		key  *custody.Key
	}{{"read key", &e.Read}, {"write key", &e.Write}} {
		place := string(d.key.Place)
		if d.key.Place == custody.Device && d.key.Device != "" {
			place += " " + d.key.Device
		}
		fmt.Fprintf(t, "  %s\t%s, since %s, epoch %d\n", d.name, place, clock(d.key.Since), d.key.Epoch)
		if g := d.key.Degraded; g != nil {
			fmt.Fprintf(t, "  \tDEGRADED since %s: %s\n", clock(g.Since), g.Reason)
		} else if d.key.Reason != "" {
			fmt.Fprintf(t, "  \t%s\n", d.key.Reason)
		}
		for _, h := range d.key.Hands {
			fmt.Fprintf(t, "  \t%s %s pid %d, uid %d%s\n", clock(h.Time), h.Role, h.PID, h.UID,
				optional(map[string]string{"worker": ", sealer ", "daemon": ", instance "}[h.Role], h.ID))
		}
	}
	r.Traffic.print(t)
	return t.Flush()
}

// optional is prefix and a peer's or worker's word, made safe for a terminal; ""
// without one.
func optional(prefix, word string) string {
	if word == "" {
		return ""
	}
	return prefix + printable([]byte(word))
}

func clock(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05.000") }
