// SPDX-License-Identifier: Apache-2.0

package ktlstest

import (
	"encoding/binary"
	"net/netip"
)

// flow is one direction of a TCP connection.
type flow struct {
	src, dst         netip.Addr
	srcPort, dstPort uint16
}

// segment is a TCP segment.
type segment struct {
	flow    flow
	seq     uint32
	syn     bool
	payload []byte
}

const protocolTCP = 6

// parseSegment parses an IPv4 (RFC 791) or IPv6 (RFC 8200) packet without extension
// headers, and the TCP segment in it (RFC 9293, Section 3.1).
func parseSegment(b []byte) (segment, bool) {
	var s segment
	if len(b) < 20 {
		return s, false
	}
	var tcp []byte
	switch version := b[0] >> 4; {
	case version == 4:
		header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
		if b[9] != protocolTCP || header > total || total > len(b) {
			return s, false
		}
		s.flow.src, s.flow.dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		tcp = b[header:total]
	case version == 6 && len(b) >= 40:
		total := 40 + int(binary.BigEndian.Uint16(b[4:]))
		if b[6] != protocolTCP || total > len(b) {
			return s, false
		}
		s.flow.src, s.flow.dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		tcp = b[40:total]
	}
	if len(tcp) < 20 || int(tcp[12]>>4)*4 > len(tcp) {
		return s, false
	}
	s.flow.srcPort, s.flow.dstPort = binary.BigEndian.Uint16(tcp), binary.BigEndian.Uint16(tcp[2:])
	s.seq = binary.BigEndian.Uint32(tcp[4:])
	s.syn = tcp[13]&2 != 0
	s.payload = tcp[int(tcp[12]>>4)*4:]
	return s, true
}

// stream puts the segments of a flow in order.
type stream struct {
	flow flow
	data []byte
	// begin is the sequence number of data's first byte, next the one behind data.
	begin, next uint32
	// early holds segments that came too early, by sequence number.
	early map[uint32][]byte
}

// add appends what is new of a segment, and what fits behind it.
func (s *stream) add(seq uint32, payload []byte) {
	if int32(seq-s.next) > 0 {
		if s.early == nil {
			s.early = make(map[uint32][]byte)
		}
		if len(payload) > len(s.early[seq]) {
			s.early[seq] = append([]byte(nil), payload...)
		}
		return
	}
	if known := int(s.next - seq); known < len(payload) {
		s.data = append(s.data, payload[known:]...)
		s.next += uint32(len(payload) - known)
	}
	for at, p := range s.early {
		if int32(at-s.next) <= 0 {
			delete(s.early, at)
			s.add(at, p)
			return
		}
	}
}
