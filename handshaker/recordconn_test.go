// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// scriptConn is a connection whose bytes come in portions of a given size. It knows
// how many were taken off it.
type scriptConn struct {
	net.Conn
	data    []byte
	portion int
	taken   int
}

func (c *scriptConn) Read(p []byte) (int, error) {
	if c.taken == len(c.data) {
		return 0, io.EOF
	}
	n := copy(p, c.data[c.taken:min(len(c.data), c.taken+c.portion)])
	c.taken += n
	return n, nil
}

func (c *scriptConn) Write(p []byte) (int, error)      { return len(p), nil }
func (c *scriptConn) SetDeadline(time.Time) error      { return nil }
func (c *scriptConn) SetWriteDeadline(time.Time) error { return nil }

// mayTake returns up to where a Read may take the stream when have bytes are taken:
// the end of the header or of the body it is in. boundary says that a record starts
// there.
func mayTake(stream []byte, have int) (limit int, boundary bool) {
	for at := 0; ; {
		if have < at+5 {
			return at + 5, have == at
		}
		end := at + 5 + int(stream[at+3])<<8 + int(stream[at+4])
		if have < end {
			return end, false
		}
		at = end
	}
}

// checkBoundaries reads a stream through a recordConn and checks every single Read.
func checkBoundaries(t *testing.T, stream []byte, portion, ask int) error {
	t.Helper()
	script := &scriptConn{data: stream, portion: portion}
	c := &recordConn{conn: script}
	var got []byte
	p := make([]byte, ask)
	for {
		limit, boundary := mayTake(stream, script.taken)
		if c.atBoundary() != boundary {
			t.Fatalf("after %d bytes: at a boundary: %v", script.taken, c.atBoundary())
		}
		n, err := c.Read(p)
		got = append(got, p[:n]...)
		switch {
		case script.taken > limit:
			t.Fatalf("portions of %d, reads of %d: took the stream to %d, past %d", portion, ask, script.taken, limit)
		case err == nil && script.taken != len(got):
			t.Fatalf("took %d bytes and passed on %d", script.taken, len(got))
		case err != nil && !errors.Is(err, ErrPeer) && len(got) != len(stream):
			t.Fatalf("%v after %d of %d bytes", err, len(got), len(stream))
		case err != nil && (!bytes.Equal(got, stream[:len(got)]) || !bytes.Equal(c.in, got)):
			t.Fatal("other bytes were passed on, or kept, than came")
		case err != nil:
			return err
		}
	}
}

func testRecord(n int) []byte {
	return append([]byte{22, 3, 3, byte(n >> 8), byte(n)}, bytes.Repeat([]byte{byte(n)}, n)...)
}

func TestAReadNeverCrossesARecordBoundary(t *testing.T) {
	stream := bytes.Join([][]byte{testRecord(1), testRecord(0), testRecord(300), testRecord(maxBody12), testRecord(7)}, nil)
	for _, portion := range []int{1, 2, 4, 5, 6, 100, 1 << 20} {
		for _, ask := range []int{1, 3, 5, 512, 1 << 20} {
			if err := checkBoundaries(t, stream, portion, ask); err != io.EOF {
				t.Error(err)
			}
		}
	}
	for cut := range 320 { // within a header, within a body
		if err := checkBoundaries(t, stream[:cut], 1<<20, 1<<20); err != io.EOF {
			t.Error(err)
		}
	}
}

func TestARecordTooLongIsThePeersFault(t *testing.T) {
	header := testRecord(maxBody12 + 1)
	if err := checkBoundaries(t, header, 1<<20, 1<<20); !errors.Is(err, ErrPeer) {
		t.Error(err)
	}
}

func TestAHandshakeWithoutEndIsThePeersFault(t *testing.T) {
	stream := bytes.Repeat(testRecord(16000), 40)
	if err := checkBoundaries(t, stream, 1<<20, 1<<20); !errors.Is(err, ErrPeer) {
		t.Error(err)
	}
}

func TestAFlightTooLongToKeepIsNotSent(t *testing.T) {
	c := &recordConn{conn: &scriptConn{}}
	if _, err := c.Write(make([]byte, maxLog)); err != nil {
		t.Error(err)
	}
	if n, err := c.Write([]byte{1}); n != 0 || !errors.Is(err, ErrConfig) {
		t.Error(n, err)
	}
}

func TestAfterDetachOnlyFedRecordsAreRead(t *testing.T) {
	script := &scriptConn{data: testRecord(10), portion: 100}
	c := &recordConn{conn: script}
	c.detach()
	b := make([]byte, 100)
	if n, err := c.Read(b); n != 0 || err != (errFed{}) {
		t.Error(n, err)
	}
	c.feed(testRecord(3))
	if n, err := c.Read(b); n != 8 || err != nil {
		t.Error(n, err)
	}
	if n, err := c.Read(b); n != 0 || err != (errFed{}) {
		t.Error(n, err)
	}
	if script.taken != 0 {
		t.Error("read from the socket")
	}
}

func TestTheCallersConnectionIsInTheErrorAboutPlaintext(t *testing.T) {
	for _, request := range []string{"GET / HTTP/1.1\r\n\r\n", "POST / HTTP/1.1\r\n\r\n"} {
		conn := &scriptConn{data: []byte(request), portion: 100}
		h, err := newHandshake(2, conn, &Config{TLS: serverTLS()})
		if err != nil {
			t.Fatal(err)
		}
		err = h.shake(testContext(t))
		var header tls.RecordHeaderError
		if !errors.As(err, &header) || header.Conn != net.Conn(conn) {
			t.Errorf("%v: %v", request, err)
		}
		if errors.Is(err, ErrHandshake) == errors.Is(err, ErrPeer) {
			t.Errorf("not one fault: %v", err)
		}
	}
}

func FuzzRecordConn(f *testing.F) {
	f.Add(bytes.Join([][]byte{testRecord(1), testRecord(0), testRecord(30)}, nil), uint16(1), uint16(100))
	f.Add(testRecord(20000), uint16(7), uint16(3))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), uint16(100), uint16(512))
	f.Fuzz(func(t *testing.T, stream []byte, portion, ask uint16) {
		checkBoundaries(t, stream, int(portion)+1, int(ask)+1)
	})
}
