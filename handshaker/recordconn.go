// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"fmt"
	"net"
	"time"
)

// maxLog bounds, in bytes, what is kept of each direction of a handshake. crypto/tls
// accepts certificate messages of up to 256 KiB; no other message comes near.
const maxLog = 512 << 10

// recordConn is the net.Conn that crypto/tls runs on. A Read never crosses a record
// boundary: crypto/tls asks for more than it needs and would take application
// records off the socket otherwise. What passes is kept, to count records later.
// None of it is secret in clear: it is what an observer of the wire sees.
//
// After detach the socket is out of reach, and Read returns only what feed gave it.
type recordConn struct {
	conn net.Conn

	header    [headerSize]byte
	headerLen int // bytes of header read so far
	left      int // bytes of the body still to be read

	in, out []byte
	err     error // why no more can be read or written

	detached bool
	fed      []byte
}

// Read returns bytes of one record, first of its header and then of its body.
func (c *recordConn) Read(p []byte) (int, error) {
	switch {
	case c.detached:
		return c.readFed(p)
	case c.err != nil:
		return 0, c.err
	case c.left > 0:
		p = p[:min(len(p), c.left)]
	default:
		p = p[:min(len(p), headerSize-c.headerLen)]
	}
	n, err := c.conn.Read(p)
	c.advance(p[:n])
	if len(c.in)+n > maxLog {
		c.err = fmt.Errorf("%w: handshake of more than %d bytes", ErrPeer, maxLog)
		return 0, c.err
	}
	c.in = append(c.in, p[:n]...)
	return n, err
}

// advance follows the record boundaries over the bytes read.
func (c *recordConn) advance(p []byte) {
	if c.left > 0 {
		c.left -= len(p)
		return
	}
	c.headerLen += copy(c.header[c.headerLen:], p)
	if c.headerLen < headerSize {
		return
	}
	c.headerLen = 0
	c.left = bodySize(c.header[:])
	if c.left > maxBody12 {
		// Only the next Read fails: crypto/tls shall see this header, as it has the alert
		// for it (record_overflow, or "not TLS at all").
		c.err = fmt.Errorf("%w: record of %d bytes, at most %d are allowed", ErrPeer, c.left, maxBody12)
	}
}

// atBoundary reports whether the next byte of the connection starts a record.
func (c *recordConn) atBoundary() bool { return c.headerLen == 0 && c.left == 0 }

// Write passes p on and keeps a copy.
func (c *recordConn) Write(p []byte) (int, error) {
	if len(c.out)+len(p) > maxLog {
		c.err = fmt.Errorf("%w: own handshake of more than %d bytes", ErrConfig, maxLog)
		return 0, c.err
	}
	n, err := c.conn.Write(p)
	c.out = append(c.out, p[:n]...)
	return n, err
}

// detach ends all reading from the socket.
func (c *recordConn) detach() { c.detached = true }

// feed makes one record readable, after detach.
func (c *recordConn) feed(r record) { c.fed = r }

func (c *recordConn) readFed(p []byte) (int, error) {
	if len(c.fed) == 0 {
		return 0, errFed{}
	}
	n := copy(p, c.fed)
	c.fed = c.fed[n:]
	return n, nil
}

// errFed is what a Read beyond the fed record gets. crypto/tls gives up for good
// after any error that does not say it is temporary.
type errFed struct{}

func (errFed) Error() string   { return "no record left" }
func (errFed) Timeout() bool   { return true }
func (errFed) Temporary() bool { return true }

// Close does nothing. crypto/tls closes when a context ends; the connection is the
// caller's, and the context is watched elsewhere.
func (c *recordConn) Close() error { return nil }

func (c *recordConn) LocalAddr() net.Addr                { return c.conn.LocalAddr() }
func (c *recordConn) RemoteAddr() net.Addr               { return c.conn.RemoteAddr() }
func (c *recordConn) SetDeadline(t time.Time) error      { return c.conn.SetDeadline(t) }
func (c *recordConn) SetReadDeadline(t time.Time) error  { return c.conn.SetReadDeadline(t) }
func (c *recordConn) SetWriteDeadline(t time.Time) error { return c.conn.SetWriteDeadline(t) }
