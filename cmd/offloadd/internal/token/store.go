// SPDX-License-Identifier: Apache-2.0

package token

import (
	"crypto"
	"errors"
	"fmt"
)

var (
	// ErrPIN says that a token refused the PIN. It is not tried again: tokens lock
	// after a few wrong ones.
	ErrPIN = errors.New("the token refused the PIN")
	// ErrNotFound says that no token or no key matches.
	ErrNotFound = errors.New("not found")
	// ErrAmbiguous says that more than one token or key matches.
	ErrAmbiguous = errors.New("ambiguous")
	// ErrUnsuitable says that the key cannot sign TLS handshakes.
	ErrUnsuitable = errors.New("unsuitable key")
)

// Store reaches the tokens. Its methods, and those of the keys, may be called
// concurrently, but for Close.
type Store struct {
	modules modules
	tpms    tpms
}

// NewStore returns a Store that has opened nothing yet.
func NewStore() *Store { return &Store{} }

// Find looks the key up. The PIN stays in use by the key, so that it can log in again
// to a token that was away. Sign of what is returned takes a digest, or for Ed25519 a
// message, and the options that package tls gives.
func (s *Store) Find(r *Reference, pin []byte) (crypto.Signer, error) {
	var key crypto.Signer
	err := r.Supported()
	switch {
	case err != nil:
	case r.pkcs11 != nil:
		key, err = s.modules.find(r.pkcs11, pin)
	default:
		key, err = s.tpms.find(r.tpm, pin)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r, err)
	}
	return &verified{key}, nil
}

// Close lets go of the tokens, which keep all they have.
func (s *Store) Close() error { return s.modules.close() }
