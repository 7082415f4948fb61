// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

// maxHead bounds the head of a message in bytes.
const maxHead = 8 << 10

// errHead: what came is no head that this package takes.
var errHead = errors.New("malformed HTTP head")

// head is what of a request or response matters here.
type head struct {
	// first is the first line without its end: "GET /1 HTTP/1.1". It aliases the input.
	first []byte
	// length is that of the body: 0 for a request that names none, -1 for a response that does.
	length int64
	// close says that this is the last message on the connection.
	close bool
	// expects says that the sender waits for 100 Continue before the body.
	expects bool
}

// parseHead parses the head that b begins with and returns its size, which is 0 if there is
// more to come. It takes what RFC 9112 allows and refuses bodies of unknown length, so the
// caller never looks for the end of a body in the wrong place.
func parseHead(b []byte) (h head, size int, err error) {
	if len(b) > 0 && (b[0] < 'A' || b[0] > 'Z') { // a record of TLS, say, whose end would never come
		return h, 0, fmt.Errorf("%w: it begins with the byte %d", errHead, b[0])
	}
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		if len(b) > maxHead+3 { // the end may be there but for a byte
			return h, 0, fmt.Errorf("%w: longer than %d bytes", errHead, maxHead)
		}
		return h, 0, nil
	}
	if end > maxHead {
		return h, 0, fmt.Errorf("%w: longer than %d bytes", errHead, maxHead)
	}
	first, fields, _ := bytes.Cut(b[:end], []byte("\r\n"))
	h = head{first: first, length: -1, close: bytes.HasSuffix(first, []byte(" HTTP/1.0")) || bytes.HasPrefix(first, []byte("HTTP/1.0 "))}
	for len(fields) > 0 {
		var line []byte
		line, fields, _ = bytes.Cut(fields, []byte("\r\n"))
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok || len(name) == 0 || bytes.ContainsAny(name, " \t") {
			return h, 0, fmt.Errorf("%w: the line %.40q", errHead, line)
		}
		if err := h.field(name, bytes.TrimSpace(value)); err != nil {
			return h, 0, err
		}
	}
	return h, end + 4, nil
}

func (h *head) field(name, value []byte) error {
	switch {
	case equalFold(name, "Content-Length"):
		n, err := strconv.ParseUint(string(value), 10, 62)
		if err != nil || h.length >= 0 && h.length != int64(n) {
			return fmt.Errorf("%w: Content-Length %.40q", errHead, value)
		}
		h.length = int64(n)
	case equalFold(name, "Connection"):
		h.close = equalFold(value, "close") || h.close && !equalFold(value, "keep-alive")
	case equalFold(name, "Expect"):
		h.expects = equalFold(value, "100-continue")
	case equalFold(name, "Transfer-Encoding"):
		return fmt.Errorf("%w: Transfer-Encoding: say Content-Length", errHead)
	}
	return nil
}

func equalFold(b []byte, s string) bool {
	return len(b) == len(s) && bytes.EqualFold(b, []byte(s))
}

// status is the code of a response's first line, 0 if it is none.
func (h *head) status() int {
	_, rest, _ := bytes.Cut(h.first, []byte(" "))
	code, _, _ := bytes.Cut(rest, []byte(" "))
	n, err := strconv.Atoi(string(code))
	if err != nil || !bytes.HasPrefix(h.first, []byte("HTTP/1.")) {
		return 0
	}
	return n
}

// target returns the method and path of a request.
func (h *head) target() (method, path []byte, ok bool) {
	method, rest, _ := bytes.Cut(h.first, []byte(" "))
	path, protocol, ok := bytes.Cut(rest, []byte(" "))
	return method, path, ok && bytes.HasPrefix(protocol, []byte("HTTP/1."))
}
