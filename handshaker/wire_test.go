// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
)

// heldConn lets nothing of the peer's second flight through before the gate opens,
// and then splits it at one byte.
type heldConn struct {
	*net.TCPConn
	gate         <-chan struct{}
	wrote        bool
	split, taken int // bytes of the second flight
}

func (c *heldConn) Write(p []byte) (int, error) {
	c.wrote = true
	return c.TCPConn.Write(p)
}

func (c *heldConn) Read(p []byte) (int, error) {
	if !c.wrote {
		return c.TCPConn.Read(p)
	}
	<-c.gate
	if c.taken < c.split {
		p = p[:min(len(p), c.split-c.taken)]
	}
	n, err := c.TCPConn.Read(p)
	c.taken += n
	return n, err
}

func TestDataBehindFinishedStaysInTheSocketHoweverItIsSplit(t *testing.T) {
	for _, version := range versions {
		t.Run(version.String(), func(t *testing.T) {
			for split, total := 0, 1; split < total; split++ {
				total = dataBehindFinished(t, version, split)
			}
		})
	}
}

// dataBehindFinished lets a client send data together with its Finished, as far as
// its version lets it, and returns how long the flight is.
func dataBehindFinished(t *testing.T, version blob.Version, split int) (total int) {
	t.Helper()
	ours, theirs := tcpPair(t)
	defer ours.Close()
	defer theirs.Close()
	gate := make(chan struct{})
	server, client := serverTLS(), clientTLS()
	server.MaxVersion = uint16(version)
	client.CurvePreferences = []tls.CurveID{tls.X25519}
	if version == blob.TLS12 {
		// Only in a resumed handshake a TLS 1.2 client may speak right behind Finished.
		client.ClientSessionCache = warmCache(t, server, client)
	}
	peer := tls.Client(theirs, client)
	data := []byte("early data of the application")
	sent := make(chan error, 1)
	go func() {
		defer close(gate)
		_, err := peer.Write(data)
		if err == nil {
			_, err = peer.Write(data)
		}
		sent <- err
	}()
	conn := &heldConn{TCPConn: ours, gate: gate, split: split}
	s, err := Server(testContext(t), conn, &Config{TLS: server})
	if err != nil {
		t.Fatalf("split at %d: %v", split, err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	// All of the data, as records from the first byte on, is still to be read.
	ours.SetReadDeadline(time.Now().Add(5 * time.Second))
	got, err := newRecordLayer(ours, s).receiveData(2 * len(data))
	if err != nil || !bytes.Equal(got, append(data, data...)) {
		t.Fatalf("split at %d: after the hand-over: %q, %v", split, got, err)
	}
	return conn.taken + 2*(len(data)+22)
}

// warmCache returns a session cache after one connection.
func warmCache(t *testing.T, server, client *tls.Config) tls.ClientSessionCache {
	t.Helper()
	client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	meet(t, blob.Server, &Config{TLS: server}, client)
	return client.ClientSessionCache
}

// closingConn closes after so many bytes were written to it.
type closingConn struct {
	net.Conn
	left int
}

func (c *closingConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p[:min(len(p), c.left)])
	if c.left -= n; c.left == 0 && err == nil {
		c.Close()
		err = io.ErrClosedPipe
	}
	return n, err
}

func TestAPeerThatLeavesAtAnyByteIsNoSuccess(t *testing.T) {
	for _, version := range versions {
		for _, role := range roles {
			t.Run(fmt.Sprintf("%v %v", role, version), func(t *testing.T) {
				server, client := serverTLS(), clientTLS()
				server.Certificates = []tls.Certificate{certs().rsa} // signatures of equal length
				server.MaxVersion, server.SessionTicketsDisabled = uint16(version), true
				client.CurvePreferences = []tls.CurveID{tls.X25519}
				c := map[blob.Role]*tls.Config{blob.Server: server, blob.Client: client}
				m := meet(t, role, &Config{TLS: c[role]}, c[otherRole(role)])
				total := len(m.h.wire.in)
				for n := 1; n < total; n += 7 {
					leaveAfter(t, role, c, n)
				}
				leaveAfter(t, role, c, total-1)
			})
		}
	}
}

func leaveAfter(t *testing.T, role blob.Role, c map[blob.Role]*tls.Config, n int) {
	t.Helper()
	ours, theirs := tcpPair(t)
	defer ours.Close()
	go func() {
		tlsConn(otherRole(role), &closingConn{theirs, n}, c[otherRole(role)]).Handshake()
		theirs.Close()
	}()
	s, err := start(testContext(t), role, ours, &Config{TLS: c[role]})
	if s != nil || !errors.Is(err, ErrHandshake) {
		t.Errorf("peer left after %d bytes: %v, %v", n, s, err)
	}
}

func TestGarbageIsNoSuccess(t *testing.T) {
	for _, role := range roles {
		for name, b := range map[string][]byte{
			"HTTP":             []byte("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"),
			"SSH":              []byte("SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"),
			"SSLv2":            {0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10, 1, 0, 0x80},
			"zeros":            make([]byte, 1000),
			"an alert":         {21, 3, 3, 0, 2, 2, 40},
			"a long record":    {22, 3, 3, 0xff, 0xff, 1, 0, 0, 0},
			"empty records":    bytes.Repeat([]byte{22, 3, 3, 0, 0}, 100),
			"application data": {23, 3, 3, 0, 4, 1, 2, 3, 4},
		} {
			ours, theirs := tcpPair(t)
			go func() {
				theirs.Write(b)
				theirs.CloseWrite()
				io.Copy(io.Discard, theirs)
			}()
			s, err := start(testContext(t), role, ours, &Config{TLS: template(role)})
			if s != nil || errors.Is(err, ErrHandshake) == errors.Is(err, ErrPeer) {
				t.Errorf("%v, %s: %v", role, name, err)
			}
			if _, err := ours.Write([]byte("x")); err != nil && errors.Is(err, net.ErrClosed) {
				t.Errorf("%v, %s: the connection was closed", role, name)
			}
		}
	}
}

func TestTheEndOfAContextInterrupts(t *testing.T) {
	for _, role := range roles {
		for _, silent := range []string{"over TCP", "over a pipe that takes nothing"} {
			ours, theirs := net.Pipe()
			if silent == "over TCP" {
				a, b := tcpPair(t)
				ours, theirs = a, b
			}
			defer theirs.Close()
			for name, tt := range map[string]struct {
				ctx  func() (context.Context, context.CancelFunc)
				want error
			}{
				"deadline": {func() (context.Context, context.CancelFunc) {
					return context.WithTimeout(context.Background(), 20*time.Millisecond)
				}, context.DeadlineExceeded},
				"cancellation": {func() (context.Context, context.CancelFunc) {
					ctx, cancel := context.WithCancel(context.Background())
					time.AfterFunc(20*time.Millisecond, cancel)
					return ctx, cancel
				}, context.Canceled},
				"ended before": {func() (context.Context, context.CancelFunc) {
					ctx, cancel := context.WithCancel(context.Background())
					cancel()
					return ctx, cancel
				}, context.Canceled},
			} {
				ctx, cancel := tt.ctx()
				began := time.Now()
				s, err := start(ctx, role, ours, &Config{TLS: template(role)})
				cancel()
				if s != nil || !errors.Is(err, tt.want) || !errors.Is(err, ErrHandshake) || time.Since(began) > 5*time.Second {
					t.Errorf("%v, %s, %s: %v after %v", role, silent, name, err, time.Since(began))
				}
			}
			ours.Close()
		}
	}
}

func TestNoDeadlineIsLeft(t *testing.T) {
	t.Parallel()
	ours, theirs := tcpPair(t)
	ours.SetDeadline(time.Now().Add(time.Second))
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	peer := tls.Client(theirs, clientTLS())
	go peer.Handshake()
	if _, err := Server(ctx, ours, &Config{TLS: serverTLS()}); err != nil {
		t.Fatal(err)
	}
	go func() {
		time.Sleep(1200 * time.Millisecond)
		peer.Write([]byte("late"))
	}()
	if _, err := ours.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

// wrappedConn is how other packages wrap connections.
type wrappedConn struct{ net.Conn }

func (w wrappedConn) NetConn() net.Conn { return w.Conn }

func TestWithoutASocketTheCookieIsZero(t *testing.T) {
	ours, theirs := net.Pipe()
	go tls.Client(theirs, clientTLS()).Handshake()
	s, err := Server(testContext(t), ours, &Config{TLS: serverTLS()})
	if err != nil || s.Read.Cookie != 0 || s.Write.Cookie != 0 {
		t.Error(s, err)
	}
}
