// SPDX-License-Identifier: Apache-2.0

package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"io"
	"sync"
	"testing"
)

func find(t *testing.T, s *Store, reference string, pin string) (crypto.Signer, error) {
	t.Helper()
	r, err := Parse(reference)
	if err != nil {
		t.Fatal(err)
	}
	var secret []byte
	if pin != "" {
		secret = []byte(pin)
	}
	key, err := s.Find(r, secret)
	if err != nil {
		return nil, err
	}
	return key, Try(key)
}

// store returns a Store that is closed in the end.
func store(t *testing.T) *Store {
	s := NewStore()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// digests of one message.
var digests = func() map[crypto.Hash][]byte {
	a, b, c := sha256.Sum256([]byte("message")), sha512.Sum384([]byte("message")), sha512.Sum512([]byte("message"))
	return map[crypto.Hash][]byte{crypto.SHA256: a[:], crypto.SHA384: b[:], crypto.SHA512: c[:]}
}()

// signAll signs with all hashes and schemes, several at a time, and verifies with the
// public part that the test made or imported.
func signAll(t *testing.T, key crypto.Signer, public crypto.PublicKey) {
	t.Helper()
	if p, ok := public.(interface{ Equal(crypto.PublicKey) bool }); !ok || !p.Equal(key.Public()) {
		t.Fatalf("the key is %v, want %v", key.Public(), public)
	}
	var jobs sync.WaitGroup
	try := func(digest []byte, opts crypto.SignerOpts) {
		jobs.Go(func() {
			signature, err := key.Sign(nil, digest, opts)
			if err == nil {
				err = verify(public, digest, signature, opts)
			}
			if err != nil {
				t.Errorf("%T %v: %v", opts, opts.HashFunc(), err)
			}
		})
	}
	for hash, digest := range digests {
		switch public.(type) {
		case *rsa.PublicKey:
			try(digest, hash)
			try(digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash})
		case *ecdsa.PublicKey:
			try(digest, hash)
		case ed25519.PublicKey:
			try([]byte("any message"), crypto.Hash(0))
		}
	}
	jobs.Wait()
	// The other scheme or length is no signature at all.
	for _, opts := range []crypto.SignerOpts{crypto.MD5SHA1, crypto.SHA1} {
		if s, err := key.Sign(nil, make([]byte, opts.HashFunc().Size()), opts); err == nil {
			t.Errorf("signed %v: %x", opts, s)
		}
	}
}

// liar gives signatures of another key.
type liar struct{ crypto.Signer }

func (l liar) Public() crypto.PublicKey { return ed25519.PublicKey(make([]byte, 32)) }

func TestASignatureThatDoesNotVerifyIsWithheld(t *testing.T) {
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	signature, err := (&verified{liar{private}}).Sign(nil, []byte("message"), crypto.Hash(0))
	if !errors.Is(err, errFault) || signature != nil {
		t.Errorf("%x, %v", signature, err)
	}
	if err := Try(&verified{liar{private}}); !errors.Is(err, ErrUnsuitable) || !errors.Is(err, errFault) {
		t.Errorf("trial: %v", err)
	}
}

// noPSS is an RSA key that pads with the longest salt, as some TPMs do.
type noPSS struct{ *rsa.PrivateKey }

func (k noPSS) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if _, ok := opts.(*rsa.PSSOptions); ok {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto, Hash: opts.HashFunc()}
	}
	return k.PrivateKey.Sign(rand, digest, opts)
}

func TestAnRSAKeyWithASaltThatTLSForbidsIsRefusedAtTheStart(t *testing.T) {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if err := Try(&verified{private}); err != nil {
		t.Errorf("a good key: %v", err)
	}
	if err := Try(&verified{noPSS{private}}); !errors.Is(err, ErrUnsuitable) {
		t.Errorf("a bad key: %v", err)
	}
}
