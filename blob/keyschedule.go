// SPDX-License-Identifier: Apache-2.0

package blob

import (
	"crypto/hkdf"
	"crypto/hmac"
	"fmt"
	"hash"
	"math"

	"golang.org/x/crypto/cryptobyte"
)

// NewState13 derives the state of a TLS 1.3 key from an application traffic
// secret of epoch 0 (RFC 8446, Section 7.3), with sequence number 0. It consumes
// the secret.
func NewState13(suite CipherSuite, role Role, direction Direction, secret Secret) (*State, error) {
	defer secret.Destroy()
	if suite.Version() != TLS13 {
		return nil, fmt.Errorf("%w: %v is no TLS 1.3 suite", ErrState, suite)
	}
	if secret.Len() != suite.secretSize() {
		return nil, fmt.Errorf("%w: traffic secret of %d bytes, want %d", ErrState, secret.Len(), suite.secretSize())
	}
	h := suite.newHash()
	s := &State{Role: role, Direction: direction, Version: TLS13, Suite: suite}
	for _, part := range []struct {
		dst   *Secret
		label string
		size  int
	}{
		{&s.Key, "key", suite.AEAD().KeySize()},
		{&s.IV, "iv", suite.IVSize()},
		{&s.NextSecret, "traffic upd", suite.secretSize()},
	} {
		b, err := expandLabel(h, secret.Bytes(), part.label, part.size)
		if err != nil {
			s.Destroy()
			return nil, err
		}
		*part.dst = NewSecret(b)
	}
	return s, nil
}

// Update moves a State to the next epoch, as a KeyUpdate does (RFC 8446, Section 7.2):
// key and IV come from NextSecret, the sequence number is 0 again, and all that was there
// is destroyed. Of what was there only NextSecret is needed: the key may be elsewhere, in
// the kernel. If it fails, the whole State is destroyed.
func (s *State) Update() error {
	next, err := s.next()
	s.Destroy()
	if err != nil {
		return err
	}
	next.Epoch, next.Cookie = s.Epoch+1, s.Cookie
	*s = *next
	return nil
}

func (s *State) next() (*State, error) {
	switch {
	case s.Kind() == KindReference:
		return nil, fmt.Errorf("%w: %s holds the key, and cannot change it", ErrState, s.Held.Device)
	case s.Epoch == math.MaxUint32:
		return nil, fmt.Errorf("%w: epochs are used up", ErrState)
	case allZero(s.NextSecret.Bytes()):
		// Everybody could derive the key that would come out.
		return nil, fmt.Errorf("%w: no next traffic secret, or it was destroyed", ErrState)
	}
	return NewState13(s.Suite, s.Role, s.Direction, s.NextSecret)
}

// expandLabel is HKDF-Expand-Label of RFC 8446, Section 7.1, with an empty context.
func expandLabel(h func() hash.Hash, secret []byte, label string, length int) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddUint16(uint16(length))
	b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte("tls13 " + label)) })
	b.AddUint8(0)
	return hkdf.Expand(h, secret, string(b.BytesOrPanic()), length)
}

// NewStates12 derives both states of a TLS 1.2 connection from its master secret
// (RFC 5246, Section 6.3), with sequence number 0, and consumes the master secret.
// The randoms are the 32 bytes of each Hello.
func NewStates12(suite CipherSuite, role Role, master Secret, clientRandom, serverRandom []byte) (read, write *State, err error) {
	defer master.Destroy()
	switch {
	case suite.Version() != TLS12:
		return nil, nil, fmt.Errorf("%w: %v is no TLS 1.2 suite", ErrState, suite)
	case master.Len() != 48 || len(clientRandom) != 32 || len(serverRandom) != 32:
		return nil, nil, fmt.Errorf("%w: master secret and randoms of %d, %d and %d bytes, want 48, 32 and 32",
			ErrState, master.Len(), len(clientRandom), len(serverRandom))
	}
	k, v := suite.AEAD().KeySize(), suite.IVSize()
	seed := append(append([]byte(nil), serverRandom...), clientRandom...)
	block := prf12(suite.newHash(), master.Bytes(), "key expansion", seed, 2*k+2*v)
	defer clear(block)
	next := func(n int) Secret {
		part := append([]byte(nil), block[:n]...)
		clear(block[:n])
		block = block[n:]
		return NewSecret(part)
	}
	client := &State{Key: next(k)}
	server := &State{Key: next(k)}
	client.IV, server.IV = next(v), next(v)
	read, write = client, server
	if role == Client {
		read, write = server, client
	}
	for d, s := range map[Direction]*State{Read: read, Write: write} {
		s.Role, s.Direction, s.Version, s.Suite = role, d, TLS12, suite
	}
	return read, write, nil
}

// prf12 is the PRF of RFC 5246, Section 5.
func prf12(h func() hash.Hash, secret []byte, label string, seed []byte, length int) []byte {
	labelSeed := append([]byte(label), seed...)
	mac := hmac.New(h, secret)
	sum := func(parts ...[]byte) []byte {
		mac.Reset()
		for _, p := range parts {
			mac.Write(p)
		}
		return mac.Sum(nil)
	}
	// One allocation of the final size: growing would leave copies of the keys behind.
	out := make([]byte, 0, length+mac.Size())
	for a := sum(labelSeed); len(out) < length; a = sum(a) {
		p := sum(a, labelSeed)
		out = append(out, p...)
		clear(p)
	}
	clear(out[length:cap(out)])
	return out[:length]
}
