// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"fmt"
	"slices"
)

// A Kind is a way to break the rules.
type Kind string

// The kinds, as they are announced.
const (
	// SecondInstall: a key that was installed before, in the same direction.
	SecondInstall Kind = "second-install"
	// Clear: bytes that are no TLS record.
	Clear Kind = "clear"
	// Gap: sequence numbers were left out.
	Gap Kind = "gap"
	// Repeat: a sequence number was used before.
	Repeat Kind = "repeat"
	// Forged: a record that does not open under its key at any likely number.
	Forged Kind = "forged"
	// Late: a record under a key that a KeyUpdate had ended.
	Late Kind = "late"
	// Missing: an announced violation did not happen.
	Missing Kind = "missing"
)

// A Violation tells what was seen where, without any secret.
type Violation struct {
	Kind  Kind
	Text  string
	where ports
}

func (v Violation) String() string { return fmt.Sprintf("%s: %v: %s", v.Kind, v.where, v.Text) }

// ports are those of one direction: of the socket that writes, and of the other.
type ports struct{ from, to uint16 }

func (p ports) reversed() ports   { return ports{p.to, p.from} }
func (p ports) has(n uint16) bool { return p.from == n || p.to == n }
func (p ports) String() string    { return fmt.Sprintf("port %d to %d", p.from, p.to) }

// A ledger remembers who used which numbers of which key, and what went wrong.
type ledger struct {
	keys       map[digest]*entry
	installed  int
	violations []Violation
	expected   []expectation
	pardoned   int
}

type expectation struct {
	kind Kind
	port uint16
}

// entry is the life of one key.
type entry struct {
	writers, readers []ports
	used             []interval
}

// interval is what one writer used: from first up to but not including end.
type interval struct {
	first, end uint64
	who        string
}

func newLedger() *ledger { return &ledger{keys: map[digest]*entry{}} }

func (l *ledger) entry(d digest) *entry {
	if l.keys[d] == nil {
		l.keys[d] = &entry{}
	}
	return l.keys[d]
}

// violate notes a violation, unless it was announced.
func (l *ledger) violate(kind Kind, where ports, format string, args ...any) {
	for i, e := range l.expected {
		if e.kind == kind && where.has(e.port) {
			l.expected = slices.Delete(l.expected, i, i+1)
			l.pardoned++
			return
		}
	}
	l.violations = append(l.violations, Violation{kind, fmt.Sprintf(format, args...), where})
}

func (l *ledger) expect(kind Kind, port uint16) {
	l.expected = append(l.expected, expectation{kind, port})
}

// install notes that a socket got a key. With write, where is the direction in which
// it writes; else the one in which it reads.
func (l *ledger) install(k *key, where ports, write bool) {
	l.installed++
	e := l.entry(k.digest)
	list, others := &e.readers, e.writers
	name := "TLS_RX"
	if write {
		list, others, name = &e.writers, e.readers, "TLS_TX"
	}
	if len(*list) > 0 {
		highest := ""
		for _, u := range e.used {
			if write && u.end > k.seq {
				highest = fmt.Sprintf(", numbers up to %d were used", u.end-1)
			}
		}
		l.violate(SecondInstall, where, "%s at sequence number %d with the key of %v%s", name, k.seq, (*list)[0], highest)
	} else if len(others) > 0 && others[0] != where {
		l.violate(SecondInstall, where, "%s with the key of %v", name, others[0])
	}
	*list = append(*list, where)
}

// use notes that numbers of a key were used, and complains about those that had been
// used before.
func (l *ledger) use(d digest, where ports, first, end uint64) {
	if first >= end {
		return
	}
	e := l.entry(d)
	for _, u := range e.used {
		if low, high := max(u.first, first), min(u.end, end); low < high {
			l.violate(Repeat, where, "sequence numbers %d to %d had been used by %s", low, high-1, u.who)
			break
		}
	}
	e.used = append(e.used, interval{first, end, where.String()})
}

// finish reports announced violations that did not happen.
func (l *ledger) finish() {
	for _, e := range l.expected {
		l.violations = append(l.violations, Violation{Missing, fmt.Sprintf("%s was announced and did not happen", e.kind), ports{from: e.port}})
	}
	l.expected = nil
}
