// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"crypto/tls"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

func TestStatesAreBoundToTheirSocket(t *testing.T) {
	for name, wrap := range map[string]func(net.Conn) net.Conn{
		"the socket":     func(c net.Conn) net.Conn { return c },
		"wrapped twice":  func(c net.Conn) net.Conn { return wrappedConn{wrappedConn{c}} },
		"embedding it":   func(c net.Conn) net.Conn { return struct{ *net.TCPConn }{c.(*net.TCPConn)} },
		"held and split": func(c net.Conn) net.Conn { return &heldConn{TCPConn: c.(*net.TCPConn), gate: closed()} },
	} {
		ours, theirs := tcpPair(t)
		raw, _ := ours.SyscallConn()
		var want uint64
		raw.Control(func(fd uintptr) { want, _ = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE) })
		go tls.Client(theirs, clientTLS()).Handshake()
		s, err := Server(testContext(t), wrap(ours), &Config{TLS: serverTLS()})
		if err != nil || want == 0 || s.Read.Cookie != want || s.Write.Cookie != want {
			t.Errorf("%s: %v, %v; want cookie %d", name, s, err, want)
		}
		if err := s.Read.Validate(); err != nil {
			t.Error(err)
		}
	}
}

func closed() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

func TestAUnixSocketIsNoSocket(t *testing.T) {
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	theirs, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ours, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	go tls.Client(theirs, clientTLS()).Handshake()
	s, err := Server(testContext(t), ours, &Config{TLS: serverTLS()})
	if err != nil || s.Read.Cookie != 0 {
		t.Error(s, err)
	}
}
