// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/offloadd/offloadd/blob"
)

const tagSize = 16 // of all three AEADs

// An opener opens records with the key of a state. It cannot seal any, and it does
// not count: the caller says which sequence number to try.
type opener struct {
	state   *blob.State
	aead    cipher.AEAD
	sealed  []byte // nonce and ciphertext
	scratch []byte // decrypted content
}

func newOpener(s *blob.State) (*opener, error) {
	o := &opener{state: s}
	var err error
	switch s.Suite.AEAD() {
	case blob.AES128GCM, blob.AES256GCM:
		var block cipher.Block
		if block, err = aes.NewCipher(s.Key.Bytes()); err == nil {
			// Not NewGCM, which fips140=only refuses. This one chooses its own nonce to seal
			// with, and to open takes any nonce in front of the ciphertext.
			o.aead, err = cipher.NewGCMWithRandomNonce(block)
		}
	case blob.ChaCha20Poly1305:
		o.aead, err = chacha20poly1305.New(s.Key.Bytes())
	default:
		err = fmt.Errorf("unknown %v", s.Suite)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: set up %v: %w", ErrLocal, s.Suite, err)
	}
	return o, nil
}

// open opens r as the record with the given sequence number. The content is valid
// until the next call.
func (o *opener) open(r record, seq uint64) (contentType byte, content []byte, ok bool) {
	body, aad := r.body(), r.header()
	if o.state.Version == blob.TLS12 {
		if body, aad, ok = o.frame12(r, seq); !ok {
			return 0, nil, false
		}
	}
	if len(body) < tagSize {
		return 0, nil, false
	}
	o.sealed = append(o.appendNonce(o.sealed[:0], r, seq), body...)
	nonce, ciphertext := o.sealed[:o.aead.NonceSize()], o.sealed[o.aead.NonceSize():]
	if n := len(body) - tagSize; cap(o.scratch) < n {
		o.wipe()
		o.scratch = make([]byte, n)
	}
	content, err := o.aead.Open(o.scratch[:0], nonce, ciphertext, aad)
	if err != nil {
		return 0, nil, false
	}
	if o.state.Version == blob.TLS12 {
		return r.contentType(), content, true
	}
	// TLSInnerPlaintext: content, type, zeros (RFC 8446, Section 5.2).
	content = bytes.TrimRight(content, "\x00")
	if len(content) == 0 {
		return 0, nil, true
	}
	return content[len(content)-1], content[:len(content)-1], true
}

// frame12 returns ciphertext and additional data of a TLS 1.2 record (RFC 5246,
// Section 6.2.3.3). AES-GCM puts half of the nonce before the ciphertext (RFC 5288,
// Section 3).
func (o *opener) frame12(r record, seq uint64) (body, aad []byte, ok bool) {
	body = r.body()
	if o.state.Suite.AEAD() != blob.ChaCha20Poly1305 {
		if len(body) < 8 {
			return nil, nil, false
		}
		body = body[8:]
	}
	if len(body) < tagSize {
		return nil, nil, false
	}
	aad = binary.BigEndian.AppendUint64(nil, seq)
	aad = append(aad, r.header()[:3]...)
	return body, binary.BigEndian.AppendUint16(aad, uint16(len(body)-tagSize)), true
}

// appendNonce appends the nonce of a record: salt and explicit part for AES-GCM in
// TLS 1.2, otherwise the IV with the sequence number added to it (RFC 8446, Section
// 5.3; RFC 7905, Section 2).
func (o *opener) appendNonce(b []byte, r record, seq uint64) []byte {
	b = append(b, o.state.IV.Bytes()...)
	if o.state.Suite.IVSize() == 4 {
		return append(b, r.body()[:8]...)
	}
	last8 := b[len(b)-8:]
	binary.BigEndian.PutUint64(last8, binary.BigEndian.Uint64(last8)^seq)
	return b
}

// wipe overwrites the decrypted content.
func (o *opener) wipe() { clear(o.scratch[:cap(o.scratch)]) }
