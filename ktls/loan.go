// SPDX-License-Identifier: Apache-2.0

package ktls

import "sync"

// copyBuffer is the buffer of an ordinary copy in bytes: 16 records per system call. It
// and what is decrypted into it should stay in the cache of one CPU.
const copyBuffer = 256 << 10

// buffers are what data is copied through. A connection has one only while there is
// data, and an idle one costs nothing.
var buffers = sync.Pool{New: func() any { return new([copyBuffer]byte) }}

// A loan is a buffer of the pool, or none yet.
type loan struct {
	buffer *[copyBuffer]byte
	// used is how much of it may have somebody's data, in bytes.
	used int
}

// take returns the buffer.
func (l *loan) take() []byte {
	if l.buffer == nil {
		l.buffer = buffers.Get().(*[copyBuffer]byte)
	}
	return l.buffer[:]
}

// uses notes that n bytes were received. The kernel may have opened one more record
// into the buffer, which did not authenticate or was not data, and its padding:
// 256 bytes (RFC 8446, Section 5.2).
func (l *loan) uses(n int) { l.used = max(l.used, min(n+maxRecordContent+256, copyBuffer)) }

// giveBack clears what was used.
func (l *loan) giveBack() {
	if l.buffer == nil {
		return
	}
	clear(l.buffer[:l.used])
	buffers.Put(l.buffer)
	*l = loan{}
}
