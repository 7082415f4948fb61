// SPDX-License-Identifier: Apache-2.0

//go:build pkcs11 && cgo

package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/miekg/pkcs11"
)

// pkcs11Key is a private key object of a token.
type pkcs11Key struct {
	module *module
	uri    *pkcs11URI
	pin    []byte
	public crypto.PublicKey

	mu sync.Mutex
	at location // guarded by mu
}

// location is where the key was seen last.
type location struct {
	slot       *slot
	object     pkcs11.ObjectHandle
	generation int // of the module
}

// errRenewed says that the module was initialised anew since the key was found.
var errRenewed = errors.New("the module was initialised anew")

func (k *pkcs11Key) Public() crypto.PublicKey { return k.public }

// find looks for the key among all tokens that are there now.
func (k *pkcs11Key) find() (at location, public crypto.PublicKey, err error) {
	k.module.life.RLock()
	defer k.module.life.RUnlock()
	at.generation = k.module.generation
	if at.slot, err = k.module.slot(k.uri); err != nil {
		return at, nil, err
	}
	err = at.slot.use(k.pin, func(s pkcs11.SessionHandle) error {
		o := objects{at.slot, s}
		if at.object, err = o.privateKey(k.uri); err != nil {
			return err
		}
		public, err = o.publicPart(at.object)
		return err
	})
	return at, public, err
}

// signTries bounds the attempts at one signature.
const signTries = 3

// Sign signs. Where that fails in a way that says the token was away or was changed,
// the key is looked up again.
func (k *pkcs11Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	mechanism, input, err := k.mechanism(digest, opts)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	at := k.at
	k.mu.Unlock()
	signature, err := k.sign(at, mechanism, input)
	for tries := 1; err != nil && isStale(err) && tries < signTries; tries++ {
		k.reset(at)
		if at, err = k.again(err); err != nil {
			return nil, err
		}
		signature, err = k.sign(at, mechanism, input)
	}
	if err != nil {
		return nil, err
	}
	if _, ok := k.public.(*ecdsa.PublicKey); ok {
		half := len(signature) / 2 // r and s, of equal size (PKCS#11 2.40, Section 2.3.1)
		return encodeECDSA(signature[:half], signature[half:])
	}
	return signature, nil
}

func (k *pkcs11Key) sign(at location, m *pkcs11.Mechanism, input []byte) (signature []byte, err error) {
	k.module.life.RLock()
	defer k.module.life.RUnlock()
	if at.generation != k.module.generation {
		return nil, errRenewed
	}
	err = at.slot.use(k.pin, func(s pkcs11.SessionHandle) error {
		if err := at.slot.SignInit(s, []*pkcs11.Mechanism{m}, at.object); err != nil {
			return fmt.Errorf("C_SignInit: %w", err)
		}
		if signature, err = at.slot.Sign(s, input); err != nil {
			return fmt.Errorf("C_Sign: %w", err)
		}
		return nil
	})
	return signature, err
}

// reset closes the idle sessions with the token: it may have been away, and they
// with it.
func (k *pkcs11Key) reset(at location) {
	k.module.life.RLock()
	defer k.module.life.RUnlock()
	if at.generation == k.module.generation {
		at.slot.reset()
	}
}

// isStale reports whether an error may come from a token that was away meanwhile.
func isStale(err error) bool {
	return errors.Is(err, errRenewed) || isCode(err, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED, pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_USER_NOT_LOGGED_IN,
		pkcs11.CKR_KEY_HANDLE_INVALID, pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_SLOT_ID_INVALID,
		pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_TOKEN_NOT_RECOGNIZED,
		pkcs11.CKR_GENERAL_ERROR)
}

// again looks the key up anew. It must be the same key.
func (k *pkcs11Key) again(because error) (location, error) {
	at, public, err := k.find()
	if (errors.Is(err, ErrNotFound) || isStale(err)) && k.module.renew(at.generation) {
		at, public, err = k.find()
	}
	if err != nil {
		return at, fmt.Errorf("%w (looked for again because of: %v)", err, because)
	}
	if same, ok := public.(interface{ Equal(crypto.PublicKey) bool }); !ok || !same.Equal(k.public) {
		return at, errors.New("the token holds another key by this name now; new workers will use it")
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.at = at
	return at, nil
}

// pkcs11Hash is how a hash is named in RSASSA-PSS, and the DER of DigestInfo before
// the digest in RSASSA-PKCS1-v1_5 (RFC 8017, Section 9.2, note 1).
type pkcs11Hash struct {
	hash, mgf  uint
	digestInfo []byte
}

var pkcs11Hashes = map[crypto.Hash]pkcs11Hash{
	crypto.SHA256: {pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256, digestInfo(1, 32)},
	crypto.SHA384: {pkcs11.CKM_SHA384, pkcs11.CKG_MGF1_SHA384, digestInfo(2, 48)},
	crypto.SHA512: {pkcs11.CKM_SHA512, pkcs11.CKG_MGF1_SHA512, digestInfo(3, 64)},
}

// digestInfo: SEQUENCE { SEQUENCE { 2.16.840.1.101.3.4.2.arc, NULL }, OCTET STRING }.
func digestInfo(arc, size byte) []byte {
	return []byte{0x30, 17 + size, 0x30, 13, 0x06, 9, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, arc, 0x05, 0, 0x04, size}
}

// PKCS#11 3.0, which the headers here predate.
const ckmEdDSA, ckkECEdwards = 0x1057, 0x40

// mechanism says how to sign a digest, and what the token gets.
func (k *pkcs11Key) mechanism(digest []byte, opts crypto.SignerOpts) (*pkcs11.Mechanism, []byte, error) {
	h, known := pkcs11Hashes[opts.HashFunc()]
	if opts.HashFunc() != 0 && (!known || len(digest) != opts.HashFunc().Size()) {
		return nil, nil, fmt.Errorf("%d bytes are no digest of %v", len(digest), opts.HashFunc())
	}
	switch p := k.public.(type) {
	case *rsa.PublicKey:
		if !known {
			return nil, nil, errors.New("RSA signs digests only")
		}
		if _, ok := opts.(*rsa.PSSOptions); ok {
			params := pkcs11.NewPSSParams(h.hash, h.mgf, uint(len(digest)))
			return pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_PSS, params), digest, nil
		}
		return pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS, nil), append(h.digestInfo[:len(h.digestInfo):len(h.digestInfo)], digest...), nil
	case *ecdsa.PublicKey:
		if !known {
			return nil, nil, errors.New("ECDSA signs digests only")
		}
		// The leftmost bits of the digest count (FIPS 186-5, Section 6.4.1). Not every token
		// cuts it by itself.
		return pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil), digest[:min(len(digest), p.Curve.Params().BitSize/8)], nil
	}
	return pkcs11.NewMechanism(ckmEdDSA, nil), digest, nil
}
