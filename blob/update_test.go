// SPDX-License-Identifier: Apache-2.0

package blob

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
)

// TestUpdatedKeysEqualThoseOfCryptoTLS plays the client of a crypto/tls server after
// the handshake, by hand: what is sealed under each next key of ours it must read, and
// what it writes after a request must open under the next one of its own.
func TestUpdatedKeysEqualThoseOfCryptoTLS(t *testing.T) {
	server, wire, client, serverState := handshake(t)
	go func() { // an echo, which answers requests by itself
		io.Copy(server, server)
	}()
	for epoch := range uint32(4) {
		if client.Epoch != epoch || serverState.Epoch != epoch {
			t.Fatalf("epochs %d and %d, want %d", client.Epoch, serverState.Epoch, epoch)
		}
		text := fmt.Sprintf("epoch %d", epoch)
		write(t, wire, client, 23, []byte(text))
		if kind, got := read(t, wire, serverState); kind != 23 || string(got) != text {
			t.Fatalf("got type %d, %q", kind, got)
		}
		write(t, wire, client, 22, []byte{24, 0, 0, 1, 1})
		if kind, got := read(t, wire, serverState); kind != 22 || !bytes.Equal(got, []byte{24, 0, 0, 1, 0}) {
			t.Fatalf("got type %d, %x, and no answer", kind, got)
		}
		for _, s := range []*State{client, serverState} {
			old := []Secret{s.Key, s.IV, s.NextSecret}
			if err := s.Update(); err != nil {
				t.Fatal(err)
			}
			for _, o := range old {
				if !allZero(o.Bytes()) {
					t.Error("Update left a secret")
				}
			}
		}
	}
}

// TestUpdateRefuses what would yield no key, or one that others know.
func TestUpdateRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*State){
		"TLS 1.2": func(s *State) {
			s.Suite, s.Version = TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS12
		},
		"no next secret":           func(s *State) { s.NextSecret = Secret{} },
		"a next secret too short":  func(s *State) { s.NextSecret = NewSecret([]byte{1}) },
		"a destroyed next secret":  func(s *State) { s.NextSecret.Destroy() },
		"the last epoch":           func(s *State) { s.Epoch = math.MaxUint32 },
		"a key that a device held": func(s *State) { s.Held = Held{Device: "eth0", Digest: KeyDigest{1}} },
	} {
		s, err := NewState13(TLS_AES_128_GCM_SHA256, Client, Write, NewSecret(bytes.Repeat([]byte{7}, 32)))
		if err != nil {
			t.Fatal(err)
		}
		spoil(s)
		key, next := s.Key, s.NextSecret
		if err := s.Update(); !errors.Is(err, ErrState) {
			t.Errorf("%s: %v", name, err)
		}
		if !allZero(key.Bytes()) || !allZero(next.Bytes()) {
			t.Errorf("%s: a secret is left", name)
		}
	}
}

// handshake returns a crypto/tls server, the other end of its connection, and the states
// by which we write and read there.
func handshake(t *testing.T) (server *tls.Conn, wire net.Conn, client, serverState *State) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	below, wire := net.Pipe()
	t.Cleanup(func() { below.Close(); wire.Close() })
	wire.SetDeadline(time.Now().Add(10 * time.Second))
	server = tls.Server(below, &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		// Without tickets the server has written nothing yet.
		SessionTicketsDisabled: true,
		KeyLogWriter:           &log,
	})
	c := tls.Client(wire, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true})
	done := make(chan error, 1)
	go func() { done <- server.Handshake() }()
	if err := errors.Join(c.Handshake(), <-done); err != nil {
		t.Fatal(err)
	}
	suite := CipherSuite(c.ConnectionState().CipherSuite)
	secret := func(label string) Secret {
		for line := range strings.Lines(log.String()) {
			if f := strings.Fields(line); f[0] == label {
				return NewSecret(unhex(t, f[2]))
			}
		}
		t.Fatalf("no %s", label)
		return Secret{}
	}
	var errs [2]error
	client, errs[0] = NewState13(suite, Client, Write, secret("CLIENT_TRAFFIC_SECRET_0"))
	serverState, errs[1] = NewState13(suite, Client, Read, secret("SERVER_TRAFFIC_SECRET_0"))
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	return server, wire, client, serverState
}

// aead returns the AEAD and the nonce of the next record (RFC 8446, Section 5.3).
func (s *State) aead(t *testing.T) (a cipher.AEAD, nonce []byte) {
	t.Helper()
	var err error
	if s.Suite.AEAD() == ChaCha20Poly1305 {
		a, err = chacha20poly1305.New(s.Key.Bytes())
	} else {
		var block cipher.Block
		if block, err = aes.NewCipher(s.Key.Bytes()); err == nil {
			a, err = cipher.NewGCM(block)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	nonce = bytes.Clone(s.IV.Bytes())
	binary.BigEndian.PutUint64(nonce[4:], binary.BigEndian.Uint64(nonce[4:])^s.Seq)
	s.Seq++
	return a, nonce
}

func write(t *testing.T, w io.Writer, s *State, kind byte, content []byte) {
	t.Helper()
	a, nonce := s.aead(t)
	inner := append(bytes.Clone(content), kind)
	header := binary.BigEndian.AppendUint16([]byte{23, 3, 3}, uint16(len(inner)+a.Overhead()))
	if _, err := w.Write(a.Seal(bytes.Clone(header), nonce, inner, header)); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, r io.Reader, s *State) (kind byte, content []byte) {
	t.Helper()
	header := make([]byte, 5)
	if _, err := io.ReadFull(r, header); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint16(header[3:]))
	if _, err := io.ReadFull(r, body); err != nil {
		t.Fatal(err)
	}
	a, nonce := s.aead(t)
	inner, err := a.Open(nil, nonce, body, header)
	if err != nil {
		t.Fatalf("epoch %d: %v", s.Epoch, err)
	}
	return inner[len(inner)-1], inner[:len(inner)-1]
}
