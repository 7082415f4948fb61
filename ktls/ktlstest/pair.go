// SPDX-License-Identifier: Apache-2.0

package ktlstest

import (
	"context"
	"net"
	"testing"
)

// Pair is a TCP connection over loopback. Both ends are closed with the test.
type Pair struct {
	Client, Server *net.TCPConn
}

// Port is the server's port.
func (p *Pair) Port() int { return p.Server.LocalAddr().(*net.TCPAddr).Port }

// Listen returns a listener for plain TCP, without Multipath TCP, on loopback.
func Listen(t testing.TB) *net.TCPListener {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

// NewPair connects a new pair on a port of its own.
func NewPair(t testing.TB) *Pair {
	t.Helper()
	l := Listen(t)
	defer l.Close()
	return Connect(t, l)
}

// Connect connects a new pair over l, which nobody else accepts from.
func Connect(t testing.TB, l *net.TCPListener) *Pair {
	t.Helper()
	var d net.Dialer
	d.SetMultipathTCP(false)
	client, err := d.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	server, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return &Pair{client.(*net.TCPConn), server}
}
