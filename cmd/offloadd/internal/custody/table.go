// SPDX-License-Identifier: Apache-2.0

package custody

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"syscall"
	"time"
)

// MaxEntries bounds the table of a daemon: about 400 bytes each.
const MaxEntries = 1 << 18

// ErrFull: the connection is not recorded. It works all the same.
var ErrFull = errors.New("the custody table is full")

// record is an entry and how to find its socket, unpacked: a copy, to be put back.
type record struct {
	Entry
	id     socketID
	device int // interface index, 0 if no key is in a device or it is not known
	added  time.Time
	kept   Kept
	lent   bool // kept is with somebody, who puts it back
}

// Kept is what the caller keeps with an entry: it is destroyed when the connection is
// over.
type Kept interface{ Destroy() }

// Table holds the entries. Its methods may be called concurrently.
type Table struct {
	max int
	log *slog.Logger

	mu      sync.Mutex
	records map[uint64]*packed
	losses  map[int]linkLoss // guarded by mu: the last of each interface
	totals  Totals           // guarded by mu: the counters since the start
	full    bool             // guarded by mu: said so already
}

// NewTable makes a table for at most max connections.
func NewTable(max int, log *slog.Logger) *Table {
	return &Table{max: max, log: log, records: make(map[uint64]*packed), losses: make(map[int]linkLoss)}
}

// record returns the record of a socket, or nil. The caller holds mu.
func (t *Table) record(socket uint64) *record {
	if p := t.records[socket]; p != nil {
		return p.unpack()
	}
	return nil
}

// put puts a record where it was, or a new one. The caller holds mu.
func (t *Table) put(r *record) { t.records[r.Socket] = r.pack() }

// Add records a connection. The caller fills in what it knows; socket, addresses and
// device come from c. It must have c open until Add returns, and so must Pass's
// caller: the kernel tells the end of a socket after its last descriptor is closed,
// so no entry is made for one that has ended. importBegan is the time before the keys
// were installed: a device that went down since then has lost them.
func (t *Table) Add(c syscall.Conn, e Entry, importBegan time.Time) error {
	r := &record{Entry: e, added: time.Now()}
	r.Condition = Live
	if err := r.locate(c); err != nil {
		return fmt.Errorf("custody: %w", err)
	}
	r.checkHalfOffload()
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.records) >= t.max {
		t.totals.Unrecorded++
		if !t.full {
			t.full = true
			t.log.Warn("the custody table is full: further connections work, but cannot be shown or revoked", "entries", t.max)
		}
		return ErrFull
	}
	t.full = false
	t.put(r)
	if r.Degraded() {
		t.totals.DegradedEver++
		t.log.Warn("custody degraded", "socket", r.Socket, "peer", r.Peer.String(), "reason", r.Write.Degraded.Reason)
	}
	if loss, ok := t.losses[r.device]; ok && r.device != 0 && loss.time.After(importBegan) {
		t.degrade([]*record{r}, loss)
	}
	return nil
}

// Pass records that both keys went on to another process.
func (t *Table) Pass(socket uint64, h Hand) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.record(socket); r != nil {
		for _, k := range r.keys() {
			k.Hands = append(k.Hands, h)
		}
		t.put(r)
	}
}

// Get returns the entry of a socket.
func (t *Table) Get(socket uint64) (Entry, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.record(socket)
	if r == nil {
		return Entry{}, false
	}
	return r.Entry, true
}

// Has reports whether there is an entry of a socket.
func (t *Table) Has(socket uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.records[socket] != nil
}

// Sockets returns the sockets whose entries match, in the order of their making.
func (t *Table) Sockets(match func(*Entry) bool) []uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []uint64
	for socket, p := range t.records {
		if match == nil || match(&p.unpack().Entry) {
			all = append(all, socket)
		}
	}
	slices.Sort(all)
	return all
}

// Totals counts.
func (t *Table) Totals() Totals {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.totals
	for _, p := range t.records {
		if conditions[p.condition] != Live {
			n.Over++
			continue
		}
		n.Live++
		switch read, write := places[p.read.place], places[p.write.place]; {
		case read == Unknown || write == Unknown:
			n.Unknown++
		case read != write:
			n.Mixed++
		case read == Device:
			n.Device++
		case read == UserSpace:
			n.UserSpace++
		default:
			n.Software++
		}
		if p.read.degraded != nil || p.write.degraded != nil {
			n.Degraded++
		}
	}
	return n
}

// Destroyed ends an entry: the kernel has freed the socket.
func (t *Table) Destroyed(socket uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end(socket)
}

// Keep puts k with the entry of a live connection. Where there is none, it is destroyed.
func (t *Table) Keep(socket uint64, k Kept) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.records[socket]; p != nil && conditions[p.condition] == Live {
		p.kept, p.lent = k, false
	} else {
		k.Destroy()
	}
}

var (
	// ErrNotKept: nothing is kept of the connection.
	ErrNotKept = errors.New("the connection is not one of this daemon since its last start, or it is over")
	// ErrLent: somebody has what is kept.
	ErrLent = errors.New("the connection is being taken back, or asked about, already")
)

// Borrow takes out what is kept with an entry, to be put back by Keep.
func (t *Table) Borrow(socket uint64) (Kept, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.records[socket]
	switch {
	case p == nil || p.kept == nil && !p.lent:
		return nil, ErrNotKept
	case p.lent:
		return nil, ErrLent
	}
	k := p.kept
	p.kept, p.lent = nil, true
	return k, nil
}

// Rekeyed records how often each key was changed.
func (t *Table) Rekeyed(socket uint64, readEpoch, writeEpoch uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.records[socket]
	if p == nil {
		return
	}
	t.totals.ReadKeys += p.read.rekeyed(readEpoch)
	t.totals.WriteKeys += p.write.rekeyed(writeEpoch)
}

func (k *packedKey) rekeyed(epoch uint32) uint64 {
	n := epoch - k.epoch
	if n > 0 {
		k.epoch, k.since = epoch, time.Now().UnixNano()
	}
	return uint64(n)
}

// Unfollowed counts a connection that ended because nobody could follow a KeyUpdate.
func (t *Table) Unfollowed() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.totals.Unfollowed++
}

// drop destroys what is kept. The caller holds mu.
func (p *packed) drop() {
	if p.kept != nil {
		p.kept.Destroy()
		p.kept = nil
	}
}

func (t *Table) end(socket uint64) {
	if p, ok := t.records[socket]; ok {
		p.drop()
		delete(t.records, socket)
		t.totals.Ended++
	}
}

// Reconciled compares the table with the sockets that the kernel has. One that is
// gone from there was closed, or reset. Who holds a descriptor of it holds its keys
// still, so the entry stays until the kernel tells that it has freed the socket;
// unless that word may be among those that were lost.
func (t *Table) Reconciled(census *Census) {
	for _, r := range t.missing(census) {
		// A dump of a table that changes meanwhile can leave out what was there all the
		// time (net/ipv4/inet_diag.c counts positions), so ask for each.
		if found, err := lookUp(r.id, r.Socket); err != nil {
			t.log.Warn("a socket's state is not known", "socket", r.Socket, "error", err)
		} else if found == nil {
			t.gone(r.Socket, census.Lost)
		}
	}
}

// missing returns copies of the records that are not in the census.
func (t *Table) missing(census *Census) []record {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []record
	for socket, p := range t.records {
		if _, there := census.TLS[socket]; !there && (conditions[p.condition] == Live || census.Lost) {
			all = append(all, *p.unpack())
		}
	}
	return all
}

func (t *Table) gone(socket uint64, lost bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if lost {
		t.end(socket)
	} else if p := t.records[socket]; p != nil && conditions[p.condition] == Live {
		p.end(Closed)
	}
}

// end notes that the connection is no more live. The caller holds mu.
func (p *packed) end(c Condition) {
	p.condition, p.over = uint8(slices.Index(conditions[:], c)), time.Now().UnixNano()
	p.drop()
}

// Foreign counts the sockets of a census that have keys and are not in the table.
func (t *Table) Foreign(census *Census) (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for socket, keyed := range census.TLS {
		if keyed && t.records[socket] == nil {
			n++
		}
	}
	return n
}
