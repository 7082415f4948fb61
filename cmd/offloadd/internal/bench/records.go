// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/binary"
	"net"
	"sync/atomic"
)

// recordHeader is the size of a record's header (RFC 8446, Section 5.1): type, version,
// and the length of what follows.
const recordHeader = 5

// recordCount counts the records of a connection by their headers.
type recordCount struct {
	read, written         atomic.Int64
	readState, writeState recordScan // each of one goroutine
}

// recordScan is where in a record a stream of bytes is.
type recordScan struct {
	header [recordHeader]byte
	have   int // of the header
	left   int // of the record's content
}

// scan returns how many records begin in p.
func (s *recordScan) scan(p []byte) (begun int64) {
	for len(p) > 0 {
		if s.left > 0 {
			n := min(s.left, len(p))
			p, s.left = p[n:], s.left-n
			continue
		}
		n := copy(s.header[s.have:], p)
		p, s.have = p[n:], s.have+n
		if s.have == recordHeader {
			s.have, s.left = 0, int(binary.BigEndian.Uint16(s.header[3:]))
			begun++
		}
	}
	return begun
}

// countedConn counts what crypto/tls reads and writes.
type countedConn struct {
	*net.TCPConn
	count *recordCount
}

func (c countedConn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	c.count.read.Add(c.count.readState.scan(p[:n]))
	return n, err
}

func (c countedConn) Write(p []byte) (int, error) {
	n, err := c.TCPConn.Write(p)
	c.count.written.Add(c.count.writeState.scan(p[:n]))
	return n, err
}
