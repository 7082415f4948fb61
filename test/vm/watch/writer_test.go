// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/crypto/chacha20poly1305"
)

// suites are those the kernel and the product have in common.
var suites = []suite{{version13, 51}, {version13, 52}, {version13, 54}, {version12, 51}, {version12, 52}, {version12, 54}}

type suite struct{ version, cipher uint16 }

func (s suite) String() string { return fmt.Sprintf("version %#x cipher %d", s.version, s.cipher) }

// A writer seals records by hand.
type writer struct {
	suite
	aead  cipher.AEAD
	iv    []byte // 12 bytes; of TLS 1.2 AES-GCM the first 4 count
	key   []byte
	kind  byte   // of records, as it stands in their header
	inner byte   // of TLS 1.3 records, as it stands within
	nonce uint64 // of TLS 1.2 AES-GCM: what is added to the sequence number
}

func newWriter(t testing.TB, s suite) *writer {
	t.Helper()
	w := &writer{suite: s, kind: 23, inner: 23, iv: make([]byte, 12), key: make([]byte, 32)}
	rand.Read(w.iv)
	rand.Read(w.key)
	var err error
	switch {
	case s.cipher == 54:
		w.aead, err = chacha20poly1305.New(w.key)
	default:
		if s.cipher == 51 {
			w.key = w.key[:16]
		}
		var block cipher.Block
		if block, err = aes.NewCipher(w.key); err == nil {
			w.aead, err = cipher.NewGCM(block)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// info is the option value that installs the key (include/uapi/linux/tls.h).
func (w *writer) info(seq uint64) []byte {
	number := binary.BigEndian.AppendUint64(nil, seq)
	b := binary.NativeEndian.AppendUint16(nil, w.version)
	b = binary.NativeEndian.AppendUint16(b, w.cipher)
	iv, salt := w.iv, []byte(nil)
	if w.cipher != 54 {
		salt, iv = w.iv[:4], w.iv[4:]
		if w.version == version12 {
			iv = binary.BigEndian.AppendUint64(nil, seq+w.nonce)
		}
	}
	return slices.Concat(b, iv, w.key, salt, number)
}

func (w *writer) install(t testing.TB, seq uint64) *key {
	t.Helper()
	k, err := parseKey(w.info(seq))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// seal makes a record.
func (w *writer) seal(seq uint64, content []byte) []byte {
	number := binary.BigEndian.AppendUint64(nil, seq)
	header := func(n int) []byte { return binary.BigEndian.AppendUint16([]byte{w.kind, 3, 3}, uint16(n)) }
	nonce := slices.Clone(w.iv)
	if w.version == version12 && w.cipher != 54 {
		explicit := binary.BigEndian.AppendUint64(nil, seq+w.nonce)
		copy(nonce[4:], explicit)
		sealed := w.aead.Seal(nil, nonce, content, append(number, header(len(content))...))
		return slices.Concat(header(8+len(sealed)), explicit, sealed)
	}
	for i, b := range number {
		nonce[4+i] ^= b
	}
	if w.version == version12 {
		sealed := w.aead.Seal(nil, nonce, content, append(number, header(len(content))...))
		return append(header(len(sealed)), sealed...)
	}
	inner := append(slices.Clone(content), w.inner)
	h := header(len(inner) + w.aead.Overhead())
	return w.aead.Seal(slices.Clone(h), nonce, inner, h)
}

// A script is what a connection does, in order.
type script struct {
	t      testing.TB
	judge  *judge
	ledger *ledger
	at     int64
	piece  int // bytes fed at a time
}

func newScript(t testing.TB, piece int) *script {
	l := newLedger()
	return &script{t: t, judge: newJudge(ports{1000, 2000}, l), ledger: l, piece: piece}
}

func (s *script) send(records ...[]byte) {
	for _, r := range records {
		s.at += int64(len(r))
		for part := range slices.Chunk(r, s.piece) {
			s.judge.feed(part)
		}
	}
}

func (s *script) attach() { s.judge.attach(s.at) }

func (s *script) install(w *writer, seq uint64) {
	k := w.install(s.t, seq)
	s.ledger.install(k, s.judge.where, true)
	s.judge.install(k, s.at)
}
