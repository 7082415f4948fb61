// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/offloadd/offloadd/bpf"
)

// topSample is what there was at one time, and what went on since the sample before.
type topSample struct {
	Time time.Time `json:"time"`
	// Interval is the time since the sample before, in seconds; 0 for the first.
	Interval float64    `json:"interval_seconds"`
	Daemon   *topDaemon `json:"daemon"`
	Sums     topSums    `json:"sums"`
	Sockets  []topRow   `json:"sockets"`
	Alarms   []topAlarm `json:"alarms"`
}

// topDaemon is who manages sockets. Without one, all are foreign.
type topDaemon struct {
	PID   int    `json:"pid,omitempty"`
	Error string `json:"error,omitempty"`
}

// topSums are of all connections since the observer was loaded.
type topSums struct {
	Connections uint64            `json:"connections"`
	Sent        topTraffic        `json:"sent"`
	Received    topTraffic        `json:"received"`
	Errors      map[string]uint64 `json:"errors"`
	Ends        map[string]uint64 `json:"ends"`
	Failures    uint64            `json:"failures"`
	Unlisted    uint64            `json:"unlisted"`
	Dropped     uint64            `json:"events_dropped"`
}

type topTraffic struct {
	Bytes   uint64 `json:"bytes"`
	Records uint64 `json:"records"`
}

// topRow is one socket.
type topRow struct {
	Socket      uint64         `json:"socket"`
	Foreign     bool           `json:"foreign"`
	Listener    string         `json:"listener,omitempty"`
	Application int            `json:"application_pid,omitempty"`
	UID         uint32         `json:"uid"`
	Inode       uint64         `json:"inode"`
	Local       netip.AddrPort `json:"local"`
	Peer        netip.AddrPort `json:"peer"`
	Version     string         `json:"version"`
	Cipher      string         `json:"cipher"`
	Since       *time.Time     `json:"since,omitempty"`
	Sent        topDirection   `json:"sent"`
	Received    topDirection   `json:"received"`
	// Counted: bytes are content, and records and errors are known. Else the socket had
	// keys before the observer was loaded, and bytes are TCP's.
	Counted bool              `json:"counted"`
	Errors  map[string]uint32 `json:"errors,omitempty"`
	// Retransmitted are TCP's bytes.
	Retransmitted uint64 `json:"retransmitted"`
}

type topDirection struct {
	Path     string `json:"path"`
	Sequence uint64 `json:"sequence"`
	// Spent is the part of the records that the key may protect, in percent.
	Spent   float64 `json:"limit_percent"`
	Bytes   uint64  `json:"bytes"`
	Records uint64  `json:"records"`
	Wire    uint64  `json:"tcp_bytes"`
	// Rates are there from the socket's second sample on.
	ByteRate   *float64 `json:"bytes_per_second,omitempty"`
	RecordRate *float64 `json:"records_per_second,omitempty"`
}

type topAlarm struct {
	Socket    uint64 `json:"socket"`
	Direction string `json:"direction"`
	Sequence  uint64 `json:"sequence"`
	Limit     uint64 `json:"limit"`
	Reason    string `json:"reason"`
}

// owner is what the daemon knows of a socket.
type owner struct {
	listener    string
	application int
}

// topSource takes samples.
type topSource struct {
	observer  *bpf.Observer
	control   string // the daemon's socket
	threshold float64
}

func (s *topSource) sample() (*topSample, error) {
	connections, err := s.observer.Connections()
	if err != nil {
		return nil, err
	}
	sums, err := s.observer.Sums()
	if err != nil {
		return nil, err
	}
	daemon, owners := askOwners(s.control)
	return newTopSample(time.Now(), connections, sums, daemon, owners, s.threshold), nil
}

// askOwners asks the daemon which sockets it manages.
func askOwners(control string) (*topDaemon, map[uint64]owner) {
	client, err := dialControl(control)
	if err != nil {
		return &topDaemon{Error: err.Error()}, nil
	}
	defer client.close()
	owners := make(map[uint64]owner)
	summary, err := client.ask(&controlRequest{Command: controlStatus, All: true}, func(r *controlReply) error {
		if e := r.Connection; e != nil {
			o := owner{listener: e.Listener}
			if a := e.Application(); a != nil {
				o.application = a.PID
			}
			owners[e.Socket] = o
		}
		return nil
	})
	if err != nil {
		return &topDaemon{Error: err.Error()}, owners
	}
	return &topDaemon{PID: summary.PID}, owners
}

func newTopSample(now time.Time, connections []bpf.Connection, sums bpf.Sums, daemon *topDaemon, owners map[uint64]owner, threshold float64) *topSample {
	s := &topSample{Time: now, Daemon: daemon, Sums: newTopSums(&sums), Sockets: []topRow{}, Alarms: []topAlarm{}}
	for i := range connections {
		s.Sockets = append(s.Sockets, newTopRow(&connections[i], owners))
	}
	slices.SortFunc(s.Sockets, func(a, b topRow) int { return cmp.Compare(a.Socket, b.Socket) })
	for _, a := range bpf.Alarms(connections, threshold) {
		s.Alarms = append(s.Alarms, topAlarm{a.Cookie, directionName(a.Sending), a.Sequence, a.Limit, a.Reason})
	}
	return s
}

func directionName(sending bool) string {
	if sending {
		return "sent"
	}
	return "received"
}

func newTopSums(sums *bpf.Sums) topSums {
	s := topSums{
		Connections: sums.Connections,
		Sent:        topTraffic{sums.Sending.Bytes, sums.Sending.Records},
		Received:    topTraffic{sums.Receiving.Bytes, sums.Receiving.Records},
		Errors:      make(map[string]uint64), Ends: make(map[string]uint64),
		Failures: sums.Failures, Unlisted: sums.Unlisted, Dropped: sums.Dropped,
	}
	for kind, n := range sums.Errors {
		s.Errors[bpf.ErrorNames[kind]] = n
	}
	for end, n := range sums.Ends {
		if bpf.End(end) != bpf.Live {
			s.Ends[bpf.EndNames[end]] = n
		}
	}
	return s
}

func newTopRow(c *bpf.Connection, owners map[uint64]owner) topRow {
	o, managed := owners[c.Cookie]
	r := topRow{
		Socket: c.Cookie, Foreign: !managed, Listener: o.listener, Application: o.application, UID: c.UID, Inode: c.Inode,
		Local: c.Local, Peer: c.Peer, Version: bpf.VersionName(c.Version), Cipher: bpf.CipherName(c.Cipher),
		Sent: newTopDirection(c, c.Sending, c.Acked), Received: newTopDirection(c, c.Receiving, c.Received),
		Retransmitted: c.Retransmitted,
	}
	t := c.Totals
	if t == nil {
		r.Sent.Bytes, r.Received.Bytes = r.Sent.Wire, r.Received.Wire
		return r
	}
	r.Counted, r.Since = true, &t.Since
	r.Sent.Bytes, r.Sent.Records = t.Sending.Bytes, t.Sending.Records
	r.Received.Bytes, r.Received.Records = t.Receiving.Bytes, t.Receiving.Records
	for kind, n := range t.Errors {
		if n > 0 {
			if r.Errors == nil {
				r.Errors = make(map[string]uint32)
			}
			r.Errors[bpf.ErrorNames[kind]] = n
		}
	}
	return r
}

func newTopDirection(c *bpf.Connection, k bpf.Key, wire uint64) topDirection {
	return topDirection{Path: k.Path.String(), Sequence: k.Sequence, Spent: 100 * c.Spent(k), Wire: wire}
}

// since computes the rates from the sample before.
func (s *topSample) since(before *topSample) {
	if before == nil {
		return
	}
	s.Interval = s.Time.Sub(before.Time).Seconds()
	if s.Interval <= 0 {
		return
	}
	old := make(map[uint64]*topRow, len(before.Sockets))
	for i := range before.Sockets {
		old[before.Sockets[i].Socket] = &before.Sockets[i]
	}
	for i := range s.Sockets {
		r := &s.Sockets[i]
		if o := old[r.Socket]; o != nil && o.Counted == r.Counted {
			r.Sent.since(&o.Sent, s.Interval, r.Counted)
			r.Received.since(&o.Received, s.Interval, r.Counted)
		}
	}
}

func (d *topDirection) since(before *topDirection, seconds float64, counted bool) {
	rate := func(now, then uint64) *float64 {
		r := float64(now-min(then, now)) / seconds
		return &r
	}
	d.ByteRate = rate(d.Bytes, before.Bytes)
	if counted {
		d.RecordRate = rate(d.Records, before.Records)
	} else if d.Sequence >= before.Sequence { // no new key meanwhile
		d.RecordRate = rate(d.Sequence, before.Sequence)
	}
}

// errors of all kinds.
func (r *topRow) errors() (n uint32) {
	for _, of := range r.Errors {
		n += of
	}
	return n
}

// spent is that of the key which is nearer to its end.
func (r *topRow) spent() float64 { return max(r.Sent.Spent, r.Received.Spent) }

// ownerName is short.
func (r *topRow) ownerName() string {
	if r.Foreign {
		return fmt.Sprintf("foreign uid %d", r.UID)
	}
	return r.Listener
}
