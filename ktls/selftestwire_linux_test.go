// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"bytes"
	"errors"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// wire is a connection with keys in the kernel, in the hands of plain blocking system
// calls: from tx to rx, and back.
type wire struct {
	t      *testing.T
	suite  blob.CipherSuite
	tx, rx int
	info   []byte // the first key from tx to rx, as the kernel's option has it
}

func newWire(t *testing.T, suite blob.CipherSuite) *wire {
	t.Helper()
	p := ktlstest.NewPair(t)
	client, server := ktlstest.NewStates(t, suite, p)
	w := &wire{t: t, suite: suite, info: ktlstest.CryptoInfo(client.Write)}
	if _, err := ktls.Install(p.Client, client.Read, client.Write); err != nil {
		t.Fatal(err)
	}
	if _, err := ktls.Install(p.Server, server.Read, server.Write); err != nil {
		t.Fatal(err)
	}
	w.tx, w.rx = plainFD(t, p.Client), plainFD(t, p.Server)
	return w
}

// plainFD takes a socket from package net until the end of the test. A read that blocks
// ends after some seconds.
func plainFD(t *testing.T, c *net.TCPConn) int {
	t.Helper()
	fd, err := takeDescriptor(c)
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// pipes returns a pipe.
func pipes(t *testing.T) (r, w int) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Close(p[0])
		unix.Close(p[1])
	})
	return p[0], p[1]
}

// send sends all of p.
func (w *wire) send(p []byte, flags int) {
	w.t.Helper()
	sendAll(w.t, w.tx, p, flags)
}

func sendAll(t *testing.T, fd int, p []byte, flags int) {
	t.Helper()
	n, err := restarted(func() (int, error) { return unix.SendmsgN(fd, p, nil, nil, flags|unix.MSG_NOSIGNAL) })
	if n != len(p) || err != nil {
		t.Fatalf("sent %d bytes of %d, %v", n, len(p), err)
	}
}

// sendType sends a record of a type.
func (w *wire) sendType(kind byte, p []byte, flags int) error {
	w.t.Helper()
	oob, err := typeMessage(kind)
	if err != nil {
		w.t.Fatal(err)
	}
	n, err := restarted(func() (int, error) { return unix.SendmsgN(w.tx, p, oob, nil, flags|unix.MSG_NOSIGNAL) })
	if err == nil && n != len(p) {
		w.t.Fatalf("sent %d bytes of %d", n, len(p))
	}
	return err
}

// recv receives up to n bytes without room for a type.
func (w *wire) recv(n, flags int) ([]byte, error) {
	p := make([]byte, n)
	n, err := restarted(func() (int, error) {
		n, _, err := unix.Recvfrom(w.rx, p, flags)
		return n, err
	})
	return p[:n], err
}

// wants receives up to n bytes, which must be want.
func (w *wire) wants(want []byte, n, flags int) {
	w.t.Helper()
	if got, err := w.recv(n, flags); err != nil || !bytes.Equal(got, want) {
		w.t.Fatalf("received %d bytes, want %d, %v", len(got), len(want), err)
	}
}

// wantsNone: nothing is to be read now.
func (w *wire) wantsNone() {
	w.t.Helper()
	if got, err := w.recv(100, unix.MSG_DONTWAIT); err != unix.EAGAIN {
		w.t.Fatalf("received %d bytes, %v; want EAGAIN", len(got), err)
	}
}

// recvType receives up to n bytes with their type, which is 0 if none came.
func (w *wire) recvType(n, flags int) (kind byte, p []byte, err error) {
	p, oob := make([]byte, n), make([]byte, 64)
	var oobn int
	n, err = restarted(func() (n int, err error) {
		n, oobn, _, _, err = unix.Recvmsg(w.rx, p, oob, flags)
		return n, err
	})
	if oobn > 0 {
		kind = oob[unix.CmsgLen(0)]
	}
	return kind, p[:n], err
}

// wantsType receives a record of a type.
func (w *wire) wantsType(kind byte, want []byte, flags int) {
	w.t.Helper()
	if k, got, err := w.recvType(100, flags); k != kind || err != nil || !bytes.Equal(got, want) {
		w.t.Fatalf("received type %d and %d bytes, %v; want type %d and %d bytes", k, len(got), err, kind, len(want))
	}
}

func (w *wire) works(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// fails checks an error.
func (w *wire) fails(err, want error) {
	w.t.Helper()
	if !errors.Is(err, want) {
		w.t.Fatalf("%v, want %v", err, want)
	}
}

// readable polls for a while.
func (w *wire) readable() bool {
	w.t.Helper()
	fds := []unix.PollFd{{Fd: int32(w.rx), Events: unix.POLLIN}}
	n, err := restarted(func() (int, error) { return unix.Poll(fds, 20) })
	if err != nil {
		w.t.Fatal(err)
	}
	return n == 1 && fds[0].Revents&unix.POLLIN != 0
}

// splice moves n bytes between two descriptors.
func splice(from, to, n, flags int) (int, error) {
	return restarted(func() (int, error) {
		m, err := unix.Splice(from, nil, to, nil, n, flags)
		return int(m), err
	})
}

// setKey sets a key, by its option value.
func setKey(fd, option int, info []byte) error {
	return unix.SetsockoptString(fd, unix.SOL_TLS, option, string(info))
}

// newKey is another key for the connection, from record 0 on.
func (w *wire) newKey() []byte {
	w.t.Helper()
	client, _ := ktlstest.NewStates(w.t, w.suite, ktlstest.NewPair(w.t))
	return ktlstest.CryptoInfo(client.Write)
}
