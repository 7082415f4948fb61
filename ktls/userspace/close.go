// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"errors"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/offloadd/offloadd/ktls"
)

// Times that Close of ktls.Conn keeps as well.
const (
	// closeTimeout is how long Close waits for a peer that does not read; crypto/tls
	// waits as long to send its close_notify.
	closeTimeout = 5 * time.Second
	// closeGrace is what a write deadline in the past leaves, so that a peer which
	// does read gets its close_notify.
	closeGrace = 50 * time.Millisecond
)

// Close sends close_notify and closes the socket. It returns when TCP has all data that
// Write accepted, and delivers it as after the Close of a net.TCPConn. If the peer does
// not make room for it until the write deadline, or for 5 seconds without one, Close gives
// up with ktls.ErrUndelivered. A peer that closed first and had acknowledged all data is no
// error. A blocked Read or Write returns net.ErrClosed.
func (c *Conn) Close() error {
	deadline, ok := c.beginClose()
	if !ok {
		return c.opError("close", net.ErrClosed)
	}
	c.out.Lock()
	var flushed error
	if c.out.broken.Load() == nil {
		flushed = c.finish(deadline)
	}
	c.out.key.destroy()
	c.out.pending = nil
	clear(c.out.buffer) // sealed or not
	c.out.Unlock()

	c.in.Lock()
	drain(c.tcp)
	c.in.key.destroy()
	c.in.content = nil
	clear(c.in.wire.buffer)
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

// finish gives TCP what is pending, and close_notify behind it if that did not go out.
func (c *Conn) finish(deadline time.Time) error {
	if err := c.tcp.SetWriteDeadline(deadline); err != nil {
		return c.opError("close", err)
	}
	// A peer that has closed answers the close_notify itself with a reset. If its TCP
	// had acknowledged everything before, nothing was lost.
	acknowledged := len(c.out.pending) == 0 && acknowledged(c.tcp)
	err := c.flush()
	if err == nil && !c.out.closeNotified {
		c.out.closeNotified = true
		_, err = c.put(recordAlert, []byte{alertLevelWarning, alertCloseNotify})
	}
	switch {
	case err == nil, acknowledged && isReset(err):
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ktls.ErrUndelivered
	}
	return c.opError("close", err)
}

func isReset(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}
