// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A wire is a connection of which one end is managed.
type wire struct {
	*net.TCPConn
	peer   *net.TCPConn
	cookie uint64
}

// newWire connects over loopback, at an address of either family. The managed end is one that was accepted.
func (g *loadedGuard) newWire(t *testing.T, address string, moves ...move) *wire {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	peer, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{TCPConn: accepted.(*net.TCPConn), peer: peer.(*net.TCPConn)}
	t.Cleanup(func() {
		w.SetLinger(0)
		w.Close()
		peer.Close()
	})
	w.control(t, func(fd int) (err error) {
		w.cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		return err
	})
	g.put(t, w.cookie, moves...)
	return w
}

func (w *wire) control(t *testing.T, do func(fd int) error) {
	t.Helper()
	raw, err := w.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	if err := errors.Join(raw.Control(func(fd uintptr) { failed = do(int(fd)) }), failed); err != nil {
		t.Fatal(err)
	}
}

func (w *wire) send(t *testing.T, b []byte) {
	t.Helper()
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
}

// unsent is how much TCP holds that never left.
func (w *wire) unsent(t *testing.T) (n int) {
	t.Helper()
	w.control(t, func(fd int) (err error) { n, err = unix.IoctlGetInt(fd, unix.SIOCOUTQNSD); return err })
	return n
}

// received is what the peer has when it has so much, and what comes soon after.
func (w *wire) received(t *testing.T, want int) []byte {
	t.Helper()
	w.peer.SetReadDeadline(time.Now().Add(10 * time.Second))
	got := make([]byte, want)
	n, err := io.ReadFull(w.peer, got)
	if err != nil && want > 0 {
		t.Errorf("of %d bytes: %v", want, err)
		return got[:n]
	}
	w.peer.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	more, err := io.ReadAll(w.peer)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return append(got, more...)
}

// stopLog collects what is told of stops.
type stopLog struct {
	mu  sync.Mutex
	all []Stop
}

func (g *loadedGuard) collectStops(t *testing.T) *stopLog {
	log := &stopLog{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := g.Stops(ctx, func(s Stop) {
			log.mu.Lock()
			defer log.mu.Unlock()
			log.all = append(log.all, s)
		})
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return log
}

// of counts the events of a socket when there are as many as wanted, or after a while.
func (l *stopLog) of(cookie uint64, reason string, want int) (n int) {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		n = 0
		l.mu.Lock()
		for _, s := range l.all {
			if s.Socket == cookie && s.Reason == reason {
				n++
			}
		}
		l.mu.Unlock()
		if n >= want || time.Now().After(end) {
			return n
		}
	}
}
