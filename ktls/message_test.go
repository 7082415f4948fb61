// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/offloadd/offloadd/blob"
)

// feed gives content to a reader in pieces of at most size bytes.
func feed(version blob.Version, follows bool, contentType uint8, content []byte, size int) (*ending, *keyUpdate) {
	r := controlReader{version: version, follows: follows}
	for len(content) > 0 {
		n := min(size, len(content))
		if end := r.control(contentType, content[:n]); end != nil {
			return end, nil
		}
		if len(r.handshake) > messageHeaderSize+maxMessage+n || len(r.alert) > 3 {
			panic("the buffer is not bounded")
		}
		content = content[n:]
	}
	return nil, r.update
}

func describe(end *ending, update *keyUpdate) string {
	switch {
	case end != nil:
		return end.Error()
	case update != nil:
		return fmt.Sprintf("another key, %+v", *update)
	}
	return "goes on"
}

// FuzzHandshakeMessages: however a peer cuts its handshake messages, the outcome is
// the same, the buffer is bounded, and nothing but a KeyUpdate or an offence ends
// the connection.
func FuzzHandshakeMessages(f *testing.F) {
	ticket := []byte{4, 0, 0, 15, 0, 0, 0, 1, 0, 0, 0, 2, 1, 9, 0, 1, 8, 0, 0}
	for _, seed := range [][]byte{
		ticket, append(bytes.Clone(ticket), 24, 0, 0, 1, 0), {24, 0, 0, 1, 1}, {0, 0, 0, 0}, {4, 0, 0, 0},
		append([]byte{24, 0, 0, 1, 0}, ticket...), {24, 0, 0, 1, 0, 24, 0, 0, 1, 0},
		{4, 1, 0, 1}, {13, 0, 0, 1, 0}, bytes.Repeat([]byte{0, 0, 0, 0}, 17), {2, 40}, {1, 0},
	} {
		f.Add(seed, uint8(3))
	}
	f.Fuzz(func(t *testing.T, content []byte, size uint8) {
		for _, c := range []struct {
			version blob.Version
			follows bool
		}{{blob.TLS12, false}, {blob.TLS13, false}, {blob.TLS13, true}} {
			whole, update := feed(c.version, c.follows, recordHandshake, content, len(content)+1)
			parts := describe(feed(c.version, c.follows, recordHandshake, content, int(size)+1))
			if describe(whole, update) != parts {
				t.Errorf("%+v: whole: %s; in pieces: %s", c, describe(whole, update), parts)
			}
			if whole != nil && !errors.Is(whole.err, ErrProtocol) && (c.follows || !errors.Is(whole.err, ErrKeyUpdate)) {
				t.Error(whole.err)
			}
			if update != nil && (!c.follows || !bytes.HasSuffix(content, []byte{24, 0, 0, 1, 0}) && !bytes.HasSuffix(content, []byte{24, 0, 0, 1, 1})) {
				t.Errorf("%+v: no KeyUpdate ends %x", c, content)
			}
			if end, _ := feed(c.version, c.follows, recordAlert, content, int(size)+1); end != nil {
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

// TestKeyUpdatesWithoutSenseAreCounted: those between which neither data nor an answer
// came.
func TestKeyUpdatesWithoutSenseAreCounted(t *testing.T) {
	ask, tell := &keyUpdate{requested: true}, &keyUpdate{}
	for _, c := range []struct {
		name     string
		update   *keyUpdate
		answered bool // each time
		data     int  // comes behind so many, 0 never
		want     int  // how many are taken, of 3000
	}{
		{"in a row", tell, true, 0, maxUpdates},
		{"in a row, one answer owed", tell, false, 0, maxUpdates},
		{"requests in a row", ask, false, 0, maxRequests},
		{"requests that are answered", ask, true, 0, 3000},
		{"with data in between", tell, false, maxUpdates, 3000},
		{"requests with data in between", ask, false, maxRequests, 3000},
	} {
		r := controlReader{version: blob.TLS13, follows: true}
		taken := 0
		for taken < 3000 && r.countUpdate(c.update, c.answered) == nil {
			if taken++; c.data > 0 && taken%c.data == 0 {
				r.data()
			}
		}
		if taken != c.want {
			t.Errorf("%s: %d taken, want %d", c.name, taken, c.want)
		}
	}
}
