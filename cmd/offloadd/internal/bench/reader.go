// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

const (
	// headRoom is kept free in front of what is read, for the head of the answer.
	headRoom = 128
	// smallRead is what a waiting connection has room for: the requests of our client.
	smallRead = 256
	// maxEcho bounds the body of POST /echo in bytes.
	maxEcho = 256 << 10
	// largeRead takes a head and the largest body for an echo.
	largeRead = maxEcho + maxHead
)

// largeBuffers are those of connections that are busy.
var largeBuffers = sync.Pool{New: func() any { return new([headRoom + largeRead]byte) }}

// reader reads heads and bodies of a connection. It waits for the first head in a small
// buffer of its own. Once that was too small it has a large one, until rest gives that
// back: so ten thousand idle connections cost little, and a busy one reads no message in
// two pieces.
type reader struct {
	conn       net.Conn
	small      [headRoom + smallRead]byte
	large      *[headRoom + largeRead]byte
	start, end int // what was read and not consumed, in buffer()
}

func (r *reader) buffer() []byte {
	if r.large != nil {
		return r.large[:]
	}
	return r.small[:]
}

func (r *reader) unread() []byte { return r.buffer()[r.start:r.end] }

// rest gives the large buffer back, if nothing is in it.
func (r *reader) rest() {
	if r.large != nil && r.start == r.end {
		largeBuffers.Put(r.large)
		r.large, r.start, r.end = nil, headRoom, headRoom
	}
}

// makeRoom makes room for more, if there is none.
func (r *reader) makeRoom() {
	switch {
	case r.end < len(r.buffer()):
	case r.large == nil:
		r.grow()
	default:
		n := copy(r.large[headRoom:], r.unread())
		r.start, r.end = headRoom, headRoom+n
	}
}

// grow takes a large buffer.
func (r *reader) grow() {
	if r.large != nil {
		return
	}
	large := largeBuffers.Get().(*[headRoom + largeRead]byte)
	n := copy(large[headRoom:], r.unread())
	r.large, r.start, r.end = large, headRoom, headRoom+n
}

// more reads once. There must be room.
func (r *reader) more() error {
	n, err := r.conn.Read(r.buffer()[r.end:])
	r.end += n
	if n > 0 {
		return nil
	}
	return err
}

// head reads one head and consumes it; it is valid until the next read. io.EOF is an end
// between two messages.
func (r *reader) head() (head, error) {
	if r.start == r.end {
		r.start, r.end = headRoom, headRoom
	}
	for {
		h, size, err := parseHead(r.unread())
		if err != nil {
			return head{}, err
		}
		if size > 0 {
			r.start += size
			return h, nil
		}
		r.makeRoom()
		if err := r.more(); err != nil {
			return head{}, r.cut(err)
		}
	}
}

// cut is err, unless that is an end in the middle of a message.
func (r *reader) cut(err error) error {
	if errors.Is(err, io.EOF) && r.start != r.end {
		return io.ErrUnexpectedEOF
	}
	return err
}

// body reads a body of n bytes, of maxEcho at most, and consumes it; it is valid until the
// next read, and has room for a head in front of it: see answer.
func (r *reader) body(n int) ([]byte, error) {
	if n > maxEcho {
		return nil, fmt.Errorf("a body of %d bytes; at most %d", n, maxEcho)
	}
	for r.end-r.start < n {
		if len(r.buffer())-r.start < n {
			r.grow()
		}
		if len(r.buffer())-r.start < n {
			r.end = headRoom + copy(r.large[headRoom:], r.unread())
			r.start = headRoom
		}
		if err := r.more(); err != nil {
			return nil, unexpected(err)
		}
	}
	body := r.unread()[:n]
	r.start += n
	return body, nil
}

// unexpected is err in the middle of a body.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// drain reads a body of n bytes in large pieces and gives each to take. A piece may hold
// no byte behind the body.
func (r *reader) drain(n int64, take func([]byte)) error {
	r.grow()
	for n > 0 {
		if r.start == r.end {
			r.start, r.end = headRoom, headRoom
			if err := r.more(); err != nil {
				return unexpected(err)
			}
		}
		piece := r.unread()
		piece = piece[:min(int64(len(piece)), n)]
		take(piece)
		r.start += len(piece)
		n -= int64(len(piece))
	}
	return nil
}
