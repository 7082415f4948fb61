// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"fmt"

	"golang.org/x/crypto/cryptobyte"

	"github.com/offloadd/offloadd/blob"
)

// countRecords sets the sequence number of a state to the number of records on the
// wire that are protected with its key. It finds them by opening them: when a key
// came into use does not follow from the order of events, as crypto/tls buffers whole
// flights, and how many records it sent is its own business.
//
// What they contain must be what ends with the handshake.
func countRecords(s *blob.State, stream []byte) error {
	rs, err := splitRecords(stream)
	if err != nil {
		return err
	}
	o, err := newOpener(s)
	if err != nil {
		return err
	}
	defer o.wipe()
	if s.Version == blob.TLS12 {
		return count12(s, o, protected12(rs))
	}
	return count13(s, o, protected13(rs))
}

// count12: one record follows ChangeCipherSpec, and it is Finished (RFC 5246,
// Section 7.4.9).
func count12(s *blob.State, o *opener, rs []record) error {
	if len(rs) == 0 {
		return fmt.Errorf("%w: no Finished on the wire (%v)", ErrLocal, s.Direction)
	}
	for i, r := range rs {
		kind, content, ok := o.open(r, uint64(i))
		switch {
		case !ok:
			return errUnopened(s, uint64(i))
		case i > 0 || kind != typeHandshake || !isFinished(content):
			return fmt.Errorf("%w: record %d (%v) is not a single Finished message", ErrPending, i, s.Direction)
		}
		s.Seq++
	}
	return nil
}

// count13: the records under the application key come last, and the only ones before
// the hand-over are the server's tickets.
func count13(s *blob.State, o *opener, rs []record) error {
	var messages []byte // cannot grow, as that would leave copies behind
	defer func() { clear(messages) }()
	for i, r := range rs {
		kind, content, ok := o.open(r, s.Seq)
		switch {
		case !ok && s.Seq == 0:
			continue // still under a handshake key
		case !ok:
			return errUnopened(s, s.Seq)
		case kind != typeHandshake || s.Role != blob.Server || s.Direction != blob.Write:
			return fmt.Errorf("%w: record %d (%v) of content type %d came with the handshake",
				ErrPending, s.Seq, s.Direction, kind)
		}
		s.Seq++
		if messages == nil {
			messages = make([]byte, 0, totalSize(rs[i:]))
		}
		messages = append(messages, content...)
	}
	if _, ok := countTickets(messages); !ok && s.Seq > 0 {
		return fmt.Errorf("%w: other messages than session tickets, or part of one, came with the handshake", ErrPending)
	}
	return nil
}

func totalSize(rs []record) (n int) {
	for _, r := range rs {
		n += len(r)
	}
	return n
}

func errUnopened(s *blob.State, seq uint64) error {
	return fmt.Errorf("%w: record %d (%v) does not open with the exported key", ErrLocal, seq, s.Direction)
}

// isFinished reports whether b is one Finished message of TLS 1.2 and nothing else
// (RFC 5246, Section 7.4.9).
func isFinished(b []byte) bool {
	s := cryptobyte.String(b)
	kind, body, ok := nextMessage(&s)
	return ok && kind == msgFinished && len(body) == 12 && s.Empty()
}

// countTickets reports whether b consists of complete NewSessionTicket messages (RFC
// 8446, Section 4.6.1), at least one, and how many.
func countTickets(b []byte) (n int, ok bool) {
	for s := cryptobyte.String(b); !s.Empty(); n++ {
		if kind, _, ok := nextMessage(&s); !ok || kind != msgNewSessionTicket {
			return 0, false
		}
	}
	return n, n > 0
}
