// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"strings"
	"testing"
)

func TestHeadsAreTakenOrRefused(t *testing.T) {
	for _, c := range []struct {
		name, text string
		size       int // 0: more is to come
		length     int64
		close      bool
		bad        bool
	}{
		{"a request", "GET /1 HTTP/1.1\r\nHost: x\r\n\r\nrest", 28, -1, false, false},
		{"a length", "PUT / HTTP/1.1\r\ncontent-length: 17\r\n\r\n", 38, 17, false, false},
		{"the same length twice", "PUT / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 56, 1, false, false},
		{"two lengths", "PUT / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 0, 0, false, true},
		{"a length below zero", "PUT / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 0, 0, false, true},
		{"a length with a sign", "PUT / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 0, 0, false, true},
		{"a length that is too large", "PUT / HTTP/1.1\r\nContent-Length: 9223372036854775807\r\n\r\n", 0, 0, false, true},
		{"the last", "GET /1 HTTP/1.1\r\nConnection:  Close \r\n\r\n", 40, -1, true, false},
		{"an old one", "GET /1 HTTP/1.0\r\n\r\n", 19, -1, true, false},
		{"an old one that stays", "GET /1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 43, -1, false, false},
		{"an old answer", "HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n", 38, 3, true, false},
		{"a part", "GET /1 HTTP/1.1\r\nHost: x\r\n", 0, 0, false, false},
		{"chunks", "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 0, 0, false, true},
		{"a field without a name", "GET / HTTP/1.1\r\n: x\r\n\r\n", 0, 0, false, true},
		{"a space before the colon", "GET / HTTP/1.1\r\nContent-Length : 3\r\n\r\n", 0, 0, false, true},
		{"a folded field", "GET / HTTP/1.1\r\nA: b\r\n c: d\r\n\r\n", 0, 0, false, true},
		{"a record of TLS", "\x16\x03\x01", 0, 0, false, true},
		{"too long a part", strings.Repeat("X", maxHead+4), 0, 0, false, true},
		{"too long a head", "GET / HTTP/1.1\r\nA: " + strings.Repeat("x", maxHead) + "\r\n\r\n", 0, 0, false, true},
	} {
		h, size, err := parseHead([]byte(c.text))
		if c.bad != errors.Is(err, errHead) || size != c.size {
			t.Errorf("%s: size %d, want %d, error %v", c.name, size, c.size, err)
			continue
		}
		if size > 0 && (h.length != c.length || h.close != c.close) {
			t.Errorf("%s: length %d, close %v, want %d, %v", c.name, h.length, h.close, c.length, c.close)
		}
	}
}

func TestFirstLinesAreToldApart(t *testing.T) {
	for line, want := range map[string]int{"HTTP/1.1 200 OK": 200, "HTTP/1.1 404": 404, "HTTP/2 200": 0, "HTTP/1.1 2x0 OK": 0, "": 0} {
		if got := (&head{first: []byte(line)}).status(); got != want {
			t.Errorf("status of %q is %d, want %d", line, got, want)
		}
	}
	for line, want := range map[string]bool{"GET /1 HTTP/1.1": true, "GET /1": false, "GET /1 HTTP/2": false, "": false} {
		method, path, ok := (&head{first: []byte(line)}).target()
		if ok != want || ok && (string(method) != "GET" || string(path) != "/1") {
			t.Errorf("%q: %q %q, %v", line, method, path, ok)
		}
	}
}

// FuzzHead: a head that is taken is at the front, ends with an empty line, and is the same
// however much follows it; and nothing is taken before it is whole.
func FuzzHead(f *testing.F) {
	for _, seed := range []string{"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n", "PUT / HTTP/1.0\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
		"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", "\r\n\r\n", "X"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, size, err := parseHead(b)
		h.status()
		h.target()
		if err != nil || size == 0 {
			return
		}
		if size < 4 || size > len(b) || string(b[size-4:size]) != "\r\n\r\n" || h.length < -1 {
			t.Fatalf("size %d, length %d", size, h.length)
		}
		again, sameSize, err := parseHead(append(b[:size:size], "\r\n\r\nContent-Length: 1\r\n\r\n"...))
		if err != nil || sameSize != size || again.length != h.length || again.close != h.close {
			t.Fatalf("with more behind it: %+v, size %d, %v; before %+v, %d", again, sameSize, err, h, size)
		}
		if _, early, err := parseHead(b[:size-1]); early != 0 || err != nil {
			t.Fatalf("a byte less: size %d, %v", early, err)
		}
	})
}
