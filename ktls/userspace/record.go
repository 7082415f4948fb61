// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
)

// Alert descriptions that the record layer sends (RFC 8446, Section 6); what the peer's
// messages deserve is for ktls.Rules to say.
const (
	alertCloseNotify       uint8 = 0
	alertUnexpectedMessage uint8 = 10
	alertBadRecordMAC      uint8 = 20
	alertRecordOverflow    uint8 = 22
	alertDecodeError       uint8 = 50
	alertInternalError     uint8 = 80
)

// badRecord is the ending by a record that is none, or that the key does not open.
func badRecord(alert uint8, why string) *ktls.Ending {
	return &ktls.Ending{Err: fmt.Errorf("%w: %s", ktls.ErrRecord, why), Alert: alert}
}

// recordSize returns how long the record is that begins with a header, and refuses what
// can be refused by it (RFC 8446, Sections 5.1 and 5.2; RFC 5246, Section 6.2.3).
func (k *key) recordSize(header []byte) (int, *ktls.Ending) {
	size := headerSize + int(binary.BigEndian.Uint16(header[3:]))
	switch {
	case header[1] != 3 || header[2] != 3:
		return 0, badRecord(alertDecodeError, "its header is not that of TLS")
	case k.state.Version == blob.TLS13 && header[0] != recordData:
		return 0, badRecord(alertUnexpectedMessage, fmt.Sprintf("it is in clear, of type %d", header[0]))
	case size > maxContent+k.overhead():
		return 0, badRecord(alertRecordOverflow, "it is too long")
	case size < headerSize+k.explicit+tagSize:
		return 0, badRecord(alertBadRecordMAC, "it is too short")
	}
	return size, nil
}

// wire is what has come from TCP and is not opened yet: buffer[begin:end].
type wire struct {
	buffer     []byte
	begin, end int
}

// fill reads from r until n bytes are there, at most as many as the buffer has. More may
// come. An error leaves what has come; io.EOF is io.ErrUnexpectedEOF, as no FIN is the
// end of a TLS connection.
func (w *wire) fill(r io.Reader, n int) error {
	if w.begin == w.end {
		w.begin, w.end = 0, 0
	}
	if w.begin+n > len(w.buffer) {
		w.end = copy(w.buffer, w.buffer[w.begin:w.end])
		w.begin = 0
	}
	for w.end-w.begin < n {
		m, err := r.Read(w.buffer[w.end:])
		w.end += m
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil && w.end-w.begin < n {
			return err
		}
	}
	return nil
}

// next returns the next whole record, in the buffer, until the next call of fill. On an
// error of r the same call can be made again.
func (w *wire) next(r io.Reader, k *key) ([]byte, *ktls.Ending, error) {
	if w.buffer == nil {
		// One record of full size: a peer that sends those costs one read for each.
		w.buffer = make([]byte, maxContent+k.overhead())
	}
	if err := w.fill(r, headerSize); err != nil {
		return nil, nil, err
	}
	size, end := k.recordSize(w.buffer[w.begin:])
	if end != nil {
		return nil, end, nil
	}
	if err := w.fill(r, size); err != nil {
		return nil, nil, err
	}
	record := w.buffer[w.begin : w.begin+size]
	w.begin += size
	return record, nil, nil
}
