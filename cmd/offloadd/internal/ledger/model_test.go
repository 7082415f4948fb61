// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/offloadd/offloadd/blob"
)

// The model: two connections, each with a socket and a pair of keys, and a daemon that
// may die between any two steps and in the middle of each write. An honest worker
// exports each pair once. An attacker, who holds both, presents them again in fresh
// blobs: for the same socket, for the other one, or as a later epoch. The ledger is the
// real one. The kernel is the worst there could be: it takes any key at any time.
//
// To die is one step with the restart. While the daemon is down sockets may close, and
// for the ledger that is as if they had closed just before.
//
// All interleavings are explored, each state once.

const modelSockets = 2

// The lengths at which a write of one connection (two records) is cut by death. All
// others are tried in TestATornActIsDropped.
var modelCuts = []int{0, recordSize, 2 * recordSize}

// modelFaults are the ways to build it wrongly that the model must find.
type modelFaults struct {
	unwritten    bool // entries do not reach the file
	installFirst bool // entered after the install
	forgetEarly  bool // a socket is forgotten while it lives
	lateAnswer   bool // the kernel's list is taken for newer than it is
}

// modelBounds keep it finite.
type modelBounds struct{ replays, crashes, sweeps int }

// modelFile is a file in memory whose writer dies when told to.
type modelFile struct {
	bytes     []byte
	unwritten bool
	cut       int // the next write, -1 for whole, or how much of it is done
	noReplace bool
}

var errModelCrash = errors.New("the daemon dies")

func (f *modelFile) load() ([]byte, error) { return bytes.Clone(f.bytes), nil }
func (f *modelFile) write(b []byte, at int64) error {
	if f.unwritten {
		return nil
	}
	done := b
	if f.cut >= 0 {
		done = b[:min(f.cut, len(b))]
	}
	f.bytes = append(bytes.Clone(f.bytes[:at]), done...)
	if f.cut >= 0 {
		return errModelCrash
	}
	return nil
}
func (f *modelFile) truncate(size int64) error {
	if f.cut >= 0 {
		return errModelCrash // nobody is left to do it
	}
	f.bytes = bytes.Clone(f.bytes[:size])
	return nil
}
func (f *modelFile) replace(b []byte) error {
	if f.noReplace {
		return errModelCrash
	}
	f.bytes = bytes.Clone(b)
	return nil
}
func (f *modelFile) close() error { return nil }

// job is an import under way in the daemon.
type job struct {
	key, socket int
	epoch       uint32
	honest      bool
	phase       byte // 'o' opened, 'e' entered, 'i' installed before it was entered
}

// modelState is everything; a copy of it is independent.
type modelState struct {
	file   modelFile
	ledger *Ledger
	start  int // how often it was started

	accepted  [modelSockets]bool
	alive     [modelSockets]bool
	exported  [modelSockets]int // at which start, 0 for not yet
	opened    [modelSockets]bool
	installed [modelSockets][modelSockets]bool // key, socket: ever
	tainted   [modelSockets]bool               // by an entry of the attacker's, perhaps a torn one, for this key or socket
	jobs      []job

	answer          map[uint64]struct{} // the kernel's list of sockets, on its way
	before          uint64
	replays, sweeps int
}

func (m *modelState) clone() *modelState {
	c := *m
	c.jobs = slices.Clone(m.jobs)
	c.answer = maps.Clone(m.answer)
	l := m.ledger
	c.ledger = &Ledger{store: &c.file, header: l.header, instance: l.instance, now: l.now, log: l.log, alive: c.living,
		entries: make(map[slot][]entry, len(l.entries)), keys: maps.Clone(l.keys), serial: l.serial,
		size: l.size, sum: l.sum, records: l.records, sweepAt: l.sweepAt}
	for s, entries := range l.entries {
		c.ledger.entries[s] = slices.Clone(entries)
	}
	return &c
}

// key tells states apart. The serial numbers matter only against a question that is
// not answered yet.
func (m *modelState) key() [sha256.Size]byte {
	b := make([]byte, 0, 1024)
	flag := func(v bool) {
		if v {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
	}
	b = append(b, byte(m.start), byte(m.replays), byte(m.sweeps), byte(len(m.jobs)))
	for s := range modelSockets {
		b = append(b, byte(m.exported[s]))
		_, answered := m.answer[modelCookie(s)]
		for _, v := range []bool{m.accepted[s], m.alive[s], m.opened[s], m.tainted[s], answered} {
			flag(v)
		}
		for _, v := range m.installed[s] {
			flag(v)
		}
		for _, d := range []blob.Direction{blob.Read, blob.Write} {
			entries := m.ledger.entries[slot{modelCookie(s), d}]
			b = append(b, byte(len(entries)))
			for _, e := range entries {
				b = append(b, byte(e.line.Epoch))
				b = append(b, e.key[:]...)
				flag(m.answer != nil && e.serial < m.before)
			}
		}
	}
	flag(m.answer != nil)
	for _, j := range m.jobs {
		b = append(b, byte(j.key), byte(j.socket), byte(j.epoch), j.phase)
		flag(j.honest)
	}
	return sha256.Sum256(append(b, m.file.bytes...))
}

func modelCookie(s int) uint64 { return uint64(1001 + s) }

// living is the simulated kernel's answer.
func (m *modelState) living() (map[uint64]struct{}, error) {
	live := map[uint64]struct{}{}
	for s, alive := range m.alive {
		if alive {
			live[modelCookie(s)] = struct{}{}
		}
	}
	return live, nil
}

// boot starts a daemon on the file as it is.
func (m *modelState) boot() error {
	m.start++
	m.file.cut, m.file.noReplace = -1, false
	m.ledger = &Ledger{store: &m.file, header: header{boot: [16]byte{1}}, instance: blob.Instance{byte(m.start)},
		alive: m.living, now: func() time.Time { return time.UnixMilli(1) }, log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	if m.file.bytes == nil {
		m.file.bytes, _ = encode(m.ledger.header, nil)
	}
	return m.ledger.open()
}

// die ends the daemon with all that it has in memory, and starts the next.
func (m *modelState) die() error {
	m.jobs, m.answer = nil, nil
	return m.boot()
}

// states makes the pair of keys of a job.
func (j *job) states() (read, write *blob.State) {
	one := func(d blob.Direction) *blob.State {
		secret := func(n int, fill byte) blob.Secret { return blob.NewSecret(bytes.Repeat([]byte{fill}, n)) }
		return &blob.State{Role: blob.Server, Direction: d, Version: blob.TLS13, Suite: blob.TLS_AES_128_GCM_SHA256, Epoch: j.epoch,
			Seq: 1, Cookie: modelCookie(j.socket), Key: secret(16, byte(10*(j.key+1))+byte(d)), IV: secret(12, 1), NextSecret: secret(32, 1)}
	}
	return one(blob.Read), one(blob.Write)
}

// move is one step that may come next.
type move struct {
	name string
	do   func(m *modelState) error // an error is a violation
}

// moves returns all that can happen next.
func (m *modelState) moves(f modelFaults, bounds modelBounds) (next []move) {
	add := func(name string, do func(m *modelState) error) { next = append(next, move{name, do}) }
	for s := range modelSockets {
		if !m.accepted[s] {
			add(fmt.Sprint("accept ", s), func(m *modelState) error { m.accepted[s], m.alive[s] = true, true; return nil })
			continue
		}
		if m.alive[s] {
			add(fmt.Sprint("close ", s), func(m *modelState) error { m.alive[s] = false; return nil })
		}
		_, known := m.ledger.newest(slot{modelCookie(s), blob.Read})
		if known && (!m.alive[s] || f.forgetEarly) {
			add(fmt.Sprint("forget ", s), func(m *modelState) error { m.ledger.Forget(modelCookie(s)); return nil })
			add(fmt.Sprint("repack ", s), func(m *modelState) error { m.ledger.Repack(); return nil })
		}
	}
	if m.start <= bounds.crashes {
		add("die", (*modelState).die)
	}
	for k := range modelSockets {
		if m.alive[k] && m.exported[k] == 0 {
			add(fmt.Sprint("export ", k), func(m *modelState) error { m.exported[k] = m.start; return nil })
		}
		if m.exported[k] == m.start && !m.opened[k] {
			add(fmt.Sprint("open ", k), func(m *modelState) error {
				m.opened[k] = true
				m.begin(job{k, k, 0, true, 'o'})
				return nil
			})
		}
		// Whose own socket is gone is outside the ledger's promise: see the package's
		// documentation.
		if m.exported[k] == 0 || !m.alive[k] || m.replays == bounds.replays {
			continue
		}
		for s := range modelSockets {
			for epoch := range uint32(2) {
				if !m.alive[s] {
					continue
				}
				add(fmt.Sprintf("replay %d on %d as epoch %d", k, s, epoch), func(m *modelState) error {
					m.replays++
					m.begin(job{k, s, epoch, false, 'o'})
					return nil
				})
			}
		}
	}
	for i := range m.jobs {
		next = append(next, m.jobMoves(i, f, bounds)...)
	}
	if m.answer == nil && m.sweeps < bounds.sweeps {
		add("ask which sockets live", func(m *modelState) error {
			m.sweeps++
			m.before = m.ledger.serial
			m.answer, _ = m.living()
			return nil
		})
	}
	if m.answer != nil {
		compact := func(m *modelState, dies bool) error {
			before := m.before
			if f.lateAnswer {
				before = m.ledger.serial
			}
			m.ledger.retain(m.answer, before)
			m.answer, m.before, m.file.noReplace = nil, 0, dies
			err := m.ledger.compact()
			if dies {
				return m.die()
			}
			return err
		}
		add("compact", func(m *modelState) error { return compact(m, false) })
		if m.start <= bounds.crashes {
			add("die while compacting", func(m *modelState) error { return compact(m, true) })
		}
	}
	return next
}

// begin adds an import; their order means nothing.
func (m *modelState) begin(j job) {
	m.jobs = append(m.jobs, j)
	slices.SortFunc(m.jobs, func(a, b job) int {
		return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(a.socket, b.socket), cmp.Compare(a.epoch, b.epoch), cmp.Compare(a.phase, b.phase))
	})
}

// jobMoves are the steps of one import.
func (m *modelState) jobMoves(i int, f modelFaults, bounds modelBounds) (next []move) {
	name := fmt.Sprintf(" %+v", m.jobs[i])
	done := func(m *modelState) { m.jobs = slices.Delete(m.jobs, i, i+1) }
	switch phase := m.jobs[i].phase; {
	case phase == 'o' && f.installFirst:
		next = append(next, move{"install" + name, func(m *modelState) error {
			m.jobs[i].phase = 'i'
			return m.install(m.jobs[i])
		}})
	case phase == 'o' || phase == 'i':
		next = append(next, move{"enter" + name, func(m *modelState) error {
			if err := m.enter(i); err != nil || m.jobs[i].phase == 'x' || phase == 'i' {
				done(m)
				return err
			}
			return nil
		}})
		for _, cut := range modelCuts {
			if m.start > bounds.crashes {
				break
			}
			next = append(next, move{fmt.Sprintf("die in byte %d of enter%s", cut, name), func(m *modelState) error {
				m.file.cut = cut
				return errors.Join(m.enter(i), m.die())
			}})
		}
	case phase == 'e':
		next = append(next, move{"install" + name, func(m *modelState) error {
			err := m.install(m.jobs[i])
			done(m)
			return err
		}})
	}
	return next
}

// enter takes a job to phase 'e', or to 'x' if it was refused.
func (m *modelState) enter(i int) error {
	j := &m.jobs[i]
	entered, err := m.ledger.Enter(NewPending(j.states()))
	if dies := errors.Is(err, errModelCrash); (err == nil || dies) && !j.honest {
		m.tainted[j.key], m.tainted[j.socket] = true, true
	}
	switch {
	case err == nil:
		if read, write := entered.Take(); read.Validate() != nil || write.Validate() != nil {
			return errors.New("entered, and the keys are lost")
		}
		j.phase = 'e'
		return nil
	case errors.Is(err, errModelCrash):
		return nil
	case !errors.Is(err, ErrReplay):
		return fmt.Errorf("refused as no replay: %w", err)
	case j.honest && !m.tainted[j.key]:
		return fmt.Errorf("an honest import is refused: %w", err)
	}
	j.phase = 'x'
	return nil
}

// install is the kernel, and the judge.
func (m *modelState) install(j job) error {
	if !m.alive[j.socket] {
		return nil
	}
	for s := range modelSockets {
		if m.installed[j.key][s] && (m.alive[s] || s == j.socket) {
			return fmt.Errorf("key %d was installed in socket %d, and is again in socket %d", j.key, s, j.socket)
		}
	}
	m.installed[j.key][j.socket] = true
	return nil
}
