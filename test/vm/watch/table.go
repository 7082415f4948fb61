// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"fmt"
	"maps"
	"slices"
)

// A table brings packets and calls together.
type table struct {
	ledger  *ledger
	net     uint64           // our network namespace; 0: not known yet
	flows   map[flow]*stream // the newest of each
	byPorts map[ports][]*stream
	live    map[*stream]flow

	begun     int // streams
	waiting   []*waitingCall
	elsewhere int // write keys in other namespaces
	unseen    int // write keys on connections without a packet
}

func newTable() *table {
	return &table{
		ledger: newLedger(), flows: map[flow]*stream{}, byPorts: map[ports][]*stream{}, live: map[*stream]flow{},
	}
}

// packet files one.
func (t *table) packet(b []byte) {
	g, ok := parseSegment(b)
	if !ok {
		return
	}
	s, peer := t.flows[g.flow], t.flows[g.flow.reversed()]
	if g.syn {
		g.seq++ // the SYN has a number of its own
	}
	switch {
	case g.rst:
		if s == nil || s.near(g.seq) {
			for _, end := range []*stream{s, peer} {
				if end != nil {
					end.reset = true // its payload, if any, is a message to people
				}
			}
		}
		return
	case g.syn && (s == nil || s.begin != g.seq):
		s = newStream(g.seq, g.flow.ports(), t.ledger)
		if peer != nil && peer.peer == nil {
			s.peer, peer.peer = peer, s
		}
		t.begun++
		s.number = t.begun
		t.flows[g.flow], t.live[s] = s, g.flow
		t.byPorts[g.flow.ports()] = append(t.byPorts[g.flow.ports()], s)
	case s == nil:
		return // left over from a connection of before
	}
	s.add(g)
}

// find returns the stream that a socket writes to.
func (t *table) find(k socket) *stream {
	list := t.byPorts[k.ports]
	for i := len(list) - 1; i >= 0; i-- {
		if list[i].near(k.writeSeq) {
			return list[i]
		}
	}
	return nil
}

// call files one that succeeded.
func (t *table) call(c *call) error {
	w := &waitingCall{socket: c.socket, device: c.device}
	if c.option != 0 {
		k, err := parseKey(c.value)
		if err != nil {
			return fmt.Errorf("%v: %w", c.socket.ports, err)
		}
		if c.option == optionRX {
			t.ledger.install(k, c.socket.ports.reversed(), false)
			return nil
		}
		t.ledger.install(k, c.socket.ports, true)
		w.key = k
	}
	switch {
	case t.net == 0 || c.socket.net == t.net:
		t.waiting = append(t.waiting, w)
	case w.key != nil:
		t.elsewhere++
	}
	return nil
}

// A waitingCall waits for the packets of its connection, which may come later than the
// event, but not much.
type waitingCall struct {
	socket socket
	key    *key // nil: the ULP
	device bool
	rounds int
}

// place files a waiting call, if its stream is there.
func (t *table) place(w *waitingCall) bool {
	s := t.find(w.socket)
	if s == nil {
		return false
	}
	switch at := s.place(w.socket.writeSeq); {
	case w.key == nil:
		s.judge.attach(at)
	case w.device:
		s.judge.giveUp("a network device has the key")
	default:
		s.judge.install(w.key, at)
	}
	return true
}

// placeAll files the waiting calls. Those of one socket keep their order: what one of
// them lacks, the others lack too.
func (t *table) placeAll() {
	t.waiting = slices.DeleteFunc(t.waiting, func(w *waitingCall) bool {
		if t.place(w) {
			return true
		}
		w.rounds++
		if w.rounds > waitRounds && w.key != nil {
			t.unseen++
		}
		return w.rounds > waitRounds
	})
}

const (
	settleRounds = 5  // how long after its end a stream is kept for what comes late
	waitRounds   = 50 // how long a call waits for packets
)

// round judges what has come. All calls that were over when the last packet was filed
// must have been filed too.
func (t *table) round() {
	t.placeAll()
	for _, s := range t.inOrder() {
		f := t.live[s]
		s.feed()
		if !s.ended() {
			continue
		}
		if s.quiet++; s.quiet > settleRounds {
			s.finish()
			delete(t.live, s)
			if s.judge.ulpAt < 0 && s.judge.current == nil {
				t.forget(f, s)
			}
		}
	}
}

// inOrder are the streams that live: who comes second is to blame for what both did.
func (t *table) inOrder() []*stream {
	return slices.SortedFunc(maps.Keys(t.live), func(a, b *stream) int { return a.number - b.number })
}

// forget removes a stream that has nothing to do with TLS.
func (t *table) forget(f flow, s *stream) {
	if t.flows[f] == s {
		delete(t.flows, f)
	}
	var rest []*stream
	for _, other := range t.byPorts[f.ports()] {
		if other != s {
			rest = append(rest, other)
		}
	}
	t.byPorts[f.ports()] = rest
}

// finish judges what is left and counts.
func (t *table) finish() *Report {
	for _, s := range t.inOrder() {
		s.finish()
	}
	for _, w := range t.waiting {
		if w.key != nil {
			t.unseen++
		}
	}
	t.ledger.finish()
	r := &Report{Keys: t.ledger.installed, Violations: t.ledger.violations, Pardoned: t.ledger.pardoned}
	counted := map[*stream]bool{}
	for _, list := range t.byPorts {
		for _, s := range list {
			if s.judge.ulpAt < 0 {
				continue
			}
			if !counted[s.peer] {
				r.Connections++
			}
			counted[s] = true
			r.add(s.judge)
		}
	}
	for _, group := range []struct {
		n   int
		why string
	}{{t.elsewhere, "in another network namespace"}, {t.unseen, reasonLost}} {
		for range group.n {
			r.skip(group.why)
		}
	}
	return r
}
