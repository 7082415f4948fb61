// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"io"
	"net"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/offloadd/offloadd/blob"
)

// recordLayer goes on with an exported session, as the kernel would. It shares no
// code with the package: what both get wrong in the same way would not be seen.
type recordLayer struct {
	conn        net.Conn
	read, write half
}

type half struct {
	aead cipher.AEAD
	iv   []byte
	seq  uint64
	v12  bool
}

func newHalf(s *blob.State) half {
	h := half{iv: s.IV.Bytes(), seq: s.Seq, v12: s.Version == blob.TLS12}
	var err error
	if s.Suite.AEAD() == blob.ChaCha20Poly1305 {
		h.aead, err = chacha20poly1305.New(s.Key.Bytes())
	} else {
		var b cipher.Block
		if b, err = aes.NewCipher(s.Key.Bytes()); err == nil {
			h.aead, err = cipher.NewGCM(b)
		}
	}
	if err != nil {
		panic(err)
	}
	return h
}

func newRecordLayer(conn net.Conn, s *Session) *recordLayer {
	return &recordLayer{conn, newHalf(s.Read), newHalf(s.Write)}
}

func (h *half) nonce(explicit []byte) []byte {
	if len(h.iv) == 4 {
		return append(append([]byte{}, h.iv...), explicit...)
	}
	n := append([]byte{}, h.iv...)
	var seq [8]byte
	binary.BigEndian.PutUint64(seq[:], h.seq)
	for i := range seq {
		n[4+i] ^= seq[i]
	}
	return n
}

func (h *half) aad12(typ byte, n int) []byte {
	a := make([]byte, 13)
	binary.BigEndian.PutUint64(a, h.seq)
	a[8], a[9], a[10], a[11], a[12] = typ, 3, 3, byte(n>>8), byte(n)
	return a
}

// seal makes one record.
func (h *half) seal(typ byte, content []byte) record {
	var body []byte
	outer := typ
	if h.v12 {
		if len(h.iv) == 4 {
			body = binary.BigEndian.AppendUint64(nil, h.seq)
		}
		body = h.aead.Seal(body, h.nonce(body), content, h.aad12(typ, len(content)))
	} else {
		outer = 23
		inner := append(append([]byte{}, content...), typ)
		n := len(inner) + 16
		body = h.aead.Seal(nil, h.nonce(nil), inner, []byte{23, 3, 3, byte(n >> 8), byte(n)})
	}
	h.seq++
	return append(record{outer, 3, 3, byte(len(body) >> 8), byte(len(body))}, body...)
}

func (h *half) open(r record) (typ byte, content []byte, err error) {
	body, explicit := r[5:], []byte(nil)
	if h.v12 {
		if len(h.iv) == 4 {
			explicit, body = body[:8], body[8:]
		}
		content, err = h.aead.Open(nil, h.nonce(explicit), body, h.aad12(r[0], len(body)-16))
		typ = r[0]
	} else {
		content, err = h.aead.Open(nil, h.nonce(nil), body, r[:5])
		content = bytes.TrimRight(content, "\x00")
		if err == nil {
			content, typ = content[:len(content)-1], content[len(content)-1]
		}
	}
	if err != nil {
		return 0, nil, fmt.Errorf("record %d: %w", h.seq, err)
	}
	h.seq++
	return typ, content, nil
}

func (l *recordLayer) send(typ byte, content []byte) error {
	_, err := l.conn.Write(l.write.seal(typ, content))
	return err
}

func (l *recordLayer) receive() (typ byte, content []byte, err error) {
	r, err := readRecord(l.conn)
	if err != nil {
		return 0, nil, err
	}
	return l.read.open(r)
}

func readRecord(c io.Reader) (record, error) {
	r := make(record, 5)
	if _, err := io.ReadFull(c, r); err != nil {
		return nil, err
	}
	r = append(r, make([]byte, int(r[3])<<8|int(r[4]))...)
	_, err := io.ReadFull(c, r[5:])
	return r, err
}

// receiveData returns n bytes of application data, and skips tickets.
func (l *recordLayer) receiveData(n int) ([]byte, error) {
	var got []byte
	for len(got) < n {
		typ, content, err := l.receive()
		switch {
		case err != nil:
			return got, err
		case typ == 22 && len(content) > 0 && content[0] == 4:
		case typ != 23:
			return got, fmt.Errorf("content type %d", typ)
		default:
			got = append(got, content...)
		}
	}
	return got, nil
}
