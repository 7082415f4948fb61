// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
)

// scriptedConn gives what is in a script, in pieces, and keeps what is written.
type scriptedConn struct {
	net.Conn
	script  []byte
	piece   int
	written bytes.Buffer
}

func (c *scriptedConn) Read(p []byte) (int, error) {
	n := copy(p, c.script[:min(c.piece, len(c.script))])
	c.script = c.script[n:]
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (c *scriptedConn) Write(p []byte) (int, error) { return c.written.Write(p) }

// exchanged runs a script through a server and returns what it answers, and how it ended.
func exchanged(t *testing.T, script []byte, piece int) (string, error) {
	t.Helper()
	s, err := NewServer(PlainWrite, nil, 5000, nil)
	if err != nil {
		t.Fatal(err)
	}
	conn := &scriptedConn{script: script, piece: piece}
	x := exchange{server: s, reader: reader{conn: conn}}
	defer x.close()
	for n := 0; ; n++ {
		if n > 1000 {
			t.Fatal("it does not end")
		}
		if err := x.next(); err != nil {
			return conn.written.String(), err
		}
	}
}

func answer(body []byte) string {
	return fmt.Sprintf("HTTP/1.1 200 .\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

// TestRequestsAreServedWhereverReadsEnd: many on one connection, one behind the other, with
// bodies around the sizes of all buffers.
func TestRequestsAreServedWhereverReadsEnd(t *testing.T) {
	p := newPattern(maxEcho)
	var script bytes.Buffer
	var want strings.Builder
	for _, n := range []int64{1, 0, 100, smallRead - 60, smallRead, smallRead + 1, 5000, small - 1, small, small + 1, 70_000, maxEcho - 1, maxEcho} {
		body := p.at(n, n)
		script.Write(request("POST", "/echo", body, false))
		want.WriteString(answer(body))
		script.Write(request("GET", fmt.Sprintf("/%d", n), nil, false))
		want.WriteString(answer(p.at(0, n)))
		script.Write(request("PUT", "/sha256", body, false))
		want.WriteString(answer(jsonOf(received{n, fmt.Sprintf("%x", sha256.Sum256(body))})))
	}
	for _, piece := range []int{1, 17, smallRead - 1, smallRead, smallRead + 1, 16 << 10, maxEcho, 10 << 20} {
		got, err := exchanged(t, bytes.Clone(script.Bytes()), piece)
		if !errors.Is(err, io.EOF) || got != want.String() {
			t.Errorf("in pieces of %d: %d bytes, want %d, ended by %v", piece, len(got), want.Len(), err)
		}
	}
}

// TestRequestsThatCannotBeServedAreAnswered, and nothing behind them is taken for a request.
func TestRequestsThatCannotBeServedAreAnswered(t *testing.T) {
	for request, want := range map[string]string{
		"GET /x HTTP/1.1\r\n\r\n":                               "404",
		"GET x HTTP/1.1\r\n\r\n":                                "404",
		"GET /-1 HTTP/1.1\r\n\r\n":                              "404",
		"DELETE /1 HTTP/1.1\r\n\r\n":                            "404",
		"GET /1\r\n\r\n":                                        "400",
		"PUT / HTTP/1.1\r\n\r\n":                                "411",
		"POST /echo HTTP/1.1\r\n\r\n":                           "411",
		"POST /echo HTTP/1.1\r\nContent-Length: 262145\r\n\r\n": "413",
		"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n": "400",
		"\x16\x03\x01\x02\x00": "400",
	} {
		got, err := exchanged(t, []byte(request+"GET /1 HTTP/1.1\r\n\r\n"), 10_000)
		if !errors.Is(err, errLast) || !strings.HasPrefix(got, "HTTP/1.1 "+want) || strings.Count(got, "HTTP/1.1") != 1 || !strings.Contains(got, "Connection: close") {
			t.Errorf("%q is answered with %q, %v", request, got, err)
		}
	}
	for _, cut := range []string{"GET /1 HTTP", "POST /echo HTTP/1.1\r\nContent-Length: 5\r\n\r\nabc", "PUT / HTTP/1.1\r\nContent-Length: 5\r\n\r\nabc"} {
		if got, err := exchanged(t, []byte(cut), 3); !errors.Is(err, io.ErrUnexpectedEOF) || got != "" {
			t.Errorf("%q, cut there, is answered with %q, %v", cut, got, err)
		}
	}
}

// TestWhoWaitsIsToldToContinue, as curl does with large bodies.
func TestWhoWaitsIsToldToContinue(t *testing.T) {
	got, err := exchanged(t, []byte("PUT / HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\nConnection: close\r\n\r\nabc"), 1000)
	if want := "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 .\r\n"; !strings.HasPrefix(got, want) || !strings.HasSuffix(got, "{\"bytes\":3}\n") || !errors.Is(err, errLast) {
		t.Errorf("%q, %v", got, err)
	}
}

// TestAnIdleConnectionHoldsNoLargeBuffer: it gives it back when a download ends.
func TestAnIdleConnectionHoldsNoLargeBuffer(t *testing.T) {
	s, err := NewServer(PlainWrite, nil, 5000, nil)
	if err != nil {
		t.Fatal(err)
	}
	conn := &scriptedConn{piece: 1 << 20, script: append(request("POST", "/echo", make([]byte, 1000), false), request("GET", "/1000", nil, false)...)}
	x := exchange{server: s, reader: reader{conn: conn}}
	for n, large := range []bool{true, false} {
		if err := x.next(); err != nil || (x.large != nil) != large {
			t.Errorf("after request %d: %v, a large buffer: %v, want %v", n, err, x.large != nil, large)
		}
	}
}
