// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"crypto/subtle"
	"encoding/binary"
	"fmt"

	"github.com/offloadd/offloadd/blob"
)

// The kernel's numbers of the ciphers (include/uapi/linux/tls.h).
const (
	cipherAESGCM128        = 51
	cipherAESGCM256        = 52
	cipherChaCha20Poly1305 = 54
)

// span is a field of a kernel struct: where it begins and how many bytes it has.
type span struct{ at, size int }

func (s span) of(b []byte) []byte { return b[s.at : s.at+s.size] }

// Both u16 of struct tls_crypto_info, which begins each of the structs below.
var (
	infoVersion = span{0, 2}
	infoCipher  = span{2, 2}
)

// infoHeaderSize is the size of struct tls_crypto_info. getsockopt with this
// length tells version and cipher and no key.
const infoHeaderSize = 4

// layout is one struct tls12_crypto_info_*, which serves TLS 1.3 as well.
type layout struct {
	cipherType         uint16
	size               int
	iv, key, salt, seq span
}

// layouts is the dictionary between the suites of RFC 8446 and RFC 5288 and the
// kernel's crypto_info.
var layouts = map[blob.AEAD]layout{
	blob.AES128GCM:        {cipherAESGCM128, 40, span{4, 8}, span{12, 16}, span{28, 4}, span{32, 8}},
	blob.AES256GCM:        {cipherAESGCM256, 56, span{4, 8}, span{12, 32}, span{44, 4}, span{48, 8}},
	blob.ChaCha20Poly1305: {cipherChaCha20Poly1305, 56, span{4, 12}, span{16, 32}, span{48, 0}, span{48, 8}},
}

// aeadOf is layouts backwards; 0 for a cipher we never install.
func aeadOf(cipherType uint16) blob.AEAD {
	for aead, l := range layouts {
		if l.cipherType == cipherType {
			return aead
		}
	}
	return 0
}

// encodeCryptoInfo returns the option value of TLS_TX or TLS_RX for s. The caller
// wipes it.
func encodeCryptoInfo(s *blob.State) []byte {
	l := layouts[s.Suite.AEAD()]
	b := make([]byte, l.size)
	binary.NativeEndian.PutUint16(infoVersion.of(b), uint16(s.Version))
	binary.NativeEndian.PutUint16(infoCipher.of(b), l.cipherType)
	copy(l.key.of(b), s.Key.Bytes())
	binary.BigEndian.PutUint64(l.seq.of(b), s.Seq)
	iv := s.IV.Bytes()
	copy(l.salt.of(b), iv)
	if len(iv) > l.salt.size {
		// The whole nonce mask of RFC 8446, Section 5.3 and RFC 7905, Section 2.
		copy(l.iv.of(b), iv[l.salt.size:])
	} else {
		// TLS 1.2 AES-GCM: the explicit part of the next record's nonce (RFC 5288,
		// Section 3). crypto/tls, which wrote the records so far, takes the sequence number,
		// so going on with it repeats no nonce. Reading takes it from the wire.
		binary.BigEndian.PutUint64(l.iv.of(b), s.Seq)
	}
	return b
}

// decodeHeader decodes struct tls_crypto_info.
func decodeHeader(b []byte) (blob.Version, blob.AEAD) {
	return blob.Version(binary.NativeEndian.Uint16(infoVersion.of(b))),
		aeadOf(binary.NativeEndian.Uint16(infoCipher.of(b)))
}

// compareCryptoInfo reports the first field in which got, the kernel's answer,
// differs from want, as an ErrMismatch without any value.
func compareCryptoInfo(want, got []byte, aead blob.AEAD) error {
	if len(got) != len(want) {
		return fmt.Errorf("%w: %d bytes instead of %d", ErrMismatch, len(got), len(want))
	}
	if subtle.ConstantTimeCompare(want, got) == 1 {
		return nil
	}
	l := layouts[aead]
	for _, f := range []struct {
		name string
		span span
	}{
		{"version", infoVersion}, {"cipher_type", infoCipher},
		{"key", l.key}, {"salt", l.salt}, {"iv", l.iv}, {"rec_seq", l.seq},
	} {
		if subtle.ConstantTimeCompare(f.span.of(want), f.span.of(got)) == 0 {
			return fmt.Errorf("%w in %s", ErrMismatch, f.name)
		}
	}
	return ErrMismatch
}

// sameKey reports whether two option values have one key, at whatever number.
func sameKey(a, b []byte, aead blob.AEAD) bool {
	l := layouts[aead]
	if len(a) != len(b) {
		return false
	}
	same := subtle.ConstantTimeCompare(a[:infoHeaderSize], b[:infoHeaderSize]) &
		subtle.ConstantTimeCompare(l.key.of(a), l.key.of(b)) &
		subtle.ConstantTimeCompare(l.salt.of(a), l.salt.of(b))
	return same == 1
}

// rewinds reports whether the socket that answered got holds the key of want at a
// higher sequence number.
func rewinds(want, got []byte, aead blob.AEAD) bool {
	l := layouts[aead]
	return sameKey(want, got, aead) && binary.BigEndian.Uint64(l.seq.of(got)) > binary.BigEndian.Uint64(l.seq.of(want))
}
