// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
)

// testKey is one state; fill makes its key.
func testKey(cookie uint64, d blob.Direction, epoch uint32, seq uint64, fill byte) *blob.State {
	secret := func(n int) blob.Secret { return blob.NewSecret(bytes.Repeat([]byte{fill}, n)) }
	return &blob.State{Role: blob.Server, Direction: d, Version: blob.TLS13, Suite: blob.TLS_AES_128_GCM_SHA256,
		Epoch: epoch, Seq: seq, Cookie: cookie, Key: secret(16), IV: secret(12), NextSecret: secret(32)}
}

func testPair(cookie uint64, fill byte) *Pending {
	return NewPending(testKey(cookie, blob.Read, 0, 5, fill), testKey(cookie, blob.Write, 0, 5, fill+1))
}

// newTestLedger is a ledger on a file in memory; the sockets in live are there.
func newTestLedger(t *testing.T, f *modelFile, live ...uint64) *Ledger {
	t.Helper()
	f.cut = -1
	l := &Ledger{store: f, header: header{boot: [16]byte{1}, namespace: 2}, instance: blob.Instance{0xab}, now: time.Now,
		log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		alive: func() (map[uint64]struct{}, error) {
			cookies := map[uint64]struct{}{}
			for _, c := range live {
				cookies[c] = struct{}{}
			}
			return cookies, nil
		}}
	if err := l.open(); err != nil {
		t.Fatal(err)
	}
	return l
}

// TestAReplayIsNamed: each way, at once and after a restart, with what was found.
func TestAReplayIsNamed(t *testing.T) {
	for _, c := range []struct {
		name   string
		again  []*blob.State
		reason Reason
		found  string
	}{
		{"the same pair", []*blob.State{testKey(11, blob.Read, 1, 5, 3), testKey(11, blob.Write, 0, 5, 2)}, SameEpoch, "socket 11, server read key, epoch 1"},
		{"another key for the same epoch", []*blob.State{testKey(11, blob.Write, 0, 5, 9)}, SameEpoch, "socket 11, server write key, epoch 0"},
		{"an earlier epoch", []*blob.State{testKey(11, blob.Read, 0, 9, 9)}, EarlierEpoch, "socket 11, server read key, epoch 1"},
		{"a lower sequence number", []*blob.State{testKey(11, blob.Write, 0, 4, 2)}, LowerSeq, "socket 11, server write key, epoch 0, sequence number 5"},
		{"the same key as a later epoch", []*blob.State{testKey(11, blob.Write, 1, 0, 2)}, SameKey, "socket 11, server write key, epoch 0"},
		{"the same key on another socket", []*blob.State{testKey(12, blob.Write, 0, 5, 2)}, SameKey, "socket 11, server write key, epoch 0"},
		{"the same key in the other direction", []*blob.State{testKey(12, blob.Read, 0, 5, 2)}, SameKey, "socket 11, server write key, epoch 0"},
		{"the key of the epoch before on another socket", []*blob.State{testKey(12, blob.Read, 0, 5, 1)}, SameKey, "socket 11, server read key, epoch 0"},
		{"one key for both directions", []*blob.State{testKey(12, blob.Read, 0, 5, 9), testKey(12, blob.Write, 0, 5, 9)}, SameKey, "socket 12, server read key, epoch 0"},
		{"a good key beside a replay", []*blob.State{testKey(12, blob.Read, 0, 5, 9), testKey(12, blob.Write, 0, 5, 2)}, SameKey, "socket 11, server write key, epoch 0"},
	} {
		for _, restarted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, restarted %v", c.name, restarted), func(t *testing.T) {
				f := &modelFile{}
				l := newTestLedger(t, f, 11)
				if _, err := l.Enter(testPair(11, 1)); err != nil {
					t.Fatal(err)
				}
				if err := l.EnterNext(testKey(11, blob.Read, 1, 0, 3)); err != nil {
					t.Fatal(err)
				}
				if restarted {
					l = newTestLedger(t, f, 11)
				}
				before := bytes.Clone(f.bytes)
				err := l.enter(c.again...)
				var r *Replay
				if !errors.Is(err, ErrReplay) || !errors.As(err, &r) || r.Reason != c.reason {
					t.Fatalf("got %v, want a replay: %s", err, c.reason)
				}
				text := err.Error()
				if !strings.Contains(text, "entered for "+c.found) || !strings.Contains(text, "by instance ab00") || !strings.Contains(text, time.Now().UTC().Format("at 2006-01-02T")) {
					t.Errorf("%q does not name %q, instance and time", text, c.found)
				}
				if !bytes.Equal(f.bytes, before) {
					t.Error("a refusal has written")
				}
				if n := l.Stats().Replays; n != 1 {
					t.Errorf("%d replays counted", n)
				}
				if err := l.EnterNext(testKey(12, blob.Read, 0, 5, 9)); err != nil {
					t.Errorf("an innocent key: %v", err)
				}
			})
		}
	}
}

// TestWhatIsRefusedIsDestroyed and what is entered is given away once.
func TestWhatIsRefusedIsDestroyed(t *testing.T) {
	l := newTestLedger(t, &modelFile{})
	e, err := l.Enter(testPair(11, 1))
	if err != nil {
		t.Fatal(err)
	}
	if read, write := e.Take(); read.Validate() != nil || write.Validate() != nil || read.Direction != blob.Read {
		t.Errorf("entered as %v and %v", read, write)
	}
	if read, write := e.Take(); read != nil || write != nil {
		t.Error("given away twice")
	}
	read, write := testKey(11, blob.Read, 0, 5, 1), testKey(11, blob.Write, 0, 5, 2)
	if _, err := l.Enter(NewPending(read, write)); !errors.Is(err, ErrReplay) {
		t.Error(err)
	}
	if read.Validate() == nil || write.Validate() == nil {
		t.Error("the keys of a replay are still there")
	}
	if _, err := l.Enter(NewPending(testKey(12, blob.Read, 0, 5, 7), nil)); !errors.Is(err, blob.ErrState) {
		t.Errorf("half a pair: %v", err)
	}
	if _, err := l.Enter(NewPending(read, write)); !errors.Is(err, blob.ErrState) {
		t.Errorf("destroyed keys: %v", err)
	}
	if n := l.Stats().Entries; n != 2 {
		t.Errorf("%d entries", n)
	}
}

// TestOfManyAtOnceOneEnters: the same keys presented at the same moment, while sockets
// are forgotten and the file is rewritten.
func TestOfManyAtOnceOneEnters(t *testing.T) {
	path := testPath(t)
	l := mustOpen(t, path)
	const sockets = 1000
	live := make(map[uint64]struct{})
	for cookie := range uint64(sockets) {
		live[cookie+1] = struct{}{}
	}
	l.alive = func() (map[uint64]struct{}, error) { return live, nil }
	var all sync.WaitGroup
	var entered atomic.Int64
	done := make(chan struct{})
	swept := make(chan struct{})
	go func() {
		defer close(swept)
		for {
			if err := l.sweep(); err != nil {
				t.Error(err)
			}
			l.Forget(sockets + 1)
			select {
			case <-done:
				return
			default:
			}
		}
	}()
	for range 4 {
		all.Go(func() {
			for cookie := range uint64(sockets) {
				pair := testPair(cookie+1, 1)
				pair.read.IV.Bytes()[0], pair.read.IV.Bytes()[1] = byte(cookie), byte(cookie>>8)
				pair.write.IV.Bytes()[0], pair.write.IV.Bytes()[1] = byte(cookie), byte(cookie>>8)
				if _, err := l.Enter(pair); err == nil {
					entered.Add(1)
				} else if !errors.Is(err, ErrReplay) {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	close(done)
	<-swept
	if n := entered.Load(); n != sockets {
		t.Errorf("%d of %d entered", n, sockets)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := decode(b); err != nil || len(c.records) != 2*sockets {
		t.Errorf("%d records in the file, %v", len(c.records), err)
	}
}

// TestRaiseLiftsTheFloorAndNothingElse.
func TestRaiseLiftsTheFloorAndNothingElse(t *testing.T) {
	f := &modelFile{}
	l := newTestLedger(t, f, 11)
	if _, err := l.Enter(testPair(11, 1)); err != nil {
		t.Fatal(err)
	}
	for _, restarted := range []bool{false, true} {
		if restarted {
			l = newTestLedger(t, f, 11)
		} else if err := l.Raise(11, blob.Write, 0, 100); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			name   string
			err    error
			reason Reason
			is     error
		}{
			{"below the new floor", l.Raise(11, blob.Write, 0, 99), LowerSeq, ErrReplay},
			{"imported below it", l.EnterNext(testKey(11, blob.Write, 0, 99, 2)), LowerSeq, ErrReplay},
			{"imported at it", l.EnterNext(testKey(11, blob.Write, 0, 100, 2)), SameEpoch, ErrReplay},
			{"the other direction", l.Raise(11, blob.Read, 0, 4), LowerSeq, ErrReplay},
			{"a later epoch", l.Raise(11, blob.Read, 1, 9), "", ErrUnknown},
			{"another socket", l.Raise(12, blob.Read, 0, 9), "", ErrUnknown},
		} {
			var r *Replay
			if !errors.Is(c.err, c.is) || errors.As(c.err, &r) && r.Reason != c.reason {
				t.Errorf("%s, restarted %v: %v", c.name, restarted, c.err)
			}
		}
		if n := l.Stats().Entries; n != 2 {
			t.Errorf("%d entries", n)
		}
	}
	if err := l.EnterNext(testKey(11, blob.Write, 1, 0, 3)); err != nil {
		t.Fatalf("the next epoch begins at 0: %v", err)
	}
	var r *Replay
	if err := l.Raise(11, blob.Write, 0, 500); !errors.As(err, &r) || r.Reason != EarlierEpoch {
		t.Errorf("the epoch before: %v", err)
	}
}

// failingFile is a file whose system calls fail.
type failingFile struct {
	modelFile
	writing, cutting error
}

func (f *failingFile) write(b []byte, at int64) error {
	if f.writing != nil {
		f.modelFile.write(b[:len(b)/2], at) // as a full file system does
		return f.writing
	}
	return f.modelFile.write(b, at)
}

func (f *failingFile) truncate(size int64) error {
	if f.cutting != nil {
		return f.cutting
	}
	return f.modelFile.truncate(size)
}

// TestWhatCannotBeWrittenIsNotEntered: nothing is installed then, and once there is
// room again all goes on. If the end of the file is in doubt, nothing does.
func TestWhatCannotBeWrittenIsNotEntered(t *testing.T) {
	f := &failingFile{modelFile: modelFile{cut: -1}}
	l := newTestLedger(t, &f.modelFile, 11)
	l.store = f
	f.writing = errors.New("no space")
	if _, err := l.Enter(testPair(11, 1)); !errors.Is(err, ErrUnwritten) || l.Stats().Entries != 0 {
		t.Fatalf("%v, %d entries", err, l.Stats().Entries)
	}
	f.writing = nil
	if _, err := l.Enter(testPair(11, 1)); err != nil {
		t.Fatal(err)
	}
	if n := newTestLedger(t, &modelFile{bytes: bytes.Clone(f.bytes)}, 11).Stats().Entries; n != 2 {
		t.Errorf("%d entries in the file", n)
	}
	f.writing, f.cutting = errors.New("no space"), errors.New("no file")
	l.Enter(testPair(12, 3))
	f.writing, f.cutting = nil, nil
	if _, err := l.Enter(testPair(12, 3)); !errors.Is(err, ErrUnwritten) || !strings.Contains(err.Error(), "restart") {
		t.Errorf("after an end that could not be repaired: %v", err)
	}
}

// TestMemoryAndFileStayBounded: without anybody calling Forget, sockets that are gone
// leave; those that live, or came while the kernel was asked, stay.
func TestMemoryAndFileStayBounded(t *testing.T) {
	const living = 1 << 40
	l := mustOpen(t, testPath(t))
	l.alive = func() (map[uint64]struct{}, error) { return map[uint64]struct{}{living: {}}, nil }
	key := func(cookie uint64) *blob.State {
		s := testKey(cookie, blob.Write, 0, 0, 1)
		for i := range 8 {
			s.Key.Bytes()[i] = byte(cookie >> (8 * i))
		}
		return s
	}
	if err := l.EnterNext(key(living)); err != nil {
		t.Fatal(err)
	}
	most := 0
	for cookie := range uint64(3 * slack) {
		if err := l.EnterNext(key(cookie + 1)); err != nil {
			t.Fatal(err)
		}
		l.sweeps.Wait()
		most = max(most, l.Stats().Entries, l.records)
	}
	if most > slack+1 {
		t.Errorf("there were %d entries", most)
	}
	if err := l.EnterNext(key(living)); !errors.Is(err, ErrReplay) {
		t.Errorf("the socket that lives: %v", err)
	}
	if err := l.sweep(); err != nil { // so that none begins by itself in what follows
		t.Fatal(err)
	}
	inner := l.alive
	l.alive = func() (map[uint64]struct{}, error) {
		live, err := inner()
		if err := l.EnterNext(key(living + 1)); err != nil {
			t.Error(err)
		}
		return live, err
	}
	if err := l.sweep(); err != nil {
		t.Fatal(err)
	}
	if err := l.EnterNext(key(living + 1)); !errors.Is(err, ErrReplay) {
		t.Errorf("the socket that came while the kernel was asked: %v", err)
	}
	for epoch := range uint32(100) {
		s := key(living)
		s.Epoch, s.Key.Bytes()[15] = epoch+1, byte(epoch)+2
		if err := l.EnterNext(s); err != nil {
			t.Fatal(err)
		}
	}
	if n := l.Stats().Entries; n != remembered+1 {
		t.Errorf("%d entries after 100 rekeys", n)
	}
	l.Forget(living)
	l.Forget(living + 1)
	if n := l.Stats().Entries; n != 0 {
		t.Errorf("%d entries after all sockets are forgotten", n)
	}
}

// TestAFullLedgerRefuses: if the kernel does not say which sockets live, there is an
// end to what is kept, and then to what is taken.
func TestAFullLedgerRefuses(t *testing.T) {
	l := newTestLedger(t, &modelFile{})
	l.alive = func() (map[uint64]struct{}, error) { return nil, errors.New("no inet_diag") }
	l.records = maxRecords - 1
	if _, err := l.Enter(testPair(11, 1)); !errors.Is(err, ErrFull) || l.Stats().Entries != 0 {
		t.Errorf("%v", err)
	}
	l.sweeps.Wait()
	l.alive = func() (map[uint64]struct{}, error) { return nil, nil }
	if _, err := l.Enter(testPair(11, 1)); !errors.Is(err, ErrFull) {
		t.Errorf("%v", err)
	}
	l.sweeps.Wait()
	if _, err := l.Enter(testPair(11, 1)); err != nil {
		t.Errorf("after a sweep: %v", err)
	}
}

// TestTheFileHoldsNoKey: nothing that was entered is in it but by its digest.
func TestTheFileHoldsNoKey(t *testing.T) {
	f := &modelFile{}
	l := newTestLedger(t, f)
	s := testKey(1, blob.Read, 0, 0, 0xa7)
	if err := l.EnterNext(s); err != nil {
		t.Fatal(err)
	}
	if secret := s.Key.Bytes()[:4]; bytes.Contains(f.bytes, secret) {
		t.Error("the file holds key bytes")
	}
}
