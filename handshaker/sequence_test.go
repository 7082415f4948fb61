// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/offloadd/offloadd/blob"
)

// testState makes up a state of any kind.
func testState(t *testing.T, suite blob.CipherSuite, role blob.Role, d blob.Direction) *blob.State {
	t.Helper()
	if suite.Version() == blob.TLS12 {
		read, write, err := blob.NewStates12(suite, role, blob.NewSecret(bytes.Repeat([]byte{5}, 48)),
			bytes.Repeat([]byte{6}, 32), bytes.Repeat([]byte{7}, 32))
		if err != nil {
			t.Fatal(err)
		}
		return map[blob.Direction]*blob.State{blob.Read: read, blob.Write: write}[d]
	}
	n := 32
	if suite == blob.TLS_AES_256_GCM_SHA384 {
		n = 48
	}
	s, err := blob.NewState13(suite, role, d, blob.NewSecret(bytes.Repeat([]byte{8}, n)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var (
	finished = helloMessage(msgFinished, make([]byte, 12))
	ticket   = helloMessage(msgNewSessionTicket, make([]byte, 40))
	ccs      = []byte{20, 3, 3, 0, 1, 1}
)

// content of one record.
type content struct {
	typ  byte
	body []byte
}

func TestRecordsOfTheApplicationKeyAreCountedAndChecked(t *testing.T) {
	const server, client = blob.Server, blob.Client
	const read, write = blob.Read, blob.Write
	c := func(typ byte, bodies ...[]byte) content { return content{typ, slices.Concat(bodies...)} }
	for _, tt := range []struct {
		name      string
		version   blob.Version
		role      blob.Role
		direction blob.Direction
		records   []content
		seq       uint64
		err       error
	}{
		{"none", blob.TLS13, server, read, nil, 0, nil},
		{"one ticket", blob.TLS13, server, write, []content{c(22, ticket)}, 1, nil},
		{"two tickets in two records", blob.TLS13, server, write, []content{c(22, ticket), c(22, ticket)}, 2, nil},
		{"two tickets in one record", blob.TLS13, server, write, []content{c(22, ticket, ticket)}, 1, nil},
		{"one ticket in two records", blob.TLS13, server, write, []content{c(22, ticket[:9]), c(22, ticket[9:])}, 2, nil},
		{"part of a ticket", blob.TLS13, server, write, []content{c(22, ticket), c(22, ticket[:9])}, 0, ErrPending},
		{"a KeyUpdate", blob.TLS13, server, write, []content{c(22, helloMessage(24, []byte{0}))}, 0, ErrPending},
		{"a ticket and a KeyUpdate", blob.TLS13, server, write, []content{c(22, ticket, helloMessage(24, []byte{0}))}, 0, ErrPending},
		{"an empty handshake record", blob.TLS13, server, write, []content{c(22)}, 0, ErrPending},
		{"data written", blob.TLS13, server, write, []content{c(22, ticket), c(23, []byte("hello"))}, 0, ErrPending},
		{"an alert written", blob.TLS13, server, write, []content{c(21, []byte{1, 0})}, 0, ErrPending},
		{"data read", blob.TLS13, server, read, []content{c(23, []byte("hello"))}, 0, ErrPending},
		{"a ticket from a client", blob.TLS13, server, read, []content{c(22, ticket)}, 0, ErrPending},
		{"data read by a client", blob.TLS13, client, read, []content{c(23, []byte("hello"))}, 0, ErrPending},
		{"a ticket read with the handshake", blob.TLS13, client, read, []content{c(22, ticket)}, 0, ErrPending},
		{"data written by a client", blob.TLS13, client, write, []content{c(23, []byte("hello"))}, 0, ErrPending},

		{"Finished", blob.TLS12, server, read, []content{c(22, finished)}, 1, nil},
		{"no Finished", blob.TLS12, server, read, nil, 0, ErrLocal},
		{"Finished and a HelloRequest", blob.TLS12, client, read, []content{c(22, finished, helloMessage(0, nil))}, 0, ErrPending},
		{"Finished in two records", blob.TLS12, client, read, []content{c(22, finished[:5]), c(22, finished[5:])}, 0, ErrPending},
		{"Finished and data", blob.TLS12, server, read, []content{c(22, finished), c(23, []byte("hello"))}, 0, ErrPending},
		{"data only", blob.TLS12, server, read, []content{c(23, []byte("hello"))}, 0, ErrPending},
		{"an alert before Finished", blob.TLS12, client, read, []content{c(21, []byte{1, 0}), c(22, finished)}, 0, ErrPending},
	} {
		for _, suite := range blob.CipherSuites() {
			if suite.Version() != tt.version {
				continue
			}
			t.Run(fmt.Sprintf("%v %v %s %v", tt.role, tt.direction, tt.name, suite), func(t *testing.T) {
				s := testState(t, suite, tt.role, tt.direction)
				h := newHalf(s)
				// What comes before: a hello, and in TLS 1.3 records under another key.
				stream := slices.Concat(testRecord(50), ccs)
				if tt.version == blob.TLS13 {
					stream = slices.Concat(stream, []byte{23, 3, 3, 0, 40}, make([]byte, 40), []byte{23, 3, 3, 0, 3, 1, 2, 3})
				}
				for _, r := range tt.records {
					stream = append(stream, h.seal(r.typ, r.body)...)
				}
				err := countRecords(s, stream)
				if !errors.Is(err, tt.err) || err == nil && s.Seq != tt.seq {
					t.Errorf("sequence number %d, %v; want %d, %v", s.Seq, err, tt.seq, tt.err)
				}
			})
		}
	}
}

func TestAGapInTheSequenceIsNoticed(t *testing.T) {
	for _, suite := range []blob.CipherSuite{blob.TLS_AES_128_GCM_SHA256, blob.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256} {
		s := testState(t, suite, blob.Server, blob.Write)
		h := newHalf(s)
		stream := slices.Concat(ccs, h.seal(22, finished))
		if suite.Version() == blob.TLS13 {
			h.seq = 0
			stream = h.seal(22, ticket)
		}
		h.seq += 1 // one is missing
		stream = append(stream, h.seal(22, ticket)...)
		if err := countRecords(s, stream); !errors.Is(err, ErrLocal) {
			t.Errorf("%v: %v", suite, err)
		}
	}
}

func TestPaddedRecordsAreUnderstood(t *testing.T) {
	s := testState(t, blob.TLS_AES_128_GCM_SHA256, blob.Server, blob.Write)
	h := newHalf(s)
	// seal appends the type: a "type" of 0 makes it padding.
	stream := h.seal(0, append(append(bytes.Clone(ticket), 22), make([]byte, 100)...))
	if err := countRecords(s, stream); err != nil || s.Seq != 1 {
		t.Error(s.Seq, err)
	}
	s = testState(t, blob.TLS_AES_128_GCM_SHA256, blob.Server, blob.Write)
	h = newHalf(s)
	if err := countRecords(s, h.seal(0, make([]byte, 100))); !errors.Is(err, ErrPending) {
		t.Error("only padding:", err)
	}
}
