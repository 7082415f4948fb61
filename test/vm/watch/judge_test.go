// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
)

// hello is a record as handshakes have it.
func hello(n int) []byte { return append([]byte{22, 3, 1, byte(n >> 8), byte(n)}, make([]byte, n)...) }

var (
	text  = []byte("some text")
	large = bytes.Repeat([]byte{'l'}, 16384)
)

// sealed makes n records from a number on.
func (w *writer) sealed(seq uint64, n int, content []byte) (records [][]byte) {
	for i := range n {
		records = append(records, w.seal(seq+uint64(i), content))
	}
	return records
}

// many is so many large records that most are not opened.
const many = fullyOpened/16384 + 40

var scripts = []struct {
	name string
	run  func(s *script, w *writer)
	want Kind // empty: no violation
}{
	{"a handshake and records", func(s *script, w *writer) {
		s.attach()
		s.send(hello(100), hello(3000))
		s.install(w, 0)
		s.send(w.sealed(0, 5, text)...)
	}, ""},
	{"a number in the middle, without a handshake", func(s *script, w *writer) {
		s.attach()
		s.install(w, 1<<40)
		s.send(w.sealed(1<<40, 5, text)...)
	}, ""},
	{"two tickets of user space first", func(s *script, w *writer) {
		s.attach()
		s.send(hello(100), w.seal(0, text), w.seal(1, text))
		s.install(w, 2)
		s.send(w.sealed(2, 5, text)...)
	}, ""},
	{"user space wrote more than was counted", func(s *script, w *writer) {
		s.attach()
		s.send(hello(100), w.seal(0, text), w.seal(1, text))
		s.install(w, 1)
		s.send(w.seal(1, text))
	}, Repeat},
	{"user space wrote less than was counted", func(s *script, w *writer) {
		s.attach()
		s.send(hello(100), w.seal(0, text))
		s.install(w, 2)
		s.send(w.seal(2, text))
	}, Gap},
	{"user space left out a number", func(s *script, w *writer) {
		s.attach()
		s.send(hello(100), w.seal(0, text), w.seal(2, text))
		s.install(w, 3)
		s.send(w.seal(3, text))
	}, Gap},
	{"user space used a number twice", func(s *script, w *writer) {
		s.attach()
		s.send(hello(100), w.seal(0, text), w.seal(1, text), w.seal(1, text))
		s.install(w, 3)
		s.send(w.seal(3, text))
	}, Repeat},
	{"clear text after the ULP", func(s *script, w *writer) {
		s.attach()
		s.send(hello(100), []byte("x"))
		s.install(w, 0)
		s.send(w.seal(0, text))
	}, Clear},
	{"clear text after the ULP and no key", func(s *script, _ *writer) {
		s.attach()
		s.send(hello(100), []byte("x"))
	}, Clear},
	{"much clear text after the ULP and no key", func(s *script, _ *writer) {
		s.attach()
		s.send(bytes.Repeat(text, maxPlain))
	}, Clear},
	{"clear text before the ULP", func(s *script, w *writer) {
		s.send([]byte("220 ready\r\n"))
		s.attach()
		s.send(hello(100))
		s.install(w, 0)
		s.send(w.seal(0, text))
	}, ""},
	{"much before the ULP", func(s *script, w *writer) {
		s.send(bytes.Repeat(text, maxPlain))
		s.attach()
		s.install(w, 0)
		s.send(w.seal(0, text))
	}, ""},
	{"a long handshake", func(s *script, w *writer) {
		s.attach()
		for range 100 {
			s.send(hello(5000))
			if len(s.judge.data) > maxPlain {
				s.t.Errorf("%d bytes are kept", len(s.judge.data))
			}
		}
		s.install(w, 5) // what user space wrote is forgotten
		s.send(w.seal(5, text))
	}, ""},
	{"a key within a record", func(s *script, w *writer) {
		s.attach()
		s.send(hello(100)[:50])
		s.install(w, 0)
		s.send(w.seal(0, text))
	}, Clear},
	{"clear text under a key", func(s *script, w *writer) {
		s.attach()
		s.install(w, 0)
		s.send(w.seal(0, text), []byte("GET / HTTP/1.1\r\n"))
	}, Clear},
	{"one byte of clear text at the end", func(s *script, w *writer) {
		s.attach()
		s.install(w, 0)
		s.send(w.seal(0, text), []byte("x"))
	}, Clear},
	{"clear text in the shape of a record", func(s *script, w *writer) {
		s.attach()
		s.install(w, 0)
		s.send(w.seal(0, text), append([]byte{23, 3, 3, 0, 100}, make([]byte, 100)...))
	}, Forged},
	{"a flipped bit", func(s *script, w *writer) {
		s.attach()
		s.install(w, 0)
		r := w.seal(0, text)
		r[len(r)-1] ^= 1
		s.send(r)
	}, Forged},
	{"a number left out", func(s *script, w *writer) {
		s.attach()
		s.install(w, 3)
		s.send(w.seal(3, text), w.seal(5, text))
	}, Gap},
	{"the first number left out", func(s *script, w *writer) {
		s.attach()
		s.install(w, 3)
		s.send(w.seal(4, text))
	}, Gap},
	{"a number twice", func(s *script, w *writer) {
		s.attach()
		s.install(w, 3)
		s.send(w.sealed(3, 5, text)...)
		s.send(w.seal(6, text))
	}, Repeat},
	{"cut off within a record", func(s *script, w *writer) {
		s.attach()
		s.install(w, 0)
		s.send(w.seal(0, text), w.seal(1, text)[:20])
	}, ""},
	{"many large records", func(s *script, w *writer) {
		s.attach()
		s.install(w, 0)
		s.send(w.sealed(0, many, large)...)
	}, ""},
	{"the last large record forged", func(s *script, w *writer) {
		s.attach()
		s.install(w, 0)
		s.send(w.sealed(0, many, large)...)
		r := w.seal(many, large)
		r[100] ^= 1
		s.send(r)
	}, Forged},
	{"a number left out between large records", func(s *script, w *writer) {
		s.attach()
		s.install(w, 0)
		s.send(w.sealed(0, many, large)...)
		s.send(w.sealed(many+1, 1, large)...)
	}, Gap},
	{"a rekey", func(s *script, w *writer) {
		s.attach()
		s.install(w, 7)
		s.send(w.sealed(7, 3, text)...)
		next := newWriter(s.t, w.suite)
		s.install(next, 0)
		s.send(next.sealed(0, 3, text)...)
	}, ""},
	{"a rekey behind records that TCP did not have yet", func(s *script, w *writer) {
		s.attach()
		s.install(w, 0)
		next := newWriter(s.t, w.suite)
		s.install(next, 0)
		s.send(w.sealed(0, 3, text)...)
		s.send(next.sealed(0, 3, text)...)
	}, ""},
	{"a rekey behind a large record", func(s *script, w *writer) {
		s.attach()
		s.install(w, 0)
		s.send(w.sealed(0, many, large)...)
		next := newWriter(s.t, w.suite)
		s.install(next, 0)
		s.send(next.sealed(0, 3, text)...)
	}, ""},
	{"a rekey among large records", func(s *script, w *writer) {
		s.attach()
		s.install(w, 0)
		s.send(w.sealed(0, many, large)...)
		next := newWriter(s.t, w.suite)
		s.install(next, 0)
		s.send(w.sealed(many, 3, large)...)
		s.send(next.sealed(0, many, large)...)
	}, ""},
	{"the next key before its place", func(s *script, w *writer) {
		s.attach()
		s.install(w, 0)
		s.send(w.seal(0, text))
		next := newWriter(s.t, w.suite)
		s.judge.install(next.install(s.t, 0), s.at+1)
		s.send(next.seal(0, text))
	}, Forged},
	{"the old key after a rekey", func(s *script, w *writer) {
		s.attach()
		s.install(w, 0)
		s.send(w.seal(0, text))
		next := newWriter(s.t, w.suite)
		s.install(next, 0)
		s.send(next.seal(0, text), w.seal(1, text))
	}, Forged},
	{"the new key before its rekey", func(s *script, w *writer) {
		s.attach()
		s.install(w, 0)
		next := newWriter(s.t, w.suite)
		s.send(next.seal(0, text))
	}, Forged},
	{"KeyUpdates", func(s *script, w *writer) {
		s.attach()
		s.install(w, 0)
		s.send(w.seal(0, text))
		for range 20 {
			s.send(w.typed(22, 1, update))
			w = newWriter(s.t, w.suite)
			s.install(w, 0)
			s.send(w.seal(0, text))
		}
		s.send(w.typed(23, 1, update), w.typed(22, 2, append(slices.Clone(update), 'x')), w.seal(3, text))
	}, ""},
	{"KeyUpdates that TCP did not have yet", func(s *script, w *writer) {
		s.attach()
		writers := []*writer{w, newWriter(s.t, w.suite), newWriter(s.t, w.suite)}
		for _, w := range writers {
			s.install(w, 0)
		}
		for _, w := range writers {
			s.send(w.typed(22, 0, update))
		}
	}, ""},
	{"the first key again, behind another", func(s *script, w *writer) {
		s.attach()
		s.install(w, 0)
		s.send(w.typed(22, 0, update))
		s.install(newWriter(s.t, w.suite), 0)
		s.install(w, 0)
	}, SecondInstall},
	{"a rekey with the same key", func(s *script, w *writer) {
		s.attach()
		s.install(w, 0)
		s.send(w.seal(0, text))
		s.install(w, 0)
	}, SecondInstall},
}

func TestAJudgeFindsWhatIsWrongAndNothingElse(t *testing.T) {
	for _, suite := range suites {
		for _, c := range scripts {
			for _, piece := range []int{1 << 20, 1447} {
				t.Run(fmt.Sprintf("%v/%s/pieces of %d", suite, c.name, piece), func(t *testing.T) {
					s := newScript(t, piece)
					w := newWriter(t, suite)
					w.nonce = 1 << 33 // as by a library that does not take the sequence number
					c.run(s, w)
					s.judge.end()
					var got []Kind
					for _, v := range s.ledger.violations {
						got = append(got, v.Kind)
					}
					want := []Kind{c.want}
					if c.want == "" {
						want = nil
					}
					if !slices.Equal(got, want) || s.judge.reason != "" {
						t.Errorf("found %v, want %q; %s", s.ledger.violations, c.want, s.judge.reason)
					}
				})
			}
		}
	}
}

// update is a KeyUpdate.
var update = []byte{24, 0, 0, 1, 0}

// typed seals a record of another type.
func (w *writer) typed(kind byte, seq uint64, content []byte) []byte {
	other := *w
	if other.inner = kind; w.version == version12 {
		other.kind = kind
	}
	return other.seal(seq, content)
}

// TestNothingFollowsAKeyUpdateUnderItsKey, however large, and with or without the next
// one.
func TestNothingFollowsAKeyUpdateUnderItsKey(t *testing.T) {
	for _, suite := range suites {
		for _, content := range [][]byte{text, large} {
			for _, rekey := range []bool{false, true} {
				s, w := newScript(t, 1<<20), newWriter(t, suite)
				s.attach()
				s.install(w, 0)
				s.send(w.sealed(0, many, large)...)
				s.send(w.typed(22, many, slices.Concat(text, update)))
				if rekey {
					s.install(newWriter(t, suite), 0)
				}
				s.send(w.seal(many+1, content))
				s.judge.end()
				late := suite.version == version13 // 1.2 has no KeyUpdate
				if got := s.ledger.violations; late != (len(got) == 1 && got[0].Kind == Late) || !late && len(got) > 0 {
					t.Errorf("%v, %d bytes, %v: found %v", suite, len(content), rekey, got)
				}
			}
		}
	}
}

// TestWhatTheVersionsDecide: types of records, which TLS 1.3 hides, and where the
// numbers of a rekey begin.
func TestWhatTheVersionsDecide(t *testing.T) {
	for version, want := range map[uint16][2]Kind{version13: {Clear, Gap}, version12: {"", ""}} {
		for i, run := range []func(*script, *writer){
			func(s *script, w *writer) {
				s.install(w, 0)
				w.kind = 99
				s.send(w.seal(0, text))
			},
			func(s *script, w *writer) {
				s.install(w, 0)
				s.send(w.seal(0, text))
				s.install(newWriter(t, w.suite), 5)
			},
		} {
			s := newScript(t, 1<<20)
			s.attach()
			run(s, newWriter(t, suite{version, 51}))
			s.judge.end()
			if got := s.ledger.violations; len(got) > 1 || len(got) == 1 && got[0].Kind != want[i] || len(got) == 0 && want[i] != "" {
				t.Errorf("%#x, %d: found %v, want %q", version, i, got, want[i])
			}
		}
	}
}

func TestAnULPWhereNothingIsKeptAnyMore(t *testing.T) {
	s := newScript(t, 1<<20)
	s.send(bytes.Repeat(text, maxPlain))
	s.judge.attach(5)
	s.judge.end()
	if s.judge.reason == "" || len(s.ledger.violations) > 0 {
		t.Errorf("judged: %v", s.ledger.violations)
	}
}

// TestExplicitNonces: a nonce that was used before is found even in a record that is
// not opened, and in one whose number is right.
func TestExplicitNonces(t *testing.T) {
	for change, want := range map[int]Kind{-1: Repeat, 1: Gap} {
		s, w := newScript(t, 1<<20), newWriter(t, suite{version12, 51})
		s.attach()
		s.install(w, 0)
		s.send(w.sealed(0, fullyOpened/16384+1, large)...)
		w.nonce += uint64(change)
		s.send(w.sealed(fullyOpened/16384+1, 1, large)...)
		if len(s.ledger.violations) != 1 || s.ledger.violations[0].Kind != want {
			t.Errorf("by %d: %v", change, s.ledger.violations)
		}
	}
}

// TestWhatIsOpened: the bounds of the work, as the package promises them.
func TestWhatIsOpened(t *testing.T) {
	s, w := newScript(t, 1<<20), newWriter(t, suite{version13, 51})
	s.attach()
	s.install(w, 0)
	s.send(w.sealed(0, 1000, large)...)
	s.send(w.sealed(1000, 10, text)...)
	s.send(w.sealed(1010, 3, large)...)
	s.judge.end()
	first := fullyOpened/(16384+22) + 1
	want := first + (1000-first)/sampleEvery + 10 + 1 // and the last; the sampled ones are not aligned with the first
	if got := s.judge.opened; got < want || got > want+1 || s.judge.opened+s.judge.framed != 1013 {
		t.Errorf("%d records opened, %d framed; want about %d", got, s.judge.framed, want)
	}
}

func TestTwoSocketsWithOneKey(t *testing.T) {
	l := newLedger()
	w := newWriter(t, suites[0])
	for i, from := range []uint16{1000, 1001} {
		s := &script{t: t, judge: newJudge(ports{from, 2000}, l), ledger: l, piece: 1 << 20}
		s.attach()
		s.install(w, uint64(i))
		s.send(w.sealed(uint64(i), 3, text)...)
		s.judge.end()
	}
	if len(l.violations) != 2 || l.violations[0].Kind != SecondInstall || l.violations[1].Kind != Repeat {
		t.Errorf("found %v", l.violations)
	}
}

func TestReadKeys(t *testing.T) {
	w := newWriter(t, suites[0])
	ab, ba := ports{1, 2}, ports{2, 1}
	for name, c := range map[string]struct {
		run  func(l *ledger)
		want int
	}{
		"both ends":           {func(l *ledger) { l.install(w.install(t, 0), ab, true); l.install(w.install(t, 0), ab, false) }, 0},
		"twice":               {func(l *ledger) { l.install(w.install(t, 0), ab, false); l.install(w.install(t, 9), ab, false) }, 1},
		"of both directions":  {func(l *ledger) { l.install(w.install(t, 0), ab, true); l.install(w.install(t, 0), ba, false) }, 1},
		"of other connection": {func(l *ledger) { l.install(w.install(t, 0), ab, true); l.install(w.install(t, 0), ports{1, 3}, false) }, 1},
	} {
		l := newLedger()
		if c.run(l); len(l.violations) != c.want {
			t.Errorf("%s: found %v, want %d", name, l.violations, c.want)
		}
	}
}

func TestAnnouncements(t *testing.T) {
	l := newLedger()
	l.expect(Gap, 1000)
	l.expect(Gap, 2000)
	l.expect(Clear, 3000)
	l.violate(Gap, ports{1000, 2000}, "announced")
	l.violate(Gap, ports{1, 2000}, "announced")
	l.violate(Gap, ports{1000, 2000}, "too much")
	l.violate(Clear, ports{1, 2}, "elsewhere")
	l.violate(Forged, ports{3000, 2}, "of another kind")
	l.finish()
	var got []Kind
	for _, v := range l.violations {
		got = append(got, v.Kind)
	}
	if want := []Kind{Gap, Clear, Forged, Missing}; !slices.Equal(got, want) || l.pardoned != 2 {
		t.Errorf("%d pardoned, and found %v", l.pardoned, l.violations)
	}
}
