// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"errors"
	"net"
	"time"
)

const (
	// closeTimeout is how long Close waits for a peer that does not read; crypto/tls
	// waits as long to send its close_notify.
	closeTimeout = 5 * time.Second
	// closeGrace is what a write deadline in the past leaves, so that a peer which
	// does read gets its close_notify.
	closeGrace = 50 * time.Millisecond
)

// Close sends close_notify and closes the socket. It returns when all data that
// Write accepted was handed to TCP, which delivers it as after the Close of a
// net.TCPConn. If the peer does not make room for it until the write deadline, or for 5
// seconds without one, Close gives up with ErrUndelivered. A peer that closed first and
// had acknowledged all data is no error. A blocked Read or Write
// returns net.ErrClosed. CLOSE.md has a table of all ends.
func (c *Conn) Close() error {
	deadline, ok := c.beginClose()
	if !ok {
		return c.opError("close", net.ErrClosed)
	}
	c.out.Lock()
	var flushed error
	if c.out.broken.Load() == nil {
		c.out.closeNotified = true
		flushed = c.flush(deadline)
	}
	c.out.Unlock()

	c.in.Lock()
	if end := c.in.err; !errors.Is(end, ErrMoved) { // what has arrived since is the new owner's
		c.drain()
		c.custody.Destroy()
		if c.in.err = end; end == nil {
			// Data was dropped, so an end that came behind it is none of the stream.
			c.in.err = c.opError("read", net.ErrClosed)
		}
	}
	c.in.Unlock()
	if err := c.inner.Close(); flushed == nil {
		return err
	}
	return flushed
}

// beginClose marks the Conn as closed and wakes a blocked Read and Write. It
// returns until when Close may wait, and false if it was closed before.
func (c *Conn) beginClose() (time.Time, bool) {
	c.deadlines.Lock()
	defer c.deadlines.Unlock()
	if c.deadlines.closed {
		return time.Time{}, false
	}
	c.deadlines.closed = true
	now := time.Now()
	// An error means that the connection below is closed already: nobody waits.
	_ = c.tcp.SetDeadline(now.Add(-time.Second))
	deadline := c.deadlines.write
	if deadline.IsZero() {
		deadline = now.Add(closeTimeout)
	}
	if earliest := now.Add(closeGrace); deadline.Before(earliest) {
		deadline = earliest
	}
	return deadline, true
}
