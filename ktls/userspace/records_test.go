// SPDX-License-Identifier: Apache-2.0

package userspace_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/userspace"
)

type record struct {
	kind    byte
	content []byte
}

// TestControlRecords has the peer send records between "before" and "after".
func TestControlRecords(t *testing.T) {
	both := append(ticket(40), ticket(3)...)
	for _, c := range []struct {
		name    string
		version blob.Version
		records []record
		want    error // nil: reading goes on
		alert   byte  // what the peer is told, 0 if nothing
	}{
		{"close_notify", 0, []record{{21, []byte{1, 0}}}, io.EOF, 0},
		{"fatal close_notify", 0, []record{{21, []byte{2, 0}}}, io.EOF, 0},
		{"fatal alert", 0, []record{{21, []byte{2, 40}}}, &ktls.AlertError{Description: 40}, 0},
		{"warning in 1.3 is fatal", blob.TLS13, []record{{21, []byte{1, 42}}}, &ktls.AlertError{Description: 42}, 0},
		{"user_canceled", blob.TLS13, []record{{21, []byte{1, 90}}}, nil, 0},
		{"warning in 1.2", blob.TLS12, []record{{21, []byte{1, 100}}}, nil, 0},
		{"alert in two records", 0, []record{{21, []byte{1}}, {21, []byte{0}}}, io.EOF, 0},
		{"alert too long", 0, []record{{21, []byte{1, 0, 0}}}, ktls.ErrProtocol, 50},
		{"empty alert", 0, []record{{21, nil}}, ktls.ErrProtocol, 10},
		{"data within an alert", 0, []record{{21, []byte{1}}, {23, []byte("x")}}, ktls.ErrProtocol, 10},
		{"empty data", 0, []record{{23, nil}, {23, nil}}, nil, 0},
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
		{"malformed KeyUpdate", blob.TLS13, []record{{22, []byte{24, 0, 0, 1, 2}}}, ktls.ErrProtocol, 47},
		{"message behind a KeyUpdate", blob.TLS13, []record{{22, append([]byte{24, 0, 0, 1, 0}, ticket(5)...)}}, ktls.ErrProtocol, 10},
		{"old key behind a KeyUpdate", blob.TLS13, []record{{22, []byte{24, 0, 0, 1, 0}}}, ktls.ErrRecord, 20},
		{"KeyUpdate in 1.2", blob.TLS12, []record{{22, []byte{24, 0, 0, 1, 0}}}, ktls.ErrProtocol, 10},
		{"HelloRequest", blob.TLS12, []record{{22, []byte{0, 0, 0, 0}}}, nil, 0},
		{"HelloRequest in 1.3", blob.TLS13, []record{{22, []byte{0, 0, 0, 0}}}, ktls.ErrProtocol, 10},
		{"ClientHello", 0, []record{{22, []byte{1, 0, 0, 1, 0}}}, ktls.ErrProtocol, 10},
		{"ChangeCipherSpec", 0, []record{{20, []byte{1}}}, ktls.ErrProtocol, 10},
		{"unknown type", 0, []record{{99, []byte("?")}}, ktls.ErrProtocol, 10},
	} {
		for _, suite := range aeadSuites {
			if c.version != 0 && c.version != suite.Version() {
				continue
			}
			for _, padding := range []int{0, 300} {
				t.Run(fmt.Sprintf("%s, %v, padding of %d", c.name, suite, padding), func(t *testing.T) {
					conn, theirs := newPeer(t, suite)
					theirs.padding = padding
					theirs.send(t, 23, []byte("before"))
					for _, r := range c.records {
						theirs.send(t, r.kind, r.content)
					}
					theirs.send(t, 23, []byte("after"))
					checkReads(t, conn, c.want)
					if c.alert != 0 {
						expectAlert(t, theirs, c.alert)
					}
				})
			}
		}
	}
}

// checkReads reads "before", and "after" or an error that is final.
func checkReads(t *testing.T, conn *userspace.Conn, want error) {
	t.Helper()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	p := make([]byte, 3)
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
		if !sameError(err, want) {
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

func sameError(err, want error) bool {
	var got, expected *ktls.AlertError
	if errors.As(want, &expected) {
		return errors.As(err, &got) && *got == *expected
	}
	return errors.Is(err, want)
}

// expectAlert reads to the alert, behind which nothing comes.
func expectAlert(t *testing.T, theirs *peer, alert byte) {
	t.Helper()
	kind, content, err := theirs.receive()
	if kind != 21 || !bytes.Equal(content, []byte{2, alert}) {
		t.Errorf("the peer got type %d, %v, %v", kind, content, err)
	}
}

// TestBadRecords: every way in which a record is none (RFC 8446, Section 5; RFC 5246,
// Section 6.2.3), and the alert for it.
func TestBadRecords(t *testing.T) {
	header := func(kind byte, size int, rest int) []byte {
		return append([]byte{kind, 3, 3, byte(size >> 8), byte(size)}, make([]byte, rest)...)
	}
	seal := func(size int) func(p *peer) []byte {
		return func(p *peer) []byte { return p.seal(23, make([]byte, size)) }
	}
	for _, c := range []struct {
		name  string
		suite blob.CipherSuite // 0: all
		bytes func(p *peer) []byte
		alert byte
	}{
		{"a forged record", 0, func(*peer) []byte { return header(23, 40, 40) }, 20},
		{"a bit of the tag", 0, func(p *peer) []byte { b := p.seal(23, []byte("x")); b[len(b)-1] ^= 1; return b }, 20},
		{"a bit of the content", 0, func(p *peer) []byte { b := p.seal(23, make([]byte, 99)); b[60] ^= 4; return b }, 20},
		{"a type that was changed", suite12, func(p *peer) []byte { b := p.seal(23, []byte{1, 0}); b[0] = 21; return b }, 20},
		{"a record twice", 0, func(p *peer) []byte {
			b := p.seal(23, []byte{})
			return append(b, b...)
		}, 20},
		{"a record left out", 0, func(p *peer) []byte { p.seal(23, []byte("lost")); return p.seal(23, []byte("next")) }, 20},
		{"a record too short", 0, func(*peer) []byte { return header(23, 15, 15) }, 20},
		{"a record of no length", 0, func(*peer) []byte { return header(23, 0, 0) }, 20},
		{"as long as a tag and no longer, authentic", suite13, func(p *peer) []byte { return p.sealInner(nil) }, 10},
		{"nothing but padding", suite13, func(p *peer) []byte { return p.sealInner(make([]byte, 100)) }, 10},
		{"a ChangeCipherSpec in clear", suite13, func(*peer) []byte { return []byte{20, 3, 3, 0, 1, 1} }, 10},
		{"an alert in clear", suite13, func(*peer) []byte { return []byte{21, 3, 3, 0, 2, 1, 0} }, 10},
		{"an alert in clear", suite12, func(*peer) []byte { return []byte{21, 3, 3, 0, 2, 1, 0} }, 20},
		{"one byte too much", suite13, seal(16385), 22},
		{"one byte too much", suite12, seal(16385), 22},
		{"one byte too much", blob.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, seal(16385), 22},
		{"padding beyond the limit", suite13, func(p *peer) []byte { p.padding = 100; return p.seal(23, make([]byte, 16300)) }, 22},
		{"a record too long", 0, func(*peer) []byte { return header(23, 0x4100, 100) }, 22},
		{"the longest there is", 0, func(*peer) []byte { return header(23, 0xffff, 100) }, 22},
		{"another version", 0, func(p *peer) []byte { b := p.seal(23, []byte("x")); b[2] = 1; return b }, 50},
		{"no TLS", 0, func(*peer) []byte { return []byte("GET / HTTP/1.1\r\n\r\n") }, 50},
	} {
		for _, suite := range aeadSuites {
			if c.suite != 0 && c.suite != suite {
				continue
			}
			t.Run(fmt.Sprintf("%s, %v", c.name, suite), func(t *testing.T) {
				conn, theirs := newPeer(t, suite)
				theirs.Write(append(theirs.seal(23, []byte("good")), c.bytes(theirs)...))
				conn.SetDeadline(time.Now().Add(10 * time.Second))
				got := make([]byte, 100)
				if n, err := conn.Read(got); string(got[:n]) != "good" || err != nil {
					t.Fatalf("%q, %v", got[:n], err)
				}
				for range 2 {
					if n, err := conn.Read(got); n != 0 || !errors.Is(err, ktls.ErrRecord) {
						t.Errorf("read %d bytes, %v", n, err)
					}
				}
				if _, err := conn.Write([]byte("x")); !errors.Is(err, ktls.ErrRecord) {
					t.Errorf("write: %v", err)
				}
				if err := conn.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
				expectAlert(t, theirs, c.alert)
				if _, _, err := theirs.receive(); err != io.EOF {
					t.Errorf("behind the alert: %v", err)
				}
			})
		}
	}
}

// TestRecordsOfEverySize: up to the largest, and padded up to the limit.
func TestRecordsOfEverySize(t *testing.T) {
	for _, suite := range aeadSuites {
		t.Run(suite.String(), func(t *testing.T) {
			conn, theirs := newPeer(t, suite)
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			sizes := []int{1, 2, 15, 16, 17, 255, 256, 4095, 8192, 16383, 16384}
			go func() {
				for _, size := range sizes {
					for _, padding := range []int{0, 1, 16384 - size} {
						theirs.padding = min(padding, 16384-size)
						theirs.Write(theirs.seal(23, bytes.Repeat([]byte{byte(size)}, size)))
					}
				}
			}()
			for _, size := range sizes {
				for range 3 {
					got := make([]byte, size)
					if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{byte(size)}, size)) {
						t.Fatalf("%d bytes: %v", size, err)
					}
				}
				conn.Write(bytes.Repeat([]byte{byte(size)}, size))
				kind, content, err := theirs.receive()
				if kind != 23 || len(content) != size || err != nil {
					t.Fatalf("the peer got type %d, %d bytes of %d, %v", kind, len(content), size, err)
				}
			}
			conn.Write(make([]byte, 40000))
			for _, want := range []int{16384, 16384, 7232} {
				if _, content, err := theirs.receive(); len(content) != want || err != nil {
					t.Errorf("a record of %d bytes, want %d, %v", len(content), want, err)
				}
			}
		})
	}
}

func TestTruncation(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(p *peer)
		want error
	}{
		{"a FIN without close_notify", func(*peer) {}, io.ErrUnexpectedEOF},
		{"a FIN within a header", func(p *peer) { p.Write(p.seal(23, []byte("lost"))[:3]) }, io.ErrUnexpectedEOF},
		{"a FIN within a record", func(p *peer) { p.Write(p.seal(23, []byte("lost"))[:20]) }, io.ErrUnexpectedEOF},
		{"a FIN within close_notify", func(p *peer) { p.Write(p.seal(21, []byte{1, 0})[:20]) }, io.ErrUnexpectedEOF},
		{"a FIN behind close_notify", func(p *peer) { p.Write(p.seal(21, []byte{1, 0})) }, io.EOF},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, theirs := newPeer(t, suite13)
			theirs.send(t, 23, []byte("text"))
			c.end(theirs)
			theirs.Conn.(*net.TCPConn).CloseWrite()
			got := make([]byte, 4)
			if _, err := io.ReadFull(conn, got); err != nil || string(got) != "text" {
				t.Fatalf("%q, %v", got, err)
			}
			for range 2 {
				if n, err := conn.Read(got); n != 0 || err != c.want {
					t.Errorf("%d bytes, %v, want %v", n, err, c.want)
				}
			}
			// The other direction goes on.
			if _, err := conn.Write([]byte("still")); err != nil {
				t.Error(err)
			}
			theirs.receiveData(t, 5)
		})
	}
	t.Run("a reset", func(t *testing.T) {
		conn, theirs := newPeer(t, suite13)
		theirs.Conn.(*net.TCPConn).SetLinger(0)
		theirs.Close()
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
