// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/offloadd/offloadd/blob"
)

// Sizes in bytes; the fields are in the package's documentation.
const (
	headerSize = 40
	recordSize = 68
	sumSize    = 4
)

const (
	magic         = "OFLEDGER"
	formatVersion = 1
)

// header says to which machine's life a file belongs.
type header struct {
	boot      [16]byte
	namespace uint64 // SO_NETNS_COOKIE
}

type kind uint8

const (
	kindEnter kind = 1 // a key is about to be installed
	kindRaise kind = 2 // the same key, its sequence number is known to be higher
)

type record struct {
	kind kind
	more bool // the next record belongs to the same act
	line Line
	key  blob.KeyDigest
}

// castagnoli is a function because the package keeps no variables; the table is made
// once, by the standard library.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// seal appends the checksum of what was appended to b since from, which goes on
// from the checksum before.
func seal(b []byte, from int, before uint32) ([]byte, uint32) {
	sum := crc32.Update(before, castagnoli(), b[from:])
	return binary.BigEndian.AppendUint32(b, sum), sum
}

// sealed compares the checksum at the end of b.
func sealed(b []byte, before uint32) (uint32, bool) {
	at := len(b) - sumSize
	sum := crc32.Update(before, castagnoli(), b[:at])
	return sum, sum == binary.BigEndian.Uint32(b[at:])
}

func (h *header) append(b []byte) ([]byte, uint32) {
	from := len(b)
	b = append(b, magic...)
	b = binary.BigEndian.AppendUint32(b, formatVersion)
	b = append(b, h.boot[:]...)
	b = binary.BigEndian.AppendUint64(b, h.namespace)
	return seal(b, from, 0)
}

func decodeHeader(b []byte) (h header, sum uint32, err error) {
	if len(b) < headerSize || string(b[:8]) != magic {
		return h, 0, fmt.Errorf("%w: it does not begin as a ledger", ErrCorrupt)
	}
	sum, ok := sealed(b[:headerSize], 0)
	if !ok {
		return h, 0, fmt.Errorf("%w: its header was changed", ErrCorrupt)
	}
	if v := binary.BigEndian.Uint32(b[8:]); v != formatVersion {
		return h, 0, fmt.Errorf("%w: format version %d, this build knows %d", ErrCorrupt, v, formatVersion)
	}
	copy(h.boot[:], b[12:])
	h.namespace = binary.BigEndian.Uint64(b[28:])
	return h, sum, nil
}

func (r *record) append(b []byte, before uint32) ([]byte, uint32) {
	from := len(b)
	more := byte(0)
	if r.more {
		more = 1
	}
	l := &r.line
	b = append(b, byte(r.kind), byte(l.Role), byte(l.Direction), more)
	b = binary.BigEndian.AppendUint32(b, l.Epoch)
	b = binary.BigEndian.AppendUint64(b, l.Cookie)
	b = binary.BigEndian.AppendUint64(b, l.Seq)
	b = binary.BigEndian.AppendUint64(b, uint64(l.Entered.UnixMilli()))
	b = append(b, r.key[:]...)
	b = append(b, l.Instance[:]...)
	return seal(b, from, before)
}

func decodeRecord(b []byte, before uint32) (r record, sum uint32, err error) {
	sum, ok := sealed(b[:recordSize], before)
	if !ok {
		return r, 0, fmt.Errorf("%w: wrong checksum", ErrCorrupt)
	}
	r.kind, r.more = kind(b[0]), b[3] == 1
	r.line = Line{
		Role: blob.Role(b[1]), Direction: blob.Direction(b[2]),
		Epoch: binary.BigEndian.Uint32(b[4:]), Cookie: binary.BigEndian.Uint64(b[8:]), Seq: binary.BigEndian.Uint64(b[16:]),
		Entered: time.UnixMilli(int64(binary.BigEndian.Uint64(b[24:]))),
	}
	copy(r.key[:], b[32:48])
	copy(r.line.Instance[:], b[48:64])
	switch l := &r.line; {
	case r.kind != kindEnter && r.kind != kindRaise, b[3] > 1,
		l.Role != blob.Client && l.Role != blob.Server, l.Direction != blob.Read && l.Direction != blob.Write, l.Cookie == 0:
		return r, 0, fmt.Errorf("%w: a field without meaning", ErrCorrupt)
	}
	return r, sum, nil
}

// contents is a decoded file.
type contents struct {
	header  header
	records []record
	size    int64  // of all this; what follows in the file is torn
	sum     uint32 // at size
}

// decode reads a file. The act at its end may be torn: a process killed within
// write(2) leaves a prefix of what it wrote, never other bytes. To drop it is safe,
// because the entry comes before the key: who died while writing has installed
// nothing. Anything else that is wrong is an error, for then something that was
// entered may be missing.
func decode(b []byte) (c contents, err error) {
	if c.header, c.sum, err = decodeHeader(b); err != nil {
		return contents{}, err
	}
	c.size = headerSize
	sum, whole := c.sum, 0
	for at := headerSize; at+recordSize <= len(b); at += recordSize {
		var r record
		if r, sum, err = decodeRecord(b[at:at+recordSize], sum); err != nil {
			return contents{}, fmt.Errorf("%w in record %d (byte %d)", err, len(c.records), at)
		}
		c.records = append(c.records, r)
		if !r.more {
			c.size, c.sum, whole = int64(at+recordSize), sum, len(c.records)
		}
	}
	c.records = c.records[:whole]
	return c, nil
}

// encode writes a whole file.
func encode(h header, records []record) ([]byte, uint32) {
	b, sum := h.append(make([]byte, 0, headerSize+len(records)*recordSize))
	for i := range records {
		b, sum = records[i].append(b, sum)
	}
	return b, sum
}
