// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/offloadd/offloadd/blob"
)

// feed gives content to a reader in pieces of at most size bytes.
func feed(version blob.Version, contentType uint8, content []byte, size int) *ending {
	r := controlReader{version: version}
	for len(content) > 0 {
		n := min(size, len(content))
		if end := r.control(contentType, content[:n]); end != nil {
			return end
		}
		if len(r.handshake) > messageHeaderSize+maxMessage+n || len(r.alert) > 3 {
			panic("the buffer is not bounded")
		}
		content = content[n:]
	}
	return nil
}

func describe(end *ending) string {
	if end == nil {
		return "goes on"
	}
	return end.Error()
}

// FuzzHandshakeMessages: however a peer cuts its handshake messages, the outcome is
// the same, the buffer is bounded, and nothing but a KeyUpdate or an offence ends
// the connection.
func FuzzHandshakeMessages(f *testing.F) {
	ticket := []byte{4, 0, 0, 15, 0, 0, 0, 1, 0, 0, 0, 2, 1, 9, 0, 1, 8, 0, 0}
	for _, seed := range [][]byte{
		ticket, append(bytes.Clone(ticket), 24, 0, 0, 1, 0), {24, 0, 0, 1, 1}, {0, 0, 0, 0}, {4, 0, 0, 0},
		{4, 1, 0, 1}, {13, 0, 0, 1, 0}, bytes.Repeat([]byte{0, 0, 0, 0}, 17), {2, 40}, {1, 0},
	} {
		f.Add(seed, uint8(3))
	}
	f.Fuzz(func(t *testing.T, content []byte, size uint8) {
		for _, version := range []blob.Version{blob.TLS12, blob.TLS13} {
			whole := feed(version, recordHandshake, content, len(content)+1)
			parts := feed(version, recordHandshake, content, int(size)+1)
			if describe(whole) != describe(parts) {
				t.Errorf("%v: whole: %s; in pieces: %s", version, describe(whole), describe(parts))
			}
			if whole != nil && !errors.Is(whole.err, ErrProtocol) && !errors.Is(whole.err, ErrKeyUpdate) {
				t.Error(whole.err)
			}
			if end := feed(version, recordAlert, content, int(size)+1); end != nil {
				var alert *AlertError
				if !errors.Is(end.err, io.EOF) && !errors.Is(end.err, ErrProtocol) && !errors.As(end.err, &alert) {
					t.Error(end.err)
				}
			}
		}
	})
}

func TestRecordLimit(t *testing.T) {
	r := recordCounter{limit: 10, content: 100}
	for _, c := range []struct{ n, fragments, want int }{
		{1, 0, 1}, {100, 0, 100}, {900, 0, 900}, {1000, 0, 900}, {5000, 0, 900}, {1000, 64, 600},
	} {
		if got := r.allow(c.n, c.fragments); got != c.want {
			t.Errorf("%d bytes in %d pieces: %d allowed, want %d", c.n, c.fragments, got, c.want)
		}
	}
	for r.allow(1000, 0) > 0 {
		r.add(r.allow(1000, 0), 0)
		if r.used > r.limit {
			t.Fatalf("%d records of %d", r.used, r.limit)
		}
	}
	if got := newRecordCounter(blob.AES128GCM, maxRecordContent); got.limit > gcmRecordLimit {
		t.Error(got.limit)
	}
	if got := newRecordCounter(blob.ChaCha20Poly1305, maxRecordContent); got.limit < 1<<62 {
		t.Error(got.limit)
	}
}
