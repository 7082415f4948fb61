// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

const suite12 = blob.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256

// newConns returns both ends of an installed pair as Conns. They are closed with the
// test.
func newConns(t testing.TB, suite blob.CipherSuite) (client, server *ktls.Conn) {
	t.Helper()
	ktlstest.Require(t)
	p := ktlstest.Installed(t, suite)
	return newConn(t, p.Client), newConn(t, p.Server)
}

// newConnsWith returns both ends of a connection with TLS 1.3, of which the server has
// settings.
func newConnsWith(t testing.TB, settings ktls.Settings) (client, server *ktls.Conn) {
	t.Helper()
	p, server := installedWith(t, settings)
	return newConn(t, p.Server), server
}

// installedWith returns a connection with TLS 1.3, and a Conn at its client's end, which
// has settings.
func installedWith(t testing.TB, settings ktls.Settings) (*ktlstest.Pair, *ktls.Conn) {
	t.Helper()
	ktlstest.Require(t)
	p := ktlstest.NewPair(t)
	client, server := ktlstest.NewStates(t, suite13, p)
	custody, info, err := settings.InstallKeeping(p.Client, client.Read, client.Write)
	if err != nil {
		t.Fatal(err)
	}
	custody.Destroy()
	if info.NoPad != settings.NoPad {
		t.Fatalf("%+v gave %v", settings, info)
	}
	if _, err := ktls.Install(p.Server, server.Read, server.Write); err != nil {
		t.Fatal(err)
	}
	return p, newConn(t, p.Client)
}

func newConn(t testing.TB, tcp *net.TCPConn) *ktls.Conn {
	t.Helper()
	c, err := ktls.NewConn(tcp)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.SetWriteDeadline(time.Now())
		c.Close()
	})
	return c
}

func TestBothDirectionsCarryEveryByte(t *testing.T) {
	for suite, size := range map[blob.CipherSuite]int{suite13: 64 << 20, suite12: 4 << 20} {
		t.Run(suite.String(), func(t *testing.T) {
			client, server := newConns(t, suite)
			var wg sync.WaitGroup
			for _, d := range [][2]*ktls.Conn{{client, server}, {server, client}} {
				block := make([]byte, 1<<20)
				rand.Read(block)
				expected := bytes.Clone(block)
				wg.Go(func() {
					for i := range size / len(block) {
						block[i]++ // no two blocks are the same
						if n, err := d[0].Write(block); n != len(block) || err != nil {
							t.Error(n, err)
						}
					}
					if err := d[0].CloseWrite(); err != nil {
						t.Error(err)
					}
				})
				wg.Go(func() {
					got := make([]byte, len(expected))
					for i := range size / len(expected) {
						expected[i]++
						if _, err := io.ReadFull(d[1], got); err != nil || !bytes.Equal(got, expected) {
							t.Errorf("block %d is not what was sent: %v", i, err)
							return
						}
					}
					if n, err := d[1].Read(got); n != 0 || err != io.EOF {
						t.Errorf("%d bytes more, %v", n, err)
					}
				})
			}
			wg.Wait()
		})
	}
}

// ticket is a NewSessionTicket message with n bytes of ticket.
func ticket(n int) []byte {
	body := append(make([]byte, 8), 1, 7, byte(n>>8), byte(n))
	body = append(append(body, make([]byte, n)...), 0, 0)
	return append([]byte{4, 0, byte(len(body) >> 8), byte(len(body))}, body...)
}

var keyUpdate = []byte{24, 0, 0, 1, 1}

type record struct {
	kind    byte
	content []byte
}

// A controlCase is what a bare peer sends between two records of data, and what that
// means for who follows no KeyUpdate.
type controlCase struct {
	name    string
	version blob.Version // 0: both
	records []record
	want    error // nil: reading goes on
	alert   byte  // what the peer is told, 0 if nothing
}

func controlCases() []controlCase {
	both := append(ticket(40), ticket(3)...)
	return []controlCase{
		{"close_notify", 0, []record{{21, []byte{1, 0}}}, io.EOF, 0},
		{"fatal close_notify", 0, []record{{21, []byte{2, 0}}}, io.EOF, 0},
		{"fatal alert", 0, []record{{21, []byte{2, 40}}}, &ktls.AlertError{Description: 40}, 0},
		{"warning in 1.3 is fatal", blob.TLS13, []record{{21, []byte{1, 42}}}, &ktls.AlertError{Description: 42}, 0},
		{"user_canceled", blob.TLS13, []record{{21, []byte{1, 90}}}, nil, 0},
		{"warning in 1.2", blob.TLS12, []record{{21, []byte{1, 100}}}, nil, 0},
		{"alert in two records", 0, []record{{21, []byte{1}}, {21, []byte{0}}}, io.EOF, 0},
		{"alert too long", 0, []record{{21, []byte{1, 0, 0}}}, ktls.ErrProtocol, 50},
		{"data within an alert", 0, []record{{21, []byte{1}}, {23, []byte("x")}}, ktls.ErrProtocol, 10},
		{"ticket", blob.TLS13, []record{{22, ticket(100)}}, nil, 0},
		{"two tickets in a record", blob.TLS13, []record{{22, both}}, nil, 0},
		{"ticket over records", blob.TLS13, []record{{22, both[:2]}, {22, both[2:30]}, {22, both[30:]}}, nil, 0},
		{"large ticket", blob.TLS13, []record{{22, ticket(50000)[:16000]}, {22, ticket(50000)[16000:32000]},
			{22, ticket(50000)[32000:48000]}, {22, ticket(50000)[48000:]}}, nil, 0},
		{"data within a ticket", blob.TLS13, []record{{22, both[:9]}, {23, []byte("x")}}, ktls.ErrProtocol, 10},
		{"alert within a ticket", blob.TLS13, []record{{22, both[:9]}, {21, []byte{1, 0}}}, ktls.ErrProtocol, 10},
		{"malformed ticket", blob.TLS13, []record{{22, []byte{4, 0, 0, 1, 0}}}, ktls.ErrProtocol, 50},
		{"huge message", blob.TLS13, []record{{22, []byte{4, 1, 0, 1}}}, ktls.ErrProtocol, 50},
		{"too many tickets", blob.TLS13, []record{{22, bytes.Repeat(ticket(1), 17)}}, ktls.ErrProtocol, 10},
		{"ticket in 1.2", blob.TLS12, []record{{22, ticket(10)}}, ktls.ErrProtocol, 10},
		{"KeyUpdate", blob.TLS13, []record{{22, keyUpdate}}, ktls.ErrKeyUpdate, 80},
		{"KeyUpdate behind a ticket", blob.TLS13, []record{{22, append(ticket(5), keyUpdate...)}}, ktls.ErrKeyUpdate, 80},
		{"malformed KeyUpdate", blob.TLS13, []record{{22, []byte{24, 0, 0, 1, 2}}}, ktls.ErrProtocol, 47},
		{"KeyUpdate in 1.2", blob.TLS12, []record{{22, keyUpdate}}, ktls.ErrProtocol, 10},
		{"HelloRequest", blob.TLS12, []record{{22, []byte{0, 0, 0, 0}}}, nil, 0},
		{"HelloRequest in 1.3", blob.TLS13, []record{{22, []byte{0, 0, 0, 0}}}, ktls.ErrProtocol, 10},
		{"ClientHello", 0, []record{{22, []byte{1, 0, 0, 1, 0}}}, ktls.ErrProtocol, 10},
		{"ChangeCipherSpec", 0, []record{{20, []byte{1}}}, ktls.ErrProtocol, 10},
		{"unknown type", 0, []record{{99, []byte("?")}}, ktls.ErrProtocol, 10},
	}
}

// TestControlRecords sends records from a bare peer, with "data" before and after.
func TestControlRecords(t *testing.T) {
	for _, c := range controlCases() {
		for _, suite := range []blob.CipherSuite{suite13, suite12} {
			if c.version != 0 && c.version != suite.Version() {
				continue
			}
			for _, size := range []int{1, 4096} {
				if size == 1 && c.name == "alert too long" {
					continue // its first two bytes are an alert
				}
				t.Run(fmt.Sprintf("%s, %v, buffer of %d", c.name, suite.Version(), size), func(t *testing.T) {
					ktlstest.Require(t)
					p := ktlstest.Installed(t, suite)
					conn := newConn(t, p.Client)
					sendRecord(t, p.Server, 23, []byte("before"))
					for _, r := range c.records {
						sendRecord(t, p.Server, r.kind, r.content)
					}
					if c.want != ktls.ErrKeyUpdate { // behind which nothing comes under this key
						sendRecord(t, p.Server, 23, []byte("after"))
					}
					checkControl(t, conn, size, c.want)
					if c.alert != 0 {
						kind, content, err := receiveRecord(t, p.Server)
						if kind != 21 || !bytes.Equal(content, []byte{2, c.alert}) {
							t.Errorf("the peer got type %d, %v, %v", kind, content, err)
						}
					}
				})
			}
		}
	}
}

func checkControl(t *testing.T, conn *ktls.Conn, size int, want error) {
	t.Helper()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	p := make([]byte, size)
	got := ""
	for range 100 {
		n, err := conn.Read(p)
		got += string(p[:n])
		if got == "beforeafter" && want == nil {
			return
		}
		if err == nil {
			continue
		}
		var alert *ktls.AlertError
		if errors.As(want, &alert) {
			if !errors.As(err, &alert) || *alert != *want.(*ktls.AlertError) {
				t.Errorf("%v, want %v", err, want)
			}
		} else if !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
		if got != "before" {
			t.Errorf("read %q", got)
		}
		if _, again := conn.Read(p); again != err {
			t.Errorf("the first error was %v, the second %v", err, again)
		}
		_, err = conn.Write([]byte("x"))
		if broken := want != io.EOF; broken != (err != nil) {
			t.Errorf("a write after it: %v", err)
		}
		return
	}
	t.Errorf("read %q, and no error", got)
}

func TestTruncation(t *testing.T) {
	t.Run("a FIN without close_notify", func(t *testing.T) {
		ktlstest.Require(t)
		p := ktlstest.Installed(t, suite13)
		conn := newConn(t, p.Client)
		p.Server.Write([]byte("text"))
		p.Server.CloseWrite()
		got, err := io.ReadAll(conn)
		if string(got) != "text" || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("a FIN within a record", func(t *testing.T) {
		ktlstest.Require(t)
		p := ktlstest.NewPair(t)
		client, _ := ktlstest.NewStates(t, suite13, p)
		if _, err := ktls.Install(p.Client, client.Read, client.Write); err != nil {
			t.Fatal(err)
		}
		p.Server.Write([]byte{23, 3, 3, 0, 100, 1, 2, 3})
		p.Server.CloseWrite()
		if n, err := newConn(t, p.Client).Read(make([]byte, 10)); n != 0 || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Error(n, err)
		}
	})
	t.Run("a FIN behind close_notify", func(t *testing.T) {
		client, server := newConns(t, suite13)
		server.Write([]byte("text"))
		server.Close()
		if got, err := io.ReadAll(client); string(got) != "text" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("a reset", func(t *testing.T) {
		ktlstest.Require(t)
		p := ktlstest.Installed(t, suite13)
		conn := newConn(t, p.Client)
		p.Server.SetLinger(0)
		p.Server.Close()
		_, err := conn.Read(make([]byte, 10))
		var op *net.OpError
		if !errors.As(err, &op) {
			t.Error(err)
		}
		if n, err := conn.Write([]byte("x")); err == nil {
			t.Errorf("a write of %d bytes succeeded on a reset connection", n)
		}
	})
}

// TestBadRecords has a peer without keys send what it likes.
func TestBadRecords(t *testing.T) {
	for _, c := range []struct {
		name  string
		bytes []byte
		alert byte
	}{
		{"a forged record", append([]byte{23, 3, 3, 0, 40}, make([]byte, 40)...), 20},
		{"a record too short", []byte{23, 3, 3, 0, 2, 0, 0}, 20},
		{"a ChangeCipherSpec in clear", []byte{20, 3, 3, 0, 1, 1}, 20},
		{"a record too long", append([]byte{23, 3, 3, 0x41, 0}, make([]byte, 100)...), 22},
		{"no TLS", []byte("GET / HTTP/1.1\r\n\r\n"), 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			ktlstest.Require(t)
			p := ktlstest.NewPair(t)
			client, server := ktlstest.NewStates(t, suite13, p)
			if _, err := ktls.Install(p.Client, client.Read, client.Write); err != nil {
				t.Fatal(err)
			}
			conn := newConn(t, p.Client)
			p.Server.Write(c.bytes)
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			for range 2 {
				if _, err := conn.Read(make([]byte, 100)); !errors.Is(err, ktls.ErrRecord) {
					t.Errorf("read: %v", err)
				}
			}
			if _, err := conn.Write([]byte("x")); !errors.Is(err, ktls.ErrRecord) {
				t.Errorf("write: %v", err)
			}
			if c.alert == 0 {
				return
			}
			if _, err := ktls.Install(p.Server, server.Read, server.Write); err != nil {
				t.Fatal(err)
			}
			kind, content, err := receiveRecord(t, p.Server)
			if kind != 21 || !bytes.Equal(content, []byte{2, c.alert}) {
				t.Errorf("the peer got type %d, %v, %v", kind, content, err)
			}
		})
	}
}

func TestDeadlines(t *testing.T) {
	client, server := newConns(t, suite13)
	client.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	_, err := client.Read(make([]byte, 1))
	var timeout net.Error
	if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("read: %v", err)
	}
	client.SetReadDeadline(time.Time{})
	exchange(t, server, client)

	data := make([]byte, 64<<20)
	client.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	n, err := client.Write(data)
	if !errors.Is(err, os.ErrDeadlineExceeded) || n == 0 {
		t.Errorf("write: %d, %v", n, err)
	}
	client.SetWriteDeadline(time.Time{})
	go func() {
		client.Write([]byte("more"))
		client.CloseWrite()
	}()
	if m, err := io.Copy(io.Discard, server); m != int64(n)+4 || err != nil {
		t.Errorf("%d bytes arrived of %d that were accepted, %v", m, n+4, err)
	}
}

func TestHalfClose(t *testing.T) {
	client, server := newConns(t, suite13)
	for range 2 {
		if err := client.CloseWrite(); err != nil {
			t.Error(err)
		}
	}
	if _, err := client.Write([]byte("x")); !errors.Is(err, ktls.ErrClosedWrite) {
		t.Error(err)
	}
	if got, err := io.ReadAll(server); len(got) != 0 || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	exchange(t, server, client)
}

// wrapped is a connection that carries facts of its own.
type wrapped struct{ net.Conn }

func (w *wrapped) NetConn() net.Conn { return w.Conn }

type wrapListener struct {
	net.Listener
	conns []net.Conn
}

func (l *wrapListener) Accept() (net.Conn, error) {
	c := l.conns[0]
	l.conns = l.conns[1:]
	return c, nil
}

func TestListener(t *testing.T) {
	ktlstest.Require(t)
	good, bad := ktlstest.Installed(t, suite13), ktlstest.NewPair(t)
	inner := &wrapped{good.Server}
	l := ktls.NewListener(&wrapListener{conns: []net.Conn{&wrapped{bad.Server}, inner}})
	_, err := l.Accept()
	var temporary interface{ Temporary() bool }
	if !errors.Is(err, ktls.ErrNoKeys) || !errors.As(err, &temporary) || !temporary.Temporary() {
		t.Errorf("a socket without keys: %v", err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.(*ktls.Conn).NetConn() != inner {
		t.Error("the inner connection is lost")
	}
	exchange(t, c, good.Client)
}

func TestAConcurrentCloseWakesReaderAndWriter(t *testing.T) {
	client, _ := newConns(t, suite13)
	data := make([]byte, 64<<20)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read: %v", err)
		}
	})
	wg.Go(func() {
		if _, err := client.Write(data); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write: %v", err)
		}
	})
	time.Sleep(500 * time.Millisecond)
	client.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	start := time.Now()
	// Whether TCP could take all of it is up to its buffers.
	if err := client.Close(); err != nil && !errors.Is(err, ktls.ErrUndelivered) {
		t.Errorf("close: %v", err)
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("Close took %v", took)
	}
	wg.Wait()
	if err := client.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second close: %v", err)
	}
	for name, err := range map[string]error{
		"deadline": client.SetDeadline(time.Now()), "close write": client.CloseWrite(),
	} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
