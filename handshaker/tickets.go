// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/offloadd/offloadd/blob"
)

const (
	// ticketGap is how long after one ticket the next may take to count as coming
	// together: they are written in one go, but not always in one segment.
	ticketGap = 10 * time.Millisecond
	// maxTickets is how many messages crypto/tls accepts after a handshake without
	// getting application data in between.
	maxTickets = 16
)

// takeTickets takes session tickets off the connection (RFC 8446, Section 4.6.1),
// gives them to crypto/tls and counts their records. They would not disturb the next
// owner's TLS, but they would disturb a program that just reads.
//
// It looks before it takes: a record stays where it is unless it is complete, opens,
// and consists of whole tickets. Application data, KeyUpdate and alerts are the next
// owner's, and so is everything behind them.
func (h *handshake) takeTickets(ctx context.Context) error {
	if h.role != blob.Client || h.read.Version != blob.TLS13 || h.socket.raw == nil {
		return nil
	}
	o, err := newOpener(h.read)
	if err != nil {
		return err
	}
	defer o.wipe()
	buf := make([]byte, headerSize+maxBody13)
	end := time.Now().Add(h.wait)
	until := end
	for taken := 0; ; {
		r, err := h.peekRecord(ctx, buf, until)
		if r == nil || err != nil {
			return err
		}
		kind, content, ok := o.open(r, h.read.Seq)
		n, tickets := countTickets(content)
		if !ok || kind != typeHandshake || !tickets || taken+n > maxTickets {
			return nil
		}
		if err := h.takeRecord(r); err != nil {
			return err
		}
		taken += n
		h.read.Seq++
		if until = time.Now().Add(ticketGap); until.After(end) {
			until = end
		}
	}
}

// peekRecord waits for a whole record and returns it without taking it, or nil if
// there is none.
func (h *handshake) peekRecord(ctx context.Context, buf []byte, until time.Time) (record, error) {
	wait := time.Until(until) > 0
	if wait {
		if err := h.wire.SetReadDeadline(until); err != nil {
			return nil, fmt.Errorf("%w: set a deadline: %w", ErrLocal, err)
		}
		// If ctx ended before this deadline was set, it replaced the one that interrupts.
		if ctx.Err() != nil {
			return nil, nil // run reports it
		}
	} else if err := h.wire.SetReadDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("%w: set a deadline: %w", ErrLocal, err)
	}
	n, err := h.socket.peek(buf, wait, func(b []byte) bool { return firstRecord(b) != nil || oversize(b) })
	if err != nil {
		// Either nothing came in time, or the connection is broken, which is for whoever
		// uses it next to see.
		return nil, nil
	}
	return firstRecord(buf[:n]), nil
}

// firstRecord returns the record at the start of b, or nil if it is not complete.
func firstRecord(b []byte) record {
	if len(b) < headerSize || len(b) < headerSize+bodySize(b) {
		return nil
	}
	return record(b[:headerSize+bodySize(b)])
}

// oversize reports whether the record at the start of b is longer than allowed, and
// so will never be complete here.
func oversize(b []byte) bool { return len(b) >= headerSize && bodySize(b) > maxBody13 }

// takeRecord takes exactly r off the connection and lets crypto/tls read it.
func (h *handshake) takeRecord(r record) error {
	got := make([]byte, len(r))
	if err := h.wire.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("%w: set a deadline: %w", ErrLocal, err)
	}
	if _, err := io.ReadFull(h.wire.conn, got); err != nil {
		return fmt.Errorf("%w: take a session ticket: %w", ErrLocal, err)
	}
	if !bytes.Equal(got, r) {
		return fmt.Errorf("%w: conn gives other bytes than its socket: someone else reads it, or conn holds data back", ErrLocal)
	}
	sent := len(h.wire.out)
	h.wire.feed(got)
	_, err := h.tls.Read(make([]byte, 1))
	switch {
	case !errors.Is(err, errFed{}):
		return fmt.Errorf("%w: session ticket: %w", ErrHandshake, err)
	case len(h.wire.fed) > 0 || len(h.wire.out) != sent:
		return fmt.Errorf("%w: crypto/tls did something else with a session ticket than to keep it", ErrLocal)
	}
	return nil
}
