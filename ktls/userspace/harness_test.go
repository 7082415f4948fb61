// SPDX-License-Identifier: Apache-2.0

package userspace_test

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls/ktlstest"
	"github.com/offloadd/offloadd/ktls/userspace"
)

const (
	suite13 = blob.TLS_AES_128_GCM_SHA256
	suite12 = blob.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
)

// aeadSuites are one suite for each way in which records are made.
var aeadSuites = []blob.CipherSuite{
	suite13, blob.TLS_AES_256_GCM_SHA384, blob.TLS_CHACHA20_POLY1305_SHA256,
	suite12, blob.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, blob.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

// pair is a TCP connection and the states of both ends.
type pair struct {
	*ktlstest.Pair
	client, server ktlstest.States
}

func newStates(t testing.TB, suite blob.CipherSuite) *pair {
	t.Helper()
	p := ktlstest.NewPair(t)
	client, server := ktlstest.NewStates(t, suite, p)
	p.Server.SetDeadline(time.Now().Add(time.Minute))
	return &pair{p, client, server}
}

// newConns returns both ends of a connection.
func newConns(t testing.TB, suite blob.CipherSuite) (client, server *userspace.Conn) {
	t.Helper()
	p := newStates(t, suite)
	return newConn(t, p.Client, p.client), newConn(t, p.Server, p.server)
}

func newConn(t testing.TB, tcp net.Conn, s ktlstest.States) *userspace.Conn {
	t.Helper()
	c, err := userspace.NewConn(tcp, s.Read, s.Write)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.SetWriteDeadline(time.Now())
		c.Close()
	})
	return c
}

func clone(s *blob.State) *blob.State {
	c := *s
	for _, secret := range []*blob.Secret{&c.Key, &c.IV, &c.NextSecret} {
		*secret = blob.NewSecret(append([]byte(nil), secret.Bytes()...))
	}
	return &c
}

// peer makes and opens the records of the other end. It shares no code with the package:
// what both get wrong in the same way would not be seen.
type peer struct {
	net.Conn
	read, write *blob.State
	padding     int
}

// newPeer returns a Conn as the client, and its peer.
func newPeer(t testing.TB, suite blob.CipherSuite) (*userspace.Conn, *peer) {
	t.Helper()
	p := newStates(t, suite)
	return newConn(t, p.Client, p.client), &peer{Conn: p.Server, read: p.server.Read, write: p.server.Write}
}

func aeadOf(s *blob.State) cipher.AEAD {
	if s.Suite.AEAD() == blob.ChaCha20Poly1305 {
		a, err := chacha20poly1305.New(s.Key.Bytes())
		if err != nil {
			panic(err)
		}
		return a
	}
	b, err := aes.NewCipher(s.Key.Bytes())
	if err != nil {
		panic(err)
	}
	a, err := cipher.NewGCM(b)
	if err != nil {
		panic(err)
	}
	return a
}

func xorNonce(s *blob.State) []byte {
	n := append([]byte(nil), s.IV.Bytes()...)
	for i := range 8 {
		n[4+i] ^= byte(s.Seq >> (56 - 8*i))
	}
	return n
}

// seal makes one record.
func (p *peer) seal(contentType byte, content []byte) []byte {
	s := p.write
	if s.Version == blob.TLS13 {
		return p.sealInner(append(append(append([]byte(nil), content...), contentType), make([]byte, p.padding)...))
	}
	defer func() { s.Seq++ }()
	a := aeadOf(s)
	aad := append(binary.BigEndian.AppendUint64(nil, s.Seq), contentType, 3, 3, byte(len(content)>>8), byte(len(content)))
	nonce, body := nonce12(s)
	body = a.Seal(body, nonce, content, aad)
	return append([]byte{contentType, 3, 3, byte(len(body) >> 8), byte(len(body))}, body...)
}

// sealInner makes one record of TLS 1.3 of what is to be its inside.
func (p *peer) sealInner(inner []byte) []byte {
	s := p.write
	defer func() { s.Seq++ }()
	header := []byte{23, 3, 3, byte((len(inner) + 16) >> 8), byte(len(inner) + 16)}
	return append(header, aeadOf(s).Seal(nil, xorNonce(s), inner, header)...)
}

// nonce12 is the nonce of TLS 1.2, and what of it goes with the record: for AES-GCM
// anything that does not repeat (RFC 5288, Section 3).
func nonce12(s *blob.State) (nonce, explicit []byte) {
	if s.IV.Len() == 12 {
		return xorNonce(s), nil
	}
	explicit = binary.BigEndian.AppendUint64(nil, s.Seq*0x9e3779b97f4a7c15) // odd: no two are the same
	return append(append([]byte(nil), s.IV.Bytes()...), explicit...), explicit
}

func (p *peer) send(t testing.TB, contentType byte, content []byte) {
	t.Helper()
	if _, err := p.Write(p.seal(contentType, content)); err != nil {
		t.Fatal(err)
	}
}

// receive opens the next record.
func (p *peer) receive() (contentType byte, content []byte, err error) {
	header := make([]byte, 5)
	if _, err := io.ReadFull(p, header); err != nil {
		return 0, nil, err
	}
	body := make([]byte, binary.BigEndian.Uint16(header[3:]))
	if _, err := io.ReadFull(p, body); err != nil {
		return 0, nil, err
	}
	s := p.read
	defer func() { s.Seq++ }()
	if s.Version == blob.TLS13 {
		inner, err := aeadOf(s).Open(nil, xorNonce(s), body, header)
		if err != nil {
			return 0, nil, fmt.Errorf("record %d of epoch %d: %w", s.Seq, s.Epoch, err)
		}
		n := len(inner) - 1
		for n >= 0 && inner[n] == 0 {
			n--
		}
		if header[0] != 23 || n < 0 {
			return 0, nil, errors.New("no content type, or one outside")
		}
		return inner[n], inner[:n], nil
	}
	var nonce []byte
	if s.IV.Len() == 12 {
		nonce = xorNonce(s)
	} else {
		// Ours is the sequence number: whoever goes on by that rule repeats none.
		if binary.BigEndian.Uint64(body) != s.Seq {
			return 0, nil, fmt.Errorf("record %d has nonce %x", s.Seq, body[:8])
		}
		nonce, body = append(append(nonce, s.IV.Bytes()...), body[:8]...), body[8:]
	}
	n := len(body) - 16
	aad := append(binary.BigEndian.AppendUint64(nil, s.Seq), header[0], 3, 3, byte(n>>8), byte(n))
	content, err = aeadOf(s).Open(nil, nonce, body, aad)
	return header[0], content, err
}

// receiveData returns n bytes of data, and follows KeyUpdates on the way.
func (p *peer) receiveData(t testing.TB, n int) []byte {
	t.Helper()
	var got []byte
	for len(got) < n {
		kind, content, err := p.receive()
		switch {
		case err != nil:
			t.Fatalf("after %d bytes: %v", len(got), err)
		case kind == 22 && content[0] == 24:
			update(t, p.read)
		case kind != 23:
			t.Fatalf("after %d bytes: record of type %d, %x", len(got), kind, content)
		default:
			got = append(got, content...)
		}
	}
	return got
}

// sendUpdate changes the key that the peer writes with.
func (p *peer) sendUpdate(t testing.TB, request byte) {
	t.Helper()
	p.send(t, 22, []byte{24, 0, 0, 1, request})
	update(t, p.write)
}

func update(t testing.TB, s *blob.State) {
	t.Helper()
	if err := s.Update(); err != nil {
		t.Fatal(err)
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// pattern is n bytes that cost less than random ones, and of which no two records are
// the same.
func pattern(n int) []byte {
	b := make([]byte, 0, n+8)
	for len(b) < n {
		b = binary.BigEndian.AppendUint64(b, uint64(len(b))*0x9e3779b97f4a7c15)
	}
	return b[:n]
}

// ticket is a NewSessionTicket message with n bytes of ticket.
func ticket(n int) []byte {
	body := append(make([]byte, 8), 1, 7, byte(n>>8), byte(n))
	body = append(append(body, make([]byte, n)...), 0, 0)
	return append([]byte{4, 0, byte(len(body) >> 8), byte(len(body))}, body...)
}
