// SPDX-License-Identifier: Apache-2.0

package ktlstest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
)

// Stream is what went in one direction of one connection, in order.
type Stream struct {
	Src, Dst netip.AddrPort
	Data     []byte
}

// Streams returns copies of all streams so far, in the order in which they began.
func (c *Capture) Streams() ([]Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drain()
	var list []Stream
	for _, s := range c.order {
		f := s.flow
		if len(s.early) > 0 {
			return nil, fmt.Errorf("a piece of the stream from port %d is missing in the capture", f.srcPort)
		}
		list = append(list, Stream{
			netip.AddrPortFrom(f.src, f.srcPort), netip.AddrPortFrom(f.dst, f.dstPort),
			append([]byte(nil), s.data...),
		})
	}
	return list, c.err
}

// AssertNoPlaintext fails the test if a marker went over the wire in clear, or if
// anything but whole TLS records went over it in either direction.
func (c *Capture) AssertNoPlaintext(t testing.TB, markers ...[]byte) {
	t.Helper()
	c.assert(t, func(Stream) bool { return true }, markers)
}

// AssertNoPlaintextFrom is AssertNoPlaintext for tests whose peer speaks no TLS:
// only what leaves the port must be whole records.
func (c *Capture) AssertNoPlaintextFrom(t testing.TB, port int, markers ...[]byte) {
	t.Helper()
	c.assert(t, func(s Stream) bool { return int(s.Src.Port()) == port }, markers)
}

func (c *Capture) assert(t testing.TB, mustBeTLS func(Stream) bool, markers [][]byte) {
	t.Helper()
	streams, err := c.Streams()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range streams {
		for _, m := range markers {
			if i := bytes.Index(s.Data, m); i >= 0 {
				t.Errorf("%v to %v: %q went in clear, at byte %d", s.Src, s.Dst, m, i)
			}
		}
		if !mustBeTLS(s) {
			continue
		}
		if _, err := ParseRecords(s.Data); err != nil {
			t.Errorf("%v to %v: %v", s.Src, s.Dst, err)
		}
	}
}

// Record is the header of a TLS record.
type Record struct {
	Type    byte
	Version uint16
	Length  int
}

const recordHeader = 5

// maxRecord is the greatest length of TLS 1.2 (RFC 5246, Section 6.2.3).
const maxRecord = 16384 + 2048

// ParseRecords splits a stream into its records, from the first byte to the last.
func ParseRecords(stream []byte) ([]Record, error) {
	var list []Record
	for at := 0; at < len(stream); {
		rest := stream[at:]
		if len(rest) < recordHeader {
			return list, fmt.Errorf("ends within a record header, at byte %d", at)
		}
		r := Record{rest[0], binary.BigEndian.Uint16(rest[1:]), int(binary.BigEndian.Uint16(rest[3:]))}
		if r.Type < 20 || r.Type > 24 || r.Version < 0x0301 || r.Version > 0x0304 || r.Length > maxRecord {
			return list, fmt.Errorf("byte %d is not the beginning of a TLS record", at)
		}
		if len(rest) < recordHeader+r.Length {
			return list, fmt.Errorf("ends within a record, at byte %d", at)
		}
		list = append(list, r)
		at += recordHeader + r.Length
	}
	return list, nil
}
