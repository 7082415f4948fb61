// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// Content types (RFC 8446, Section 5.1; RFC 5246, Section 6.2.1).
const (
	typeChangeCipherSpec = 20
	typeHandshake        = 22
	typeApplicationData  = 23
)

const (
	headerSize = 5
	// maxBody12 is the longest record body that TLS 1.2 permits (RFC 5246, Section
	// 6.2.3) and therefore the longest before the version is known.
	maxBody12 = 1<<14 + 2048
	// maxBody13 is the same for TLS 1.3 (RFC 8446, Section 5.2).
	maxBody13 = 1<<14 + 256
)

// A record is one TLS record as it stands on the wire, header included.
type record []byte

func (r record) contentType() byte { return r[0] }
func (r record) header() []byte    { return r[:headerSize] }
func (r record) body() []byte      { return r[headerSize:] }

// bodySize returns the length that a record header announces.
func bodySize(header []byte) int { return int(binary.BigEndian.Uint16(header[3:])) }

// splitRecords cuts the bytes of one direction into records, without copying.
func splitRecords(stream []byte) ([]record, error) {
	var rs []record
	for len(stream) > 0 {
		if len(stream) < headerSize || len(stream) < headerSize+bodySize(stream) {
			return nil, fmt.Errorf("%w: the last record on the wire is not complete", ErrLocal)
		}
		n := headerSize + bodySize(stream)
		rs = append(rs, record(stream[:n:n]))
		stream = stream[n:]
	}
	return rs, nil
}

// protected13 returns the records whose content is encrypted. In TLS 1.3 all of them
// say application_data (RFC 8446, Section 5.2), under handshake keys too.
func protected13(rs []record) []record {
	var out []record
	for _, r := range rs {
		if r.contentType() == typeApplicationData {
			out = append(out, r)
		}
	}
	return out
}

// protected12 returns the records after ChangeCipherSpec, all of which are encrypted
// (RFC 5246, Section 7.1).
func protected12(rs []record) []record {
	for i, r := range rs {
		if r.contentType() == typeChangeCipherSpec {
			return rs[i+1:]
		}
	}
	return nil
}

// plaintextHandshake joins the handshake messages before the first protected record:
// a message may be cut by record boundaries, or share a record with others (RFC 8446,
// Section 5.1).
func plaintextHandshake(rs []record) []byte {
	var b bytes.Buffer
	for _, r := range rs {
		if t := r.contentType(); t == typeChangeCipherSpec || t == typeApplicationData {
			break
		} else if t == typeHandshake {
			b.Write(r.body())
		}
	}
	return b.Bytes()
}
