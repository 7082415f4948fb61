// SPDX-License-Identifier: Apache-2.0

package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
)

// errFault says that a signature was withheld.
var errFault = errors.New("the token's signature does not verify with the key's public part; it is not passed on")

// verified verifies what its key signs.
type verified struct{ crypto.Signer }

func (v *verified) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	signature, err := v.Signer.Sign(rand, digest, opts)
	if err != nil {
		return nil, err
	}
	if err := verify(v.Public(), digest, signature, opts); err != nil {
		return nil, fmt.Errorf("%w (%v)", errFault, err)
	}
	return signature, nil
}

func verify(public crypto.PublicKey, digest, signature []byte, opts crypto.SignerOpts) error {
	ok := false
	switch k := public.(type) {
	case *rsa.PublicKey:
		if pss, isPSS := opts.(*rsa.PSSOptions); isPSS {
			return rsa.VerifyPSS(k, opts.HashFunc(), digest, signature, pss)
		}
		return rsa.VerifyPKCS1v15(k, opts.HashFunc(), digest, signature)
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(k, digest, signature)
	case ed25519.PublicKey:
		ok = ed25519.Verify(k, digest, signature)
	}
	if !ok {
		return errors.New("verification error")
	}
	return nil
}

// Try makes one signature of each kind that TLS needs of such a key, so that a key
// or token that cannot is found out at the start. Some TPMs for example give
// RSASSA-PSS signatures only with a salt that TLS 1.3 does not allow (RFC 8446,
// Section 4.2.3).
func Try(key crypto.Signer) error {
	digest := sha256.Sum256([]byte("offloadd tries a key"))
	try := func(what string, opts crypto.SignerOpts) error {
		if _, err := key.Sign(rand.Reader, digest[:], opts); err != nil {
			return fmt.Errorf("%w: trial signature, %s: %w", ErrUnsuitable, what, err)
		}
		return nil
	}
	switch key.Public().(type) {
	case *rsa.PublicKey:
		if err := try("RSASSA-PSS with SHA-256", &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}); err != nil {
			return err
		}
		return try("RSASSA-PKCS1-v1_5 with SHA-256", crypto.SHA256)
	case *ecdsa.PublicKey:
		return try("ECDSA", crypto.SHA256)
	case ed25519.PublicKey:
		return try("Ed25519", crypto.Hash(0))
	}
	return fmt.Errorf("%w: %T", ErrUnsuitable, key.Public())
}
