// SPDX-License-Identifier: Apache-2.0

package ktls

import "github.com/offloadd/offloadd/blob"

const (
	// gcmRecordLimit is 2^24.5, the records of full size that one AES-GCM key may
	// protect (RFC 8446, Section 5.5; RFC 9325, Section 4.4 for TLS 1.2).
	gcmRecordLimit = 23726566
	// chachaRecordLimit: ChaCha20-Poly1305 has no limit below the sequence numbers.
	chachaRecordLimit = 1 << 63
	// reservedRecords is kept for records that the handshake wrote (tickets) and for
	// the alerts at the end.
	reservedRecords = 1024

	// maxRecordContent is the content of a full record in bytes (RFC 8446, Section 5.1).
	maxRecordContent = 16384
	// maxRecordFragments closes a record of pages that were spliced in (net/tls/tls_sw.c
	// and include/linux/skmsg.h, MAX_MSG_FRAGS).
	maxRecordFragments = 17
)

// recordCounter keeps an upper bound of the records written with a key. The exact
// number would be the kernel's rec_seq, which it tells only together with the key.
type recordCounter struct {
	used, limit uint64
	// content is the most bytes that the kernel puts in a record.
	content int
	// bytes is the exact number of bytes written.
	bytes uint64
}

func newRecordCounter(aead blob.AEAD, content int) recordCounter {
	limit := uint64(gcmRecordLimit)
	if aead == blob.ChaCha20Poly1305 {
		limit = chachaRecordLimit
	}
	return recordCounter{limit: limit - reservedRecords, content: content}
}

// cost is the most records that one system call makes of n bytes in so many
// fragments: the last one may be short, and fragments may run out before bytes do.
func (r *recordCounter) cost(n, fragments int) uint64 {
	return uint64(n)/uint64(r.content) + uint64(fragments/maxRecordFragments) + 1
}

// allow returns how many of n bytes the next system call may write; 0 means that
// the limit is reached.
func (r *recordCounter) allow(n, fragments int) int {
	overhead := r.cost(0, fragments)
	if r.used+overhead > r.limit {
		return 0
	}
	spare := r.limit - r.used - overhead
	if spare >= uint64(n)/uint64(r.content) {
		return n
	}
	return int(spare) * r.content
}

// renew begins with a new key.
func (r *recordCounter) renew() { r.used = 0 }

// add counts a system call that wrote n bytes.
func (r *recordCounter) add(n, fragments int) {
	if n > 0 {
		r.used += r.cost(n, fragments)
		r.bytes += uint64(n)
	}
}
