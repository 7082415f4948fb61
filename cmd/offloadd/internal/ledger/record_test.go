// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
)

// TestATornActIsDropped: cut at every byte, both keys are there or none, and the next
// entry is written where it belongs.
func TestATornActIsDropped(t *testing.T) {
	f := &modelFile{}
	l := newTestLedger(t, f, 11, 12)
	if _, err := l.Enter(testPair(11, 1)); err != nil {
		t.Fatal(err)
	}
	whole := bytes.Clone(f.bytes)
	if _, err := l.Enter(testPair(12, 3)); err != nil {
		t.Fatal(err)
	}
	full := bytes.Clone(f.bytes)
	for n := len(whole); n <= len(full); n++ {
		want := 2
		if n == len(full) {
			want = 4
		}
		f := &modelFile{bytes: bytes.Clone(full[:n])}
		l := newTestLedger(t, f, 11, 12)
		if got := l.Stats().Entries; got != want {
			t.Fatalf("cut to %d of %d bytes: %d entries, want %d", n, len(full), got, want)
		}
		if _, err := l.Enter(testPair(13, 5)); err != nil {
			t.Fatal(err)
		}
		if got := newTestLedger(t, f, 11, 12, 13).Stats().Entries; got != want+2 {
			t.Fatalf("cut to %d of %d bytes, then one more: %d entries, want %d", n, len(full), got, want+2)
		}
	}
}

// TestAChangedFileIsRefused: every byte of it, and every record missing or moved.
func TestAChangedFileIsRefused(t *testing.T) {
	f := &modelFile{}
	l := newTestLedger(t, f)
	for i := range byte(3) {
		if err := l.EnterNext(testKey(11+uint64(i), blob.Read, 0, 5, 1+i)); err != nil {
			t.Fatal(err)
		}
	}
	good := bytes.Clone(f.bytes)
	refused := func(what string, b []byte) {
		t.Helper()
		if _, err := decode(b); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 0x40
		refused(fmt.Sprintf("byte %d flipped", i), b)
	}
	record := func(i int) []byte { return good[headerSize+i*recordSize:][:recordSize] }
	head := good[:headerSize:headerSize]
	refused("the first record missing", bytes.Join([][]byte{head, record(1), record(2)}, nil))
	refused("one in the middle missing", bytes.Join([][]byte{head, record(0), record(2)}, nil))
	refused("two exchanged", bytes.Join([][]byte{head, record(1), record(0), record(2)}, nil))
	refused("one twice", bytes.Join([][]byte{head, record(0), record(0)}, nil))
	refused("empty", nil)
	refused("half a header", good[:headerSize-1])
}

// FuzzOpen: no file makes the decoder panic, and what it takes has one encoding.
func FuzzOpen(f *testing.F) {
	file := &modelFile{cut: -1}
	l := &Ledger{store: file, header: header{boot: [16]byte{1}, namespace: 2}, now: time.Now}
	l.open()
	l.Enter(testPair(11, 1))
	l.EnterNext(testKey(11, blob.Read, 1, 0, 3))
	l.Raise(11, blob.Read, 1, 7)
	f.Add(file.bytes, false)
	f.Add(file.bytes[:len(file.bytes)-1], false)
	f.Add(file.bytes[:headerSize], true)
	f.Fuzz(func(t *testing.T, b []byte, repair bool) {
		if repair {
			b = withChecksums(b)
		}
		c, err := decode(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		again, sum := encode(c.header, c.records)
		if c.size > int64(len(b)) || !bytes.Equal(again, b[:c.size]) || sum != c.sum {
			t.Errorf("%x\nencodes as\n%x", b[:c.size], again)
		}
		if len(b)-int(c.size) >= 2*recordSize && len(c.records) > 0 {
			// Acts are of one or two records; a longer torn end needs more in each of them.
			for at := int(c.size); at+recordSize <= len(b); at += recordSize {
				if b[at+3] != 1 {
					t.Error("a whole act was dropped")
				}
			}
		}
	})
}

// withChecksums gets the fuzzer past the checksums.
func withChecksums(b []byte) []byte {
	out, sum := []byte(nil), uint32(0)
	for size := headerSize; len(b) >= size; size = recordSize {
		from := len(out)
		out = append(out, b[:size-sumSize]...)
		out, sum = seal(out, from, sum)
		b = b[size:]
	}
	return append(out, b...)
}
