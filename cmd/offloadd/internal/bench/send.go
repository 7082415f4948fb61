// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
)

// filePiece is how much is sent from a file before it is counted, where somebody counts.
const filePiece = 4 << 20

// sendPattern writes n bytes of the pattern from memory, so many at a time, and counts them
// in sent, if that is not nil.
func sendPattern(w io.Writer, p *pattern, n int64, size int, sent *atomic.Int64) error {
	for at := int64(0); at < n; {
		m, err := w.Write(p.at(at, min(n-at, int64(size))))
		at += int64(m)
		if sent != nil {
			sent.Add(int64(m))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sendFile sends n bytes of the pattern from its file by what the connection does with
// files, and counts them in sent, if that is not nil.
func sendFile(conn net.Conn, f *patternFile, n int64, sent *atomic.Int64) error {
	for at := int64(0); at < n; {
		most := n - at
		if sent != nil {
			most = min(most, filePiece)
		}
		part, err := f.part(at, most)
		if err != nil {
			return err
		}
		m, err := copyPart(conn, part)
		at += m
		if sent != nil {
			sent.Add(m)
		}
		if err != nil {
			return err
		}
		if m == 0 {
			return io.ErrUnexpectedEOF
		}
	}
	return nil
}

// fileBuffers are for connections that can only write.
var fileBuffers = sync.Pool{New: func() any { return new([128 << 10]byte) }}

// copyPart copies a part of a file as the connection likes it best.
func copyPart(conn net.Conn, part *io.LimitedReader) (int64, error) {
	if to, ok := conn.(io.ReaderFrom); ok {
		return to.ReadFrom(part)
	}
	buffer := fileBuffers.Get().(*[128 << 10]byte)
	defer fileBuffers.Put(buffer)
	return io.CopyBuffer(conn, part, buffer[:])
}

// isGone reports whether the peer has left, or we close: nobody's failure in a server.
func isGone(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed)
}
