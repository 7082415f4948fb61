// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"
)

// request makes the head of a request, or all of it with a body.
func request(method, path string, body []byte, last bool) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: bench\r\n", method, path)
	if method != "GET" {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(body))
	}
	if last {
		b.WriteString("Connection: close\r\n")
	}
	b.WriteString("\r\n")
	b.Write(body)
	return b.Bytes()
}

// cutLine cuts behind the first line.
func cutLine(message []byte) (line, rest []byte, found bool) {
	return bytes.Cut(message, []byte("\r\n"))
}

var getOne, getOneLast = request("GET", "/1", nil, false), request("GET", "/1", nil, true)

// getOne asks for a byte, and returns when the answer began. A foreign server may have none:
// what counts is that it answers.
func (l *link) getOne(last bool) (began time.Time, err error) {
	message := getOne
	if last {
		message = getOneLast
	}
	h, err := l.ask(message)
	if err != nil {
		return began, err
	}
	began = time.Now()
	err = l.drain(h.length, func([]byte) {})
	l.rest()
	return began, err
}

// handshakes makes connections and asks each for a byte.
func (c *Client) handshakes(ctx context.Context, r *Result, u *usages) error {
	d := *c.dialer
	if err := c.prepareResumption(ctx, &d); err != nil {
		return err
	}
	times := make([]time.Duration, c.Handshakes)
	var resumed atomic.Int64
	if err := u.start(); err != nil {
		return err
	}
	m := c.newMeter()
	err := each(c.Handshakes, c.Streams, func(i int) error {
		begin := time.Now()
		l, err := d.dial(ctx)
		if err != nil {
			return err
		}
		defer l.close()
		began, err := l.getOne(true)
		if err != nil {
			return fmt.Errorf("handshake %d: %w", i+1, err)
		}
		times[i] = began.Sub(begin)
		if l.agreed.resumed {
			resumed.Add(1)
		}
		m.requests.Add(1)
		m.hold(l)
		m.drop(l)
		return nil
	})
	m.stop(r)
	if err != nil {
		return err
	}
	r.agreed(m.agreement())
	r.TLSResumed = resumed.Load()
	if c.Resumed && r.TLSResumed != int64(c.Handshakes) {
		return fmt.Errorf("%d of %d handshakes resumed a session: does the server give tickets?", r.TLSResumed, c.Handshakes)
	}
	r.RecordsWhy = "of handshakes they are not counted"
	r.Latency = NewLatency(times)
	return u.end(r)
}

// prepareResumption makes d resume sessions, and gets the first one. Without, d forgets.
func (c *Client) prepareResumption(ctx context.Context, d *dialer) error {
	if !c.Resumed {
		return nil
	}
	d.config = d.config.Clone()
	d.config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	l, err := d.dial(ctx)
	if err != nil {
		return err
	}
	defer l.close()
	_, err = l.getOne(true) // in TLS 1.3 the ticket comes with what is read
	return err
}

// small sends messages to and fro.
func (c *Client) small(ctx context.Context, r *Result, u *usages) error {
	links := make([]*link, c.Streams)
	if !c.NoKeepAlive {
		dialed, err := c.dialAll(ctx, c.Streams)
		if err != nil {
			return err
		}
		defer closeAll(dialed)
		links = dialed
		r.agreed(links[0].agreed)
	}
	if err := u.start(); err != nil {
		return err
	}
	m := c.newMeter()
	defer m.cutWith(ctx, c.Time)()
	times := make([][]time.Duration, c.Streams)
	before := recordsOf(links)
	err := each(c.Streams, c.Streams, func(i int) (err error) {
		times[i], err = c.smallStream(ctx, links[i], m)
		return err
	})
	m.stop(r)
	if err = errors.Join(err, ctx.Err()); err != nil {
		return err
	}
	if r.Latency = NewLatency(slices.Concat(times...)); r.Latency == nil {
		return fmt.Errorf("no message came back within %v", c.Time)
	}
	if c.NoKeepAlive {
		r.agreed(m.agreement())
		r.RecordsWhy = "of connections for one message they are not counted"
	} else {
		r.countRecords(before, links)
	}
	return u.end(r)
}

// smallStream is one stream of small. It has no link if each message has its own.
func (c *Client) smallStream(ctx context.Context, l *link, m *meter) (times []time.Duration, err error) {
	if l != nil {
		m.hold(l)
	}
	body := c.pattern.at(0, min(c.Small, maxEcho))
	message := request("POST", "/echo", body, c.NoKeepAlive)
	if c.Get {
		message = request("GET", fmt.Sprintf("/%d", c.Small), nil, c.NoKeepAlive)
	}
	for n := 0; (c.Count == 0 || n < c.Count) && !m.over(); n++ {
		begin := time.Now()
		var err error
		if c.NoKeepAlive {
			err = c.smallConnection(ctx, message, body, m)
		} else {
			err = c.smallMessage(l, message, body)
		}
		if m.over() {
			break
		}
		if err != nil {
			return times, err
		}
		times = append(times, time.Since(begin))
		m.requests.Add(1)
		m.received.Add(c.Small)
		if !c.Get {
			m.sent.Add(c.Small)
		}
	}
	return times, nil
}

// smallConnection is one message on a connection of its own.
func (c *Client) smallConnection(ctx context.Context, message, body []byte, m *meter) error {
	l, err := c.dialer.dial(ctx)
	if err != nil {
		return err
	}
	defer l.close()
	m.hold(l)
	defer m.drop(l)
	return c.smallMessage(l, message, body)
}

func (c *Client) smallMessage(l *link, message, want []byte) error {
	h, err := l.expect(message)
	if err != nil {
		return err
	}
	if h.length != c.Small {
		return fmt.Errorf("asked for %d bytes, got %d", c.Small, h.length)
	}
	if c.Small > maxEcho {
		return l.drain(h.length, func([]byte) {})
	}
	got, err := l.body(int(h.length))
	if err != nil {
		return err
	}
	if c.Verify && !bytes.Equal(got, want) {
		return fmt.Errorf("the answer to %d bytes differs from them", c.Small)
	}
	return nil
}
