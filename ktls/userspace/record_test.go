// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// pieces is a stream that comes in pieces of at most size bytes.
type pieces struct {
	stream []byte
	size   int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.stream) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(p.size, len(b))], p.stream)
	p.stream = p.stream[n:]
	return n, nil
}

// fuzzKeys returns the two ends of one direction, always the same.
func fuzzKeys(t *testing.T, suite blob.CipherSuite) (write, read *key) {
	t.Helper()
	keyOf := func(d blob.Direction) *key {
		s := &blob.State{
			Role: blob.Client, Direction: d, Version: suite.Version(), Suite: suite, Cookie: 1,
			Key: blob.NewSecret(bytes.Repeat([]byte{7}, suite.AEAD().KeySize())),
			IV:  blob.NewSecret(bytes.Repeat([]byte{9}, suite.IVSize())),
		}
		k, err := newKey(s)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	return keyOf(blob.Write), keyOf(blob.Read)
}

// FuzzRecords: of a stream of records in which a byte was changed, and behind which
// anything comes, those before the change are read, whole, and nothing else, however the
// stream is cut; and the end of it is an error.
func FuzzRecords(f *testing.F) {
	f.Add([]byte{23, 100, 22, 5, 21, 2, 23, 0}, uint16(300), byte(1), byte(0), []byte{23, 3, 3, 0, 20}, byte(0))
	f.Add([]byte{23, 255}, uint16(3), byte(0x40), byte(6), []byte{}, byte(1))
	f.Add([]byte{23, 1, 23, 1, 23, 1}, uint16(0), byte(0), byte(255), []byte("GET / HTTP/1.1\r\n"), byte(2))
	f.Add([]byte{}, uint16(0), byte(0), byte(30), append([]byte{23, 3, 3, 0xff, 0xff}, make([]byte, 300)...), byte(3))
	suites := []blob.CipherSuite{
		blob.TLS_AES_128_GCM_SHA256, blob.TLS_CHACHA20_POLY1305_SHA256,
		blob.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, blob.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	}
	f.Fuzz(func(t *testing.T, script []byte, at uint16, change, size byte, rest []byte, which byte) {
		write, read := fuzzKeys(t, suites[int(which)%len(suites)])
		type record struct {
			kind    byte
			content []byte
		}
		var want []record
		var stream []byte
		changed := false
		for ; len(script) >= 2 && len(want) < 5; script = script[2:] {
			// The type of a record is never 0, which is what padding is made of.
			r := record{max(script[0], 1), bytes.Repeat([]byte{script[1]}, int(script[1]))}
			if script[1] == 255 {
				r.content = make([]byte, maxContent)
			}
			b, err := write.seal(make([]byte, len(r.content)+write.overhead()), r.kind, r.content)
			if err != nil {
				t.Fatal(err)
			}
			stream = append(stream, b...)
			if changed = changed || change != 0 && int(at) < len(stream); !changed {
				want = append(want, r)
			}
		}
		if changed {
			stream[at] ^= change
		}
		in := &pieces{append(stream, rest...), int(size) + 1}
		var w wire
		for i := 0; ; i++ {
			b, end, err := w.next(in, read)
			if err == nil && end == nil {
				var r record
				if r.kind, r.content, end = read.open(b); end == nil {
					if i >= len(want) || r.kind != want[i].kind || !bytes.Equal(r.content, want[i].content) {
						t.Fatalf("record %d of %d is not what was sent: type %d, %d bytes", i, len(want), r.kind, len(r.content))
					}
					continue
				}
			}
			if i != len(want) {
				t.Errorf("%d records of %d were read: %v, %v", i, len(want), end, err)
			}
			if end != nil && (!errors.Is(end.Err, ktls.ErrRecord) || end.Alert == 0) || end == nil && err != io.ErrUnexpectedEOF {
				t.Errorf("the end: %v, %v", end, err)
			}
			return
		}
	})
}

// TestSequenceNumbersDoNotWrap (RFC 8446, Section 5.3).
func TestSequenceNumbersDoNotWrap(t *testing.T) {
	write, read := fuzzKeys(t, blob.TLS_AES_128_GCM_SHA256)
	write.state.Seq, read.state.Seq = 1<<64-2, 1<<64-2
	b, err := write.seal(make([]byte, 100), recordData, []byte("last"))
	if err != nil {
		t.Fatal(err)
	}
	last := bytes.Clone(b)
	if _, content, end := read.open(b); string(content) != "last" || end != nil {
		t.Errorf("%q, %v", content, end)
	}
	if _, err := write.seal(make([]byte, 100), recordData, []byte("none")); err == nil {
		t.Error("a record behind the last number")
	}
	if _, _, end := read.open(last); end == nil || !errors.Is(end.Err, ktls.ErrRecordLimit) {
		t.Errorf("%v", end)
	}
}

// TestReadLeavesNoPlaintext: what was read, or dropped, is not in the buffer any more.
func TestReadLeavesNoPlaintext(t *testing.T) {
	p := ktlstest.NewPair(t)
	client, server := ktlstest.NewStates(t, blob.TLS_AES_128_GCM_SHA256, p)
	a, err := NewConn(p.Client, client.Read, client.Write)
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewConn(p.Server, server.Read, server.Write)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	marker := []byte("a marker in clear")
	a.Write(bytes.Repeat(marker, 500))
	if _, err := io.ReadFull(b, make([]byte, 500*len(marker))); err != nil {
		t.Fatal(err)
	}
	a.send(recordHandshake, append([]byte{4, 0, 0, 100}, marker...)) // the beginning of a ticket
	a.Write([]byte("x"))
	b.Read(make([]byte, 1))
	for name, buffer := range map[string][]byte{"reader": b.in.wire.buffer, "writer": a.out.buffer} {
		if len(buffer) == 0 || bytes.Contains(buffer, marker) {
			t.Errorf("the buffer of the %s, of %d bytes, is empty or has the marker", name, len(buffer))
		}
	}
}
