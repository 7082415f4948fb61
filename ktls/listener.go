// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"fmt"
	"net"
)

// NewListener wraps the connections that inner accepts, which have their keys in
// the kernel already, as [Conn]. [Conn.NetConn] returns what inner accepted. What has a
// method RelayedTLS is data already, and returned as it is.
//
// If a connection cannot be wrapped, it is closed and Accept returns a temporary
// error, as net.Error defines it: the next Accept may succeed.
func NewListener(inner net.Listener) net.Listener { return &listener{inner} }

type listener struct{ net.Listener }

func (l *listener) Accept() (net.Conn, error) {
	inner, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if _, ok := inner.(interface{ RelayedTLS() }); ok {
		return inner, nil
	}
	c, err := NewConn(inner)
	if err != nil {
		inner.Close()
		return nil, &acceptError{err}
	}
	return c, nil
}

// acceptError concerns one connection and not the listener.
type acceptError struct{ err error }

func (e *acceptError) Error() string   { return fmt.Sprintf("accept: %v", e.err) }
func (e *acceptError) Unwrap() error   { return e.err }
func (e *acceptError) Timeout() bool   { return false }
func (e *acceptError) Temporary() bool { return true }

// tcpConn finds the TCP connection in c or below it.
func tcpConn(c net.Conn) (*net.TCPConn, error) {
	for {
		switch v := c.(type) {
		case *net.TCPConn:
			return v, nil
		case interface{ NetConn() net.Conn }:
			c = v.NetConn()
		default:
			return nil, fmt.Errorf("%T: %w", c, ErrNotTCP)
		}
	}
}
