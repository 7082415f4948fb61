// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"encoding/binary"
	"net/netip"
)

// A flow is one direction of a TCP connection.
type flow struct{ src, dst netip.AddrPort }

func (f flow) reversed() flow { return flow{f.dst, f.src} }
func (f flow) ports() ports   { return ports{f.src.Port(), f.dst.Port()} }

// A segment is what one packet carries of a flow.
type segment struct {
	flow          flow
	seq           uint32
	syn, fin, rst bool
	payload       []byte
}

const protocolTCP = 6

// parseSegment reads an IPv4 (RFC 791) or IPv6 (RFC 8200) packet with TCP (RFC 9293).
// It reports false for all others; the kernel sends no extension headers with TCP.
func parseSegment(b []byte) (s segment, ok bool) {
	var src, dst netip.Addr
	switch {
	case len(b) >= 20 && b[0]>>4 == 4 && b[9] == protocolTCP:
		header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
		if total == 0 { // larger than IPv4 can say (BIG TCP)
			total = len(b)
		}
		if header < 20 || header > total || total > len(b) {
			return s, false
		}
		src, dst, b = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:])), b[header:total]
	case len(b) >= 40 && b[0]>>4 == 6 && b[6] == protocolTCP:
		total := 40 + int(binary.BigEndian.Uint16(b[4:]))
		if total > len(b) {
			return s, false
		}
		src, dst, b = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:])), b[40:total]
	default:
		return s, false
	}
	if len(b) < 20 || int(b[12]>>4)*4 < 20 || int(b[12]>>4)*4 > len(b) {
		return s, false
	}
	s.flow = flow{netip.AddrPortFrom(src, binary.BigEndian.Uint16(b)), netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:]))}
	s.seq = binary.BigEndian.Uint32(b[4:])
	s.fin, s.syn, s.rst = b[13]&1 != 0, b[13]&2 != 0, b[13]&4 != 0
	s.payload = b[int(b[12]>>4)*4:]
	return s, true
}

// maxEarly bounds in bytes what waits for a missing segment.
const maxEarly = 16 << 20

// A stream puts the segments of a flow in order. Places in it are counted from 0, the
// first byte behind the SYN.
type stream struct {
	begin uint32 // the sequence number of place 0
	next  int64  // place of the next byte
	ready []byte // what came since the judge was fed last

	early     map[int64][]byte
	earlySize int
	fin       int64 // place of the end, or -1
	reset     bool
	quiet     int // rounds since the end
	finished  bool
	number    int     // in the order of beginning
	peer      *stream // the other direction

	judge *judge
}

func newStream(begin uint32, where ports, l *ledger) *stream {
	return &stream{begin: begin, fin: -1, judge: newJudge(where, l)}
}

// place turns a sequence number into a place, the one nearest to what comes next.
func (s *stream) place(seq uint32) int64 {
	return s.next + int64(int32(seq-(s.begin+uint32(s.next))))
}

// maxUnsent bounds in bytes how far a socket can be ahead of its packets.
const maxUnsent = 16 << 20

// near reports whether a sequence number belongs to this stream and not to another one
// with the same ports, whose numbers began anywhere.
func (s *stream) near(seq uint32) bool {
	at := s.place(seq)
	return at >= 0 && at <= s.next+maxUnsent
}

// add files a segment.
func (s *stream) add(g segment) {
	at := s.place(g.seq)
	if g.fin {
		s.fin = at + int64(len(g.payload))
	}
	switch {
	case len(g.payload) == 0:
	case s.finished && at+int64(len(g.payload)) > s.next:
		s.judge.reason = "it went on after what looked like its end"
	case !s.judge.over:
		s.quiet = 0
		s.fill(at, g.payload)
	}
}

func (s *stream) fill(at int64, b []byte) {
	if at > s.next {
		s.keepEarly(at, b)
		return
	}
	if known := s.next - at; known < int64(len(b)) {
		if len(s.ready) == 0 && s.judge.direct() {
			s.judge.feed(b[known:])
		} else {
			s.ready = append(s.ready, b[known:]...)
		}
		s.next = at + int64(len(b))
	}
	for at, b := range s.early {
		if at <= s.next { // it fits now
			delete(s.early, at)
			s.earlySize -= len(b)
			s.fill(at, b)
			return
		}
	}
}

func (s *stream) keepEarly(at int64, b []byte) {
	if s.early == nil {
		s.early = map[int64][]byte{}
	}
	if old := s.early[at]; len(b) > len(old) {
		s.early[at] = append([]byte(nil), b...)
		s.earlySize += len(b) - len(old)
	}
	if s.earlySize > maxEarly {
		s.lose()
	}
}

// lose gives up a stream of which a piece is missing.
func (s *stream) lose() {
	s.judge.giveUp(reasonLost)
	s.early, s.earlySize, s.ready = nil, 0, nil
}

const reasonLost = "packets are missing in the capture"

// ended reports whether nothing more can come.
func (s *stream) ended() bool { return s.reset || s.fin >= 0 && s.next >= s.fin }

// feed gives the judge what has come.
func (s *stream) feed() {
	if len(s.ready) > 0 {
		s.judge.feed(s.ready)
		s.ready = s.ready[:0]
		if cap(s.ready) > maxIdle {
			s.ready = nil
		}
	}
}

// finish judges the end.
func (s *stream) finish() {
	s.feed()
	s.finished = true
	if len(s.early) > 0 || s.fin > s.next && !s.reset {
		s.lose()
	}
	s.judge.end()
	s.early, s.ready = nil, nil
}
