// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/offloadd/offloadd/blob"
)

// Bounds in records. The file is rewritten when it has twice what the last rewriting
// left, and some more, so that the work per entry is constant.
const (
	maxRecords = 1 << 20 // half a million connections, 68 MiB
	slack      = 4096
)

// Ledger is an open ledger, safe for concurrent use. Whoever has it open is alone.
type Ledger struct {
	store    storage
	header   header
	instance blob.Instance
	alive    func() (map[uint64]struct{}, error)
	now      func() time.Time
	log      *slog.Logger
	sweeps   sync.WaitGroup

	mu       sync.Mutex
	entries  map[slot][]entry        // guarded by mu
	keys     map[blob.KeyDigest]slot // guarded by mu
	serial   uint64                  // guarded by mu: of the next entry
	size     int64                   // guarded by mu: of the file
	sum      uint32                  // guarded by mu: of the file
	records  int                     // guarded by mu: in the file, those of dead entries too
	sweepAt  int                     // guarded by mu: records
	sweeping bool                    // guarded by mu
	broken   error                   // guarded by mu: why nothing more is entered
	replays  uint64                  // guarded by mu
}

// remembered is how many keys of one direction are known, the newest ones: a peer may
// rekey as often as it likes and must not fill the ledger with that.
const remembered = 8

// slot is one direction of one socket. Its entries are in the order of their epochs.
type slot struct {
	cookie    uint64
	direction blob.Direction
}

type entry struct {
	line   Line
	key    blob.KeyDigest
	serial uint64
}

// storage is the file; a test has one in memory that can die in the middle.
type storage interface {
	// load returns the whole file, nil if there is none.
	load() ([]byte, error)
	// write writes all of b at an offset, with one system call.
	write(b []byte, at int64) error
	truncate(size int64) error
	// replace puts b in the file's place: who looks finds the old or the new.
	replace(b []byte) error
	close() error
}

// open reads the file and drops what is of the past: another boot, sockets that are
// gone, and an act that was never completed.
func (l *Ledger) open() error {
	b, err := l.store.load()
	if err != nil {
		return err
	}
	l.entries, l.keys = make(map[slot][]entry), make(map[blob.KeyDigest]slot)
	if b == nil {
		return l.compact()
	}
	c, err := decode(b)
	switch {
	case err != nil:
		return err
	case c.header.boot != l.header.boot:
		return l.compact()
	case c.header.namespace != l.header.namespace:
		return fmt.Errorf("%w: it is of network namespace %d, this is %d, where those sockets cannot be seen; give each namespace a ledger of its own, or remove it once nobody runs in the other",
			ErrForeign, c.header.namespace, l.header.namespace)
	}
	for i := range c.records {
		l.apply(&c.records[i])
	}
	l.size, l.sum, l.records = c.size, c.sum, len(c.records)
	if len(c.records) == 0 && c.size == int64(len(b)) {
		l.sweepAt = slack
		return nil
	}
	return l.sweep()
}

// Enter enters both keys of a connection, or none. It must be called before they are
// installed, and only it gives them to who installs. If it fails they are destroyed.
func (l *Ledger) Enter(p *Pending) (*Entered, error) {
	defer p.Destroy()
	if err := l.enter(p.read, p.write); err != nil {
		return nil, err
	}
	e := &Entered{p.read, p.write}
	p.read, p.write = nil, nil
	return e, nil
}

// EnterNext enters the next key of one direction, before a rekey installs it.
func (l *Ledger) EnterNext(s *blob.State) error { return l.enter(s) }

// enter enters all states or none.
func (l *Ledger) enter(states ...*blob.State) error {
	records := make([]record, len(states))
	for i, s := range states {
		if s == nil {
			return fmt.Errorf("%w: nothing to enter", blob.ErrState)
		}
		if err := s.Validate(); err != nil {
			return err
		}
		line := Line{Cookie: s.Cookie, Role: s.Role, Direction: s.Direction, Epoch: s.Epoch, Seq: s.Seq, Instance: l.instance, Entered: l.now()}
		records[i] = record{kindEnter, i < len(states)-1, line, s.KeyDigest()}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range records {
		r := l.replay(&records[i])
		for j := range records[:i] {
			// Within one act, too, a key is entered once.
			if r == nil && records[j].key == records[i].key {
				r = &Replay{SameKey, records[i].line, records[j].line}
			}
		}
		if r != nil {
			l.replays++
			return r
		}
	}
	return l.write(records)
}

// replay tells whether something speaks against the record.
func (l *Ledger) replay(r *record) *Replay {
	if e, ok := l.newest(r.slot()); ok && r.line.Epoch <= e.line.Epoch {
		reason := EarlierEpoch
		if r.line.Epoch == e.line.Epoch {
			if reason = SameEpoch; r.line.Seq < e.line.Seq {
				reason = LowerSeq
			}
		}
		return &Replay{reason, r.line, e.line}
	}
	for _, e := range l.entries[l.keys[r.key]] {
		if e.key == r.key {
			return &Replay{SameKey, r.line, e.line}
		}
	}
	return nil
}

func (l *Ledger) newest(s slot) (entry, bool) {
	entries := l.entries[s]
	if len(entries) == 0 {
		return entry{}, false
	}
	return entries[len(entries)-1], true
}

// Raise enters that a key has reached a sequence number: a lower one is refused from
// then on. It changes nothing else; the key must have been entered.
func (l *Ledger) Raise(cookie uint64, direction blob.Direction, epoch uint32, seq uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok := l.newest(slot{cookie, direction})
	if !ok || epoch > e.line.Epoch {
		return fmt.Errorf("%w: the %v key of socket %d, epoch %d", ErrUnknown, direction, cookie, epoch)
	}
	raised := record{kindRaise, false, e.line, e.key}
	raised.line.Epoch, raised.line.Seq = epoch, seq
	var reason Reason
	switch {
	case epoch < e.line.Epoch:
		reason = EarlierEpoch
	case seq < e.line.Seq:
		reason = LowerSeq
	default:
		return l.write([]record{raised})
	}
	l.replays++
	return &Replay{reason, raised.line, e.line}
}

func (r *record) slot() slot { return slot{r.line.Cookie, r.line.Direction} }

// write makes the records last, and only then counts them as entered.
func (l *Ledger) write(records []record) error {
	if l.broken != nil {
		return l.broken
	}
	if l.records+len(records) > maxRecords {
		l.startSweep()
		return fmt.Errorf("%w: %d records, about %d keys of living sockets", ErrFull, l.records, len(l.keys))
	}
	b, sum := make([]byte, 0, len(records)*recordSize), l.sum
	for i := range records {
		b, sum = records[i].append(b, sum)
	}
	if err := l.store.write(b, l.size); err != nil {
		err = fmt.Errorf("%w: %w", ErrUnwritten, err)
		// What is behind the end may be longer than the next write, and would stay.
		if cut := l.store.truncate(l.size); cut != nil {
			l.broken = fmt.Errorf("%w; then its end could not be repaired: %w; restart the daemon", err, cut)
		}
		return err
	}
	l.size, l.sum, l.records = l.size+int64(len(b)), sum, l.records+len(records)
	for i := range records {
		l.apply(&records[i])
	}
	if l.records >= l.sweepAt {
		l.startSweep()
	}
	return nil
}

// apply makes a written record count. As the file vouches for the order, the last
// record holds.
func (l *Ledger) apply(r *record) {
	s, e := r.slot(), entry{r.line, r.key, l.serial}
	l.serial++
	entries := l.entries[s]
	switch n := len(entries); {
	case r.kind == kindRaise && n > 0:
		entries[n-1].line.Seq = r.line.Seq
		return
	case n == remembered:
		l.forgetKey(s, entries[0].key)
		entries = slices.Delete(entries, 0, 1)
	}
	l.entries[s] = append(entries, e)
	l.keys[e.key] = s
}

func (l *Ledger) drop(s slot) {
	for _, e := range l.entries[s] {
		l.forgetKey(s, e.key)
	}
	delete(l.entries, s)
}

func (l *Ledger) forgetKey(s slot, key blob.KeyDigest) {
	if l.keys[key] == s {
		delete(l.keys, key)
	}
}

// Forget ends the entries of a socket that is gone. It is not written: the next
// start asks the kernel which sockets live.
func (l *Ledger) Forget(cookie uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(slot{cookie, blob.Read})
	l.drop(slot{cookie, blob.Write})
}

// Repack moves all entries together in memory, when nothing else is to be done: they came
// one after another, between what is garbage now. It changes nothing else.
func (l *Ledger) Repack() {
	l.mu.Lock()
	defer l.mu.Unlock()
	count := 0
	for _, entries := range l.entries {
		count += len(entries)
	}
	all := make([]entry, 0, count)
	for s, entries := range l.entries {
		at := len(all)
		all = append(all, entries...)
		l.entries[s] = all[at:len(all):len(all)]
	}
}

// Stats are numbers for logs.
type Stats struct {
	Entries int    // keys of sockets not known to be gone
	Replays uint64 // refused since Open
}

// Stats returns the present numbers.
func (l *Ledger) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Stats{len(l.keys), l.replays}
}

// Close waits for what is under way and gives the ledger to the next daemon.
func (l *Ledger) Close() error {
	l.mu.Lock()
	l.broken = errors.New("the ledger is closed")
	l.mu.Unlock()
	l.sweeps.Wait()
	return l.store.close()
}

// startSweep sweeps in the background: nobody's handshake waits for the kernel's
// list of all sockets.
func (l *Ledger) startSweep() {
	if l.sweeping || l.broken != nil {
		return
	}
	l.sweeping = true
	l.sweeps.Go(func() {
		err := l.sweep()
		l.mu.Lock()
		defer l.mu.Unlock()
		l.sweeping = false
		if err != nil {
			l.log.Error("ledger: its dead entries stay", "error", err, "records", l.records, "most", maxRecords)
			l.sweepAt = min(l.records+slack, maxRecords)
		}
	})
}

// sweep drops the entries of sockets that are gone, and rewrites the file.
func (l *Ledger) sweep() error {
	l.mu.Lock()
	before := l.serial
	l.mu.Unlock()
	live, err := l.alive()
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.retain(live, before)
	return l.compact()
}

// retain drops what was entered before the question and is not in the answer. The
// socket of a later entry may have come when the answer was on its way.
func (l *Ledger) retain(live map[uint64]struct{}, before uint64) {
	for s := range l.entries {
		e, _ := l.newest(s)
		if _, ok := live[s.cookie]; !ok && e.serial < before {
			l.drop(s)
		}
	}
}

// compact rewrites the file with nothing but the entries that count.
func (l *Ledger) compact() error {
	order := make([]entry, 0, len(l.entries))
	for _, entries := range l.entries {
		order = append(order, entries...)
	}
	slices.SortFunc(order, func(a, b entry) int { return cmp.Compare(a.serial, b.serial) })
	records := make([]record, len(order))
	for i, e := range order {
		records[i] = record{kindEnter, false, e.line, e.key}
	}
	b, sum := encode(l.header, records)
	if err := l.store.replace(b); err != nil {
		return err
	}
	l.size, l.sum, l.records = int64(len(b)), sum, len(records)
	l.sweepAt = min(2*l.records+slack, maxRecords)
	return nil
}
