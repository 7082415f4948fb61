// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// dialAll makes n links, one after another: a server under test is not to be drowned in
// handshakes before what is measured begins.
func (c *Client) dialAll(ctx context.Context, n int) ([]*link, error) {
	links := make([]*link, 0, n)
	for range n {
		l, err := c.dialer.dial(ctx)
		if err != nil {
			closeAll(links)
			return nil, err
		}
		links = append(links, l)
	}
	return links, nil
}

func closeAll(links []*link) {
	for _, l := range links {
		l.close()
	}
}

// transfer moves large bodies.
func (c *Client) transfer(ctx context.Context, r *Result, u *usages) error {
	n := c.Streams
	if c.Bidir {
		n *= 2 // the second half downloads
	}
	links, err := c.dialAll(ctx, n)
	if err != nil {
		return err
	}
	defer closeAll(links)
	r.agreed(links[0].agreed)
	if c.Verify {
		c.sum(c.bodySize()) // now, and not when the first body is complete
	}
	if err := u.start(); err != nil {
		return err
	}
	before := recordsOf(links)
	m := c.newMeter()
	defer m.cutWith(ctx, c.Time)()
	err = each(n, n, func(i int) error {
		f := c.upload
		if c.Download || i >= c.Streams {
			f = c.download
		}
		return c.stream(ctx, links[i], f, m)
	})
	m.stop(r)
	if err = errors.Join(err, ctx.Err()); err != nil {
		return err
	}
	r.countRecords(before, links)
	return u.end(r)
}

// bodySize is that of each body.
func (c *Client) bodySize() int64 {
	if c.Time > 0 {
		return c.RequestSize
	}
	return c.Bytes
}

// stream makes requests on a link until the time is up, or one.
func (c *Client) stream(ctx context.Context, l *link, f func(*link, int64, *meter) error, m *meter) error {
	m.hold(l)
	if c.Time == 0 {
		if err := f(l, c.bodySize(), m); err != nil {
			return err
		}
		m.requests.Add(1)
		return nil
	}
	for !m.over() {
		if c.Layer == LayerDiscard && l.used { // it was for one request
			next, err := c.dialer.dial(ctx)
			if err != nil {
				return err
			}
			m.drop(l)
			l.close()
			l = next
			defer l.close() // a second time does no harm
			m.hold(l)
		}
		err := f(l, c.bodySize(), m)
		if m.over() {
			return nil
		}
		if err != nil {
			return err
		}
		m.requests.Add(1)
	}
	return nil
}

// download asks for n bytes.
func (c *Client) download(l *link, n int64, m *meter) error {
	message := request("GET", fmt.Sprintf("/%d", n), nil, c.Layer == LayerDiscard)
	if c.Layer == LayerDiscard {
		return discardAnswer(l, message, n, m)
	}
	h, err := l.expect(message)
	if err != nil {
		return err
	}
	if h.length != n {
		return fmt.Errorf("asked for %d bytes, the server has %d", n, h.length)
	}
	if c.Layer == LayerNone && !c.Verify {
		return l.discardBody(n, m)
	}
	hash := sha256.New()
	err = l.drain(n, func(piece []byte) {
		m.received.Add(int64(len(piece)))
		if c.Verify {
			hash.Write(piece)
		}
	})
	if err != nil || !c.Verify {
		return err
	}
	if got, want := digest(hash), c.sum(n); got != want {
		return fmt.Errorf("%d bytes came with SHA-256 %x, want %x", n, got, want)
	}
	return nil
}

// discardBody drops a body in clear.
func (l *link) discardBody(n int64, m *meter) error {
	have := min(int64(l.end-l.start), n)
	m.received.Add(have)
	l.start += int(have)
	_, err := discard(l.tcp, n-have, &m.received)
	return unexpected(err)
}

// minOverhead is the least that protecting a record takes, in bytes: its header and an AEAD's
// tag (ChaCha20-Poly1305 in TLS 1.2).
const minOverhead = recordHeader + 16

// maxContent is the most content of a record, in bytes (RFC 8446, Section 5.1).
const maxContent = 1 << 14

// endTime is how long the end of the stream is waited for when the body must be complete:
// some servers keep a connection.
const endTime = time.Second

// discardAnswer asks for n bytes as the last request and drops what comes, until the end of
// the stream. Nobody deciphers it, so all that can be checked is that it could have been so
// much.
func discardAnswer(l *link, message []byte, n int64, m *meter) error {
	l.used = true
	if _, err := l.conn.Write(message); err != nil {
		return err
	}
	least := n + (n+maxContent-1)/maxContent*minOverhead
	got, err := discard(l.tcp, least, &m.received)
	if err != nil {
		return fmt.Errorf("the connection ended after %d bytes, which cannot hold %d: %w", got, n, unexpected(err))
	}
	last := time.Now()
	m.received.Add(n - got) // from now on it is the body that counts, not what it was wrapped in
	l.tcp.SetReadDeadline(last.Add(endTime))
	for err == nil {
		if _, err = discardSome(l.tcp, discardMost); err == nil {
			last = time.Now()
		}
	}
	m.endsAt(last)
	if errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// upload sends n bytes.
func (c *Client) upload(l *link, n int64, m *meter) error {
	path := "/"
	if c.Verify {
		path = "/sha256"
	}
	head := fmt.Sprintf("PUT %s HTTP/1.1\r\nHost: bench\r\nContent-Length: %d\r\n\r\n", path, n)
	l.used = true
	if _, err := l.conn.Write([]byte(head)); err != nil {
		return err
	}
	if err := c.send(l, n, m); err != nil {
		return err
	}
	h, err := l.answer()
	if err != nil {
		return err
	}
	if err := checkStatus(h, []byte(head)); err != nil {
		return err
	}
	return c.checkReceived(l, h.length, n)
}

func (c *Client) send(l *link, n int64, m *meter) error {
	if c.file == nil {
		return sendPattern(l.conn, c.pattern, n, c.WriteSize, &m.sent)
	}
	if l.file == nil {
		var err error
		if l.file, err = c.file.reopen(); err != nil {
			return err
		}
	}
	return sendFile(l.conn, l.file, n, &m.sent)
}

// checkReceived reads what the server says that it got. Of a foreign one any answer will do,
// unless it is to be verified.
func (c *Client) checkReceived(l *link, length, n int64) error {
	var text bytes.Buffer
	if err := l.drain(length, func(piece []byte) { text.Write(piece) }); err != nil {
		return err
	}
	var got received
	err := json.Unmarshal(text.Bytes(), &got)
	switch {
	case err == nil && got.Bytes != n:
		return fmt.Errorf("%d bytes were sent, the server got %d", n, got.Bytes)
	case !c.Verify:
		return nil
	case err != nil:
		return fmt.Errorf("the server does not say what it got: %w", err)
	}
	if want := fmt.Sprintf("%x", c.sum(n)); got.SHA256 != want {
		return fmt.Errorf("%d bytes arrived with SHA-256 %s, want %s", n, got.SHA256, want)
	}
	return nil
}

// recordsOf are the sums of the links now; nil where nobody counts.
func recordsOf(links []*link) *Records {
	r := &Records{}
	for _, l := range links {
		if l == nil || l.records == nil {
			return nil
		}
		r.Sent += l.records.written.Load()
		r.Received += l.records.read.Load()
	}
	return r
}

// countRecords tells how many there were since before, or why nobody knows.
func (r *Result) countRecords(before *Records, links []*link) {
	switch {
	case before != nil:
		after := recordsOf(links)
		r.Records = &Records{after.Sent - before.Sent, after.Received - before.Received}
	case r.TLS == LayerNone:
		r.RecordsWhy = "there are none without TLS"
	default:
		r.RecordsWhy = "only the record layer of crypto-tls is watched here; of kernel TLS, \"offloadd top\" counts them"
	}
}
