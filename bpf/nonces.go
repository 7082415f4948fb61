// SPDX-License-Identifier: Apache-2.0

package bpf

import "math"

const (
	// gcmRecords is 2^24.5, the records of full size that one AES-GCM key may protect (RFC 8446, Section 5.5; RFC 9325,
	// Section 4.4 for TLS 1.2). What is known of AES holds for other ciphers with blocks of 128 bits.
	gcmRecords = 23726566
	// ccmRecords is 2^23 (RFC 9147, Section 4.5.3).
	ccmRecords = 1 << 23
	// allRecords is where sequence numbers end, which must not wrap (RFC 8446, Section 5.3). ChaCha20-Poly1305 has no
	// limit before.
	allRecords = math.MaxUint64
)

// RecordLimit is how many records one key of a cipher may protect, and why.
func RecordLimit(cipher uint16) (records uint64, reason string) {
	switch cipher {
	case 51, 52, 55, 57, 58:
		return gcmRecords, "the confidentiality limit of GCM, 2^24.5 records (RFC 8446, Section 5.5)"
	case 53, 56:
		return ccmRecords, "the limit of CCM, 2^23 records (RFC 9147, Section 4.5.3)"
	}
	return allRecords, "the end of the sequence numbers (RFC 8446, Section 5.3)"
}

// Spent is the part of its records that a key has protected, from 0 to 1 and above. It takes every record for one of full
// size, and the first number of a key for 0.
func (c *Connection) Spent(k Key) float64 {
	if k.Path == NoKey {
		return 0
	}
	limit, _ := RecordLimit(c.Cipher)
	return float64(k.Sequence) / float64(limit)
}

// An Alarm is a key that comes near its end. Only a new key helps: by a KeyUpdate, where the kernel can take one (TLS 1.3,
// Linux 6.14), or with a new connection.
type Alarm struct {
	Cookie   uint64
	Sending  bool // else receiving
	Sequence uint64
	Limit    uint64
	Reason   string
}

// Alarms are the keys that have spent the part threshold of their records.
func Alarms(list []Connection, threshold float64) (alarms []Alarm) {
	for i := range list {
		c := &list[i]
		limit, reason := RecordLimit(c.Cipher)
		for _, k := range []Key{c.Sending, c.Receiving} {
			if k.Path != NoKey && c.Spent(k) >= threshold {
				alarms = append(alarms, Alarm{c.Cookie, k == c.Sending, k.Sequence, limit, reason})
			}
		}
	}
	return alarms
}
