// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"
)

// Protocol versions on the wire and in struct tls_crypto_info.
const (
	version12 = 0x0303
	version13 = 0x0304
)

// A key is one struct tls12_crypto_info_* (include/uapi/linux/tls.h).
type key struct {
	version uint16
	digest  digest
	seq     uint64
	aead    cipher.AEAD
	mask    [12]byte // TLS 1.2 AES-GCM: salt and the explicit nonce of the next record
	onWire  bool     // the nonce's last 8 bytes are sent with each record (RFC 5288, Section 3)
}

// A digest names a key without telling it.
type digest [sha256.Size]byte

// parseKey reads an option value of TLS_TX or TLS_RX.
func parseKey(b []byte) (*key, error) {
	if len(b) < 4 {
		return nil, fmt.Errorf("a key of %d bytes", len(b))
	}
	k := &key{version: binary.NativeEndian.Uint16(b)}
	var secret, seq []byte
	switch id := binary.NativeEndian.Uint16(b[2:]); {
	case k.version != version12 && k.version != version13:
		return nil, fmt.Errorf("a key for version %#x", k.version)
	case id == 51 && len(b) == 40: // TLS_CIPHER_AES_GCM_128
		secret, seq = b[12:28], b[32:]
		copy(k.mask[:], b[28:32])
		copy(k.mask[4:], b[4:12])
		k.onWire = k.version == version12
	case id == 52 && len(b) == 56: // TLS_CIPHER_AES_GCM_256
		secret, seq = b[12:44], b[48:]
		copy(k.mask[:], b[44:48])
		copy(k.mask[4:], b[4:12])
		k.onWire = k.version == version12
	case id == 54 && len(b) == 56: // TLS_CIPHER_CHACHA20_POLY1305
		secret, seq = b[16:48], b[48:]
		copy(k.mask[:], b[4:16])
	default:
		return nil, fmt.Errorf("a key of %d bytes for cipher %d", len(b), id)
	}
	k.seq = binary.BigEndian.Uint64(seq)
	k.digest = sha256.Sum256(secret)
	var err error
	k.aead, err = newAEAD(secret, binary.NativeEndian.Uint16(b[2:]) == 54)
	return k, err
}

func newAEAD(secret []byte, chacha bool) (cipher.AEAD, error) {
	if chacha {
		return chacha20poly1305.New(secret)
	}
	block, err := aes.NewCipher(secret)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

const headerSize = 5

// explicitSize is the length of the nonce in each record.
func (k *key) explicitSize() int {
	if k.onWire {
		return 8
	}
	return 0
}

// overhead is what a record has beside its content; in TLS 1.3 the type as well.
func (k *key) overhead() int {
	if k.version == version13 {
		return k.aead.Overhead() + 1
	}
	return k.explicitSize() + k.aead.Overhead()
}

// opens reports whether a whole record authenticates at a sequence number (RFC 8446,
// Sections 5.2 and 5.3; RFC 5288, Section 3; RFC 7905, Section 2; RFC 5246, Section
// 6.2.3.3). What is in it nobody looks at; scratch is reused.
func (k *key) opens(record []byte, seq uint64, scratch *[]byte) bool {
	body := record[headerSize:]
	if len(body) < k.overhead() {
		return false
	}
	nonce := k.mask
	if k.onWire {
		copy(nonce[4:], body)
		body = body[8:]
	} else {
		low := binary.BigEndian.Uint64(nonce[4:])
		binary.BigEndian.PutUint64(nonce[4:], low^seq)
	}
	additional := record[:headerSize]
	if k.version == version12 {
		additional = binary.BigEndian.AppendUint64(make([]byte, 0, 13), seq)
		additional = append(additional, record[:3]...)
		additional = binary.BigEndian.AppendUint16(additional, uint16(len(body)-k.aead.Overhead()))
	}
	content, err := k.aead.Open((*scratch)[:0], nonce[:], body, additional)
	if err == nil {
		*scratch = content
	}
	return err == nil
}

// updates reports whether the content of a TLS 1.3 record ends with a KeyUpdate (RFC
// 8446, Sections 4.6.3 and 5.2), which ends its key. Behind the content are its type and
// zeros.
func (k *key) updates(content []byte) bool {
	content = bytes.TrimRight(content, "\x00")
	if k.version != version13 || len(content) < 6 || content[len(content)-1] != 22 {
		return false
	}
	message := content[len(content)-6:]
	return message[0] == 24 && message[1] == 0 && message[2] == 0 && message[3] == 1 && message[4] <= 1
}

// explicit is the nonce in a record.
func (k *key) explicit(record []byte) uint64 {
	return binary.BigEndian.Uint64(record[headerSize:])
}

// firstExplicit is what the kernel will write into the first record.
func (k *key) firstExplicit() uint64 { return binary.BigEndian.Uint64(k.mask[4:]) }
