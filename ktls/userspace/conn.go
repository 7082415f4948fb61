// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
)

// Conn is a net.Conn whose records are made in this process. What it does is what
// ktls.Conn does.
//
// It counts the records that it writes. Before a key has protected as many as its AEAD
// may (RFC 8446, Section 5.5), it changes the key, and in TLS 1.2, which cannot, fails
// Write with ktls.ErrRecordLimit. It follows the KeyUpdates of the peer.
//
// Read returns application data only. close_notify is io.EOF; a FIN without it is
// io.ErrUnexpectedEOF, since anybody on the path could have sent that; another alert is a
// *ktls.AlertError. Session tickets are dropped. The first such error is final.
//
// One goroutine may read while another writes, and Close may be called from
// anywhere.
type Conn struct {
	inner   net.Conn
	tcp     *net.TCPConn
	version blob.Version

	in  input
	out output

	deadlines struct {
		sync.Mutex
		write  time.Time
		closed bool
	}
}

// NewConn takes over a connection whose states were exported: a *net.TCPConn, or what
// has one below and tells by a method NetConn. Its next byte has to be the first of a
// record.
//
// It consumes both states, whether it succeeds or not: after it failed nobody can go on
// with the connection, which the caller closes. It refuses states of another socket, and a
// socket that has keys in the kernel.
func NewConn(inner net.Conn, read, write *blob.State) (*Conn, error) {
	tcp, err := ktls.TCPConn(inner)
	if err == nil {
		if err = ktls.CheckStates(tcp, read, write); err != nil {
			err = fmt.Errorf("take over TLS keys: %w", err)
		}
	}
	if err != nil {
		read.Destroy()
		write.Destroy()
		return nil, err
	}
	return NewCheckedConn(inner, read, write)
}

// NewCheckedConn is NewConn for states and a socket that ktls.CheckStates has passed in the
// process which they come from: where a guard keeps others from asking for keys, it alone
// can tell that there are none.
func NewCheckedConn(inner net.Conn, read, write *blob.State) (*Conn, error) {
	defer read.Destroy()
	defer write.Destroy()
	tcp, err := ktls.TCPConn(inner)
	if err != nil {
		return nil, err
	}
	c := &Conn{inner: inner, tcp: tcp, version: read.Version}
	c.in.rules = ktls.NewRules(c.version)
	c.out.limit = ktls.RecordLimit(write.Suite.AEAD())
	if c.in.key, err = newKey(read); err != nil {
		return nil, err
	}
	if c.out.key, err = newKey(write); err != nil {
		c.in.key.destroy()
		return nil, err
	}
	return c, nil
}

// NetConn returns the connection below, as it was given to NewConn. What is written to it
// leaves in clear.
func (c *Conn) NetConn() net.Conn { return c.inner }

// LocalAddr returns the local address.
func (c *Conn) LocalAddr() net.Addr { return c.inner.LocalAddr() }

// RemoteAddr returns the peer's address.
func (c *Conn) RemoteAddr() net.Addr { return c.inner.RemoteAddr() }

// Format writes the addresses for every verb: what a Conn has in its buffers is nobody
// else's.
func (c *Conn) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "TLS in user space, %v to %v", c.LocalAddr(), c.RemoteAddr())
}

// SetDeadline is SetReadDeadline and SetWriteDeadline.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline is that of net.Conn. A Read that timed out may be repeated.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.deadlines.Lock()
	defer c.deadlines.Unlock()
	if c.deadlines.closed {
		return c.opError("set", net.ErrClosed)
	}
	return c.tcp.SetReadDeadline(t)
}

// SetWriteDeadline is that of net.Conn. A Write that timed out may be continued: a
// record of which TCP took a part is finished by whatever writes next. Close waits for the
// peer until then.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.deadlines.Lock()
	defer c.deadlines.Unlock()
	if c.deadlines.closed {
		return c.opError("set", net.ErrClosed)
	}
	c.deadlines.write = t
	return c.tcp.SetWriteDeadline(t)
}

func (c *Conn) closed() bool {
	c.deadlines.Lock()
	defer c.deadlines.Unlock()
	return c.deadlines.closed
}

// expired reports whether the write deadline has passed.
func (c *Conn) expired() bool {
	c.deadlines.Lock()
	defer c.deadlines.Unlock()
	return !c.deadlines.write.IsZero() && !time.Now().Before(c.deadlines.write)
}

// opError puts what we were doing before an error of the socket, as package net
// does. Errors of TLS and io.EOF stay bare.
func (c *Conn) opError(op string, err error) error {
	var below *net.OpError
	if errors.As(err, &below) {
		err = below.Err
	}
	if errors.Is(err, os.ErrDeadlineExceeded) && op != "set" && c.closed() {
		// Close woke us up by means of the deadline.
		err = net.ErrClosed
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// copyBuffer is the buffer of a copy in bytes: eight records.
const copyBuffer = 8 * maxContent

// ReadFrom writes what it reads from r until the end of it.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) { return copyBetween(c, r) }

// WriteTo reads application data until close_notify and writes it to w.
func (c *Conn) WriteTo(w io.Writer) (int64, error) { return copyBetween(w, c) }

// copyBetween is io.Copy with a large buffer, cleared, and without ReadFrom and WriteTo.
func copyBetween(w io.Writer, r io.Reader) (int64, error) {
	buffer := make([]byte, copyBuffer)
	defer clear(buffer)
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, buffer)
}

var (
	_ io.WriterTo   = (*Conn)(nil)
	_ io.ReaderFrom = (*Conn)(nil)
)
