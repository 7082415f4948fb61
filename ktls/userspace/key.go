// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"math"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
)

// Sizes in bytes of what a record is made of (RFC 8446, Section 5.2; RFC 5288, Section 3).
const (
	headerSize   = 5
	explicitSize = 8
	tagSize      = 16
	// maxContent is what one record carries at most (RFC 8446, Section 5.1).
	maxContent = 16384
)

// Content types (RFC 8446, Section 5.1).
const (
	recordAlert     uint8 = 21
	recordHandshake uint8 = 22
	recordData      uint8 = 23
)

// key is the key of one direction at work. Who has it keeps it behind a pointer: see
// blob.Secret on what printers follow.
type key struct {
	// state is without key and IV, which are in aead and iv. Seq is the number of the next
	// record.
	state blob.State
	aead  cipher.AEAD
	iv    [chacha20poly1305.NonceSize]byte
	// explicit is how many bytes of the nonce each record carries.
	explicit int
	// Arguments of the AEAD, which is an interface: on the stack they would be allocated
	// anew for each record.
	nonce [chacha20poly1305.NonceSize]byte
	aad   [13]byte
}

// newKey takes over a state, which is empty afterwards.
func newKey(s *blob.State) (*key, error) {
	k := &key{state: *s}
	s.Key, s.IV, s.NextSecret = blob.Secret{}, blob.Secret{}, blob.Secret{}
	if err := k.load(); err != nil {
		k.destroy()
		return nil, err
	}
	return k, nil
}

// load makes the AEAD of the state's key and IV, and destroys them.
func (k *key) load() (err error) {
	defer k.state.Key.Destroy()
	defer k.state.IV.Destroy()
	if k.state.Suite.AEAD() == blob.ChaCha20Poly1305 {
		k.aead, err = chacha20poly1305.New(k.state.Key.Bytes())
	} else {
		var block cipher.Block
		if block, err = aes.NewCipher(k.state.Key.Bytes()); err == nil {
			k.aead, err = cipher.NewGCM(block)
		}
	}
	if err != nil {
		return fmt.Errorf("%v: %w", k.state.Suite, err)
	}
	clear(k.iv[:])
	copy(k.iv[:], k.state.IV.Bytes())
	k.explicit = len(k.iv) - k.state.IV.Len()
	return nil
}

// update changes to the key of the next epoch (RFC 8446, Section 7.2).
func (k *key) update() error {
	if err := k.state.Update(); err != nil {
		return err
	}
	if err := k.state.Validate(); err != nil {
		return err
	}
	return k.load()
}

// destroy leaves nothing of the key that is ours to overwrite.
func (k *key) destroy() {
	k.state.Destroy()
	k.aead = nil
	clear(k.iv[:])
	clear(k.nonce[:])
}

// overhead is what a record adds to its content, header and all.
func (k *key) overhead() int {
	if k.state.Version == blob.TLS13 {
		return headerSize + 1 + tagSize
	}
	return headerSize + k.explicit + tagSize
}

// setNonce makes the nonce of the next record: the sequence number over the IV (RFC 8446,
// Section 5.3; RFC 7905, Section 2), or what the record carries behind it (RFC 5288,
// Section 3).
func (k *key) setNonce(explicit []byte) {
	k.nonce = k.iv
	if k.explicit > 0 {
		copy(k.nonce[len(k.nonce)-explicitSize:], explicit)
		return
	}
	at := len(k.nonce) - 8
	binary.BigEndian.PutUint64(k.nonce[at:], binary.BigEndian.Uint64(k.nonce[at:])^k.state.Seq)
}

// additional returns what is authenticated beside the content, for so many bytes of
// content in TLS 1.2 (RFC 5246, Section 6.2.3.3), of ciphertext in TLS 1.3 (RFC 8446,
// Section 5.2).
func (k *key) additional(outer uint8, size int) []byte {
	a := k.aad[:0]
	if k.state.Version == blob.TLS12 {
		a = binary.BigEndian.AppendUint64(a, k.state.Seq)
	}
	return appendHeader(a, outer, size)
}

// appendHeader appends the header of a record.
func appendHeader(b []byte, outer uint8, size int) []byte {
	return binary.BigEndian.AppendUint16(append(b, outer, 3, 3), uint16(size))
}

// seal makes the next record of at most maxContent bytes, in b, which has room for it, and
// returns it.
func (k *key) seal(b []byte, contentType uint8, content []byte) ([]byte, error) {
	if k.state.Seq == math.MaxUint64 {
		return nil, ktls.ErrRecordLimit
	}
	outer, inner := contentType, len(content)
	if k.state.Version == blob.TLS13 {
		outer, inner = recordData, len(content)+1
	}
	b = appendHeader(b[:0], outer, k.explicit+inner+tagSize)
	if k.explicit > 0 {
		// As crypto/tls and the kernel do, so that whoever goes on repeats no nonce.
		b = binary.BigEndian.AppendUint64(b, k.state.Seq)
	}
	k.setNonce(b[headerSize:])
	begin := len(b)
	b = append(b, content...)
	additional := inner
	if k.state.Version == blob.TLS13 {
		b = append(b, contentType)
		additional += tagSize
	}
	sealed := k.aead.Seal(b[begin:begin], k.nonce[:], b[begin:], k.additional(outer, additional))
	k.state.Seq++
	return b[:begin+len(sealed)], nil
}

// open opens the next record in place.
func (k *key) open(record []byte) (contentType uint8, content []byte, end *ktls.Ending) {
	if k.state.Seq == math.MaxUint64 {
		return 0, nil, &ktls.Ending{Err: ktls.ErrRecordLimit, Alert: alertInternalError}
	}
	body := record[headerSize:]
	k.setNonce(body)
	body = body[k.explicit:]
	size := len(body)
	if k.state.Version == blob.TLS12 {
		size -= tagSize
	}
	content, err := k.aead.Open(body[:0], k.nonce[:], body, k.additional(record[0], size))
	if err != nil {
		return 0, nil, badRecord(alertBadRecordMAC, "it did not authenticate")
	}
	k.state.Seq++
	if k.state.Version == blob.TLS12 {
		return record[0], content, nil
	}
	return unpad(content)
}

// unpad finds the content type, which is the last byte that is not zero (RFC 8446,
// Section 5.4).
func unpad(inner []byte) (contentType uint8, content []byte, end *ktls.Ending) {
	for i := len(inner) - 1; i >= 0; i-- {
		if inner[i] != 0 {
			return inner[i], inner[:i], nil
		}
	}
	return 0, nil, badRecord(alertUnexpectedMessage, "it has no content type")
}
