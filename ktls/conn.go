// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/offloadd/offloadd/blob"
)

// Conn is a net.Conn over a socket whose keys are in the kernel.
//
// It takes over a duty that crypto/tls had: a key of AES-GCM may protect about
// 2^24.5 records (RFC 8446, Section 5.5), some 370 GB, and the kernel does not
// count. Conn keeps an upper bound of the records it writes, starting at zero. Before
// it passes the limit it changes the key, if it can ([NewConnKeeping]), or else fails
// Write with ErrRecordLimit. Whoever writes to the socket by other means has to count
// for himself.
//
// Read returns application data only. close_notify is io.EOF; a FIN without it is
// io.ErrUnexpectedEOF, since anybody on the path could have sent that; another alert is an
// *AlertError. Session tickets are dropped. The first such error is final.
//
// One goroutine may read while another writes, and Close may be called from
// anywhere.
type Conn struct {
	inner   net.Conn
	tcp     *net.TCPConn
	raw     syscall.RawConn
	version blob.Version

	in  input
	out output

	// custody has the secrets that the keys change to, nil if this Conn has none. The
	// half of each direction is under the lock of that direction.
	custody *Custody
	// ask asks who has the custody instead; nil if nobody can be asked.
	ask func(blob.Question) (blob.Answer, error)

	deadlines struct {
		sync.Mutex
		write  time.Time
		closed bool
	}
}

// NewConn takes over an installed socket: a *net.TCPConn, or what has one below and
// tells by a method NetConn. It refuses a socket of which a direction
// has no key, and asks for no key. Where a security module forbids to ask even whether
// there is one, it takes that for a yes.
//
// A socket that was handed over may come with the facts of its handshake, by a method
// TLSFacts; then the kernel is not asked. By a method TLSAsk it may come with somebody
// who has its custody; then the Conn follows the KeyUpdates of the peer, and changes its own
// key before the AEAD's limit, with his help.
func NewConn(inner net.Conn) (*Conn, error) {
	tcp, err := tcpConn(inner)
	if err != nil {
		return nil, err
	}
	c := &Conn{inner: inner, tcp: tcp}
	if c.raw, err = tcp.SyscallConn(); err != nil {
		return nil, err
	}
	var aead blob.AEAD
	content := maxRecordContent
	err = control(tcp, func(fd int) (err error) {
		if f := factsOf(inner); f != nil {
			c.version, aead = f.Version, f.Suite.AEAD()
		} else if c.version, aead, err = installed(fd); err != nil {
			return err
		}
		content = recordContent(fd)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if aead == 0 || c.version != blob.TLS12 && c.version != blob.TLS13 {
		return nil, fmt.Errorf("%w: %v with an unknown cipher", ErrSuite, c.version)
	}
	if a, ok := inner.(interface {
		TLSAsk(blob.Question) (blob.Answer, error)
	}); ok && c.version == blob.TLS13 {
		c.ask, c.in.control.follows = oneByOne(a.TLSAsk), true
	}
	c.in.control.version = c.version
	c.in.receive = c.in.receiver()
	c.out.counter = newRecordCounter(aead, content)
	return c, nil
}

func factsOf(c net.Conn) *blob.Facts {
	if f, ok := c.(interface{ TLSFacts() *blob.Facts }); ok {
		return f.TLSFacts()
	}
	return nil
}

// installed returns what the keys of a socket are for, and refuses one of which a
// direction has none.
func installed(fd int) (version blob.Version, aead blob.AEAD, err error) {
	for _, option := range []int{optRX, optTX} {
		header, err := keyHeader(fd, option)
		if errors.Is(err, syscall.EPERM) {
			return guarded(fd)
		}
		if err != nil {
			return 0, 0, explain(opAskKey, "ask for "+optionName(option), err)
		}
		version, aead = decodeHeader(header)
	}
	return version, aead, nil
}

// guarded is installed for a socket that a security module guards: nobody but the
// owner of its keys may ask anything about them. Who guards a socket has put both keys
// in. The version shows by an option that only TLS 1.3 has; of the AEADs, AES-GCM has
// the lowest limit.
func guarded(fd int) (blob.Version, blob.AEAD, error) {
	switch _, err := expectsNoPad(fd); {
	case err == nil:
		return blob.TLS13, blob.AES128GCM, nil
	case errors.Is(err, syscall.EINVAL):
		return blob.TLS12, blob.AES128GCM, nil
	default:
		return 0, 0, explain(opAskKey, "ask for the version", err)
	}
}

// NetConn returns the connection below, as it was given to NewConn or accepted by
// the listener below. Writing to it, or reading from it, is not what one wants.
func (c *Conn) NetConn() net.Conn { return c.inner }

// SyscallConn returns the raw connection, for questions to the socket.
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return rawConn{c.raw}, nil }

// rawConn hides all but the methods of syscall.RawConn. Those of package net's type
// let (*os.File).WriteTo, which io.Copy calls, find the socket and call sendfile past
// this Conn, its write lock and its record limit.
type rawConn struct{ syscall.RawConn }

// LocalAddr returns the local address.
func (c *Conn) LocalAddr() net.Addr { return c.inner.LocalAddr() }

// RemoteAddr returns the peer's address.
func (c *Conn) RemoteAddr() net.Addr { return c.inner.RemoteAddr() }

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

// SetWriteDeadline is that of net.Conn. A Write that timed out may be continued:
// records are whole or not at all. Close waits for the peer until then.
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

var (
	_ io.WriterTo   = (*Conn)(nil)
	_ io.ReaderFrom = (*Conn)(nil)
)
