// SPDX-License-Identifier: Apache-2.0

package token

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
)

// tpms holds the TPMs by path.
type tpms struct {
	mu      sync.Mutex
	devices map[string]*tpmDevice // guarded by mu
}

// tpmDevice is one TPM. It does one thing at a time, and is opened for each, so that
// one that was away is there again.
type tpmDevice struct {
	path string
	mu   sync.Mutex
	// refused holds the keys whose PIN was wrong: each try counts against the lockout of
	// the whole TPM.
	refused map[uint32]error // guarded by mu
}

func (t *tpms) device(path string) *tpmDevice {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.devices == nil {
		t.devices = make(map[string]*tpmDevice)
	}
	if t.devices[path] == nil {
		t.devices[path] = &tpmDevice{path: path, refused: make(map[uint32]error)}
	}
	return t.devices[path]
}

func (t *tpms) find(u *tpmURI, pin []byte) (crypto.Signer, error) {
	key := &tpmKey{device: t.device(u.device), handle: tpm2.TPMHandle(u.handle), pin: pin}
	err := key.device.use(func(t transport.TPM) error { return key.read(t) })
	if err != nil {
		return nil, err
	}
	return key, nil
}

// use runs f with the TPM.
func (d *tpmDevice) use(f func(transport.TPM) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	t, err := d.open()
	if err != nil {
		return fmt.Errorf("TPM: %w", err)
	}
	defer t.Close()
	return f(t)
}

func (d *tpmDevice) open() (transport.TPMCloser, error) {
	info, err := os.Stat(d.path)
	if err != nil {
		return nil, err
	}
	if info.Mode()&os.ModeSocket != 0 {
		return linuxudstpm.Open(d.path)
	}
	return linuxtpm.Open(d.path)
}

// tpmKey is a persistent signing key.
type tpmKey struct {
	device *tpmDevice
	handle tpm2.TPMHandle
	pin    []byte
	name   tpm2.TPM2BName
	public crypto.PublicKey
}

// read asks the TPM what the key is.
func (k *tpmKey) read(t transport.TPM) error {
	answer, err := tpm2.ReadPublic{ObjectHandle: k.handle}.Execute(t)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return fmt.Errorf("%w: the TPM has no object with this handle; list them with tpm2_getcap handles-persistent", ErrNotFound)
	} else if err != nil {
		return fmt.Errorf("TPM2_ReadPublic: %w", err)
	}
	area, err := answer.OutPublic.Contents()
	if err != nil {
		return fmt.Errorf("TPM2_ReadPublic: %w", err)
	}
	k.name = answer.Name
	if a := area.ObjectAttributes; !a.SignEncrypt || a.Restricted {
		return fmt.Errorf("%w: it must be able to sign (%v) and must not be restricted to digests of the TPM's own (%v)", ErrUnsuitable, a.SignEncrypt, a.Restricted)
	}
	if k.public, err = tpm2.Pub(*area); err != nil {
		return fmt.Errorf("%w: %v", ErrUnsuitable, err)
	}
	switch p := k.public.(type) {
	case *rsa.PublicKey:
	case *ecdsa.PublicKey:
		if p.Curve != elliptic.P256() && p.Curve != elliptic.P384() {
			return fmt.Errorf("%w: curve %s, want P-256 or P-384", ErrUnsuitable, p.Curve.Params().Name)
		}
	default:
		return fmt.Errorf("%w: %T, want RSA, or ECDSA with P-256 or P-384", ErrUnsuitable, p)
	}
	return nil
}

func (k *tpmKey) Public() crypto.PublicKey { return k.public }

func (k *tpmKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) (signature []byte, err error) {
	scheme, err := k.scheme(opts)
	if err != nil {
		return nil, err
	}
	err = k.device.use(func(t transport.TPM) error {
		if err := k.device.refused[uint32(k.handle)]; err != nil {
			return err
		}
		answer, err := tpm2.Sign{
			KeyHandle: tpm2.AuthHandle{Handle: k.handle, Name: k.name, Auth: tpm2.PasswordAuth(k.pin)},
			Digest:    tpm2.TPM2BDigest{Buffer: digest},
			InScheme:  scheme,
			// A key that is not restricted signs digests made outside: no ticket needed.
			Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck},
		}.Execute(t)
		if errors.Is(err, tpm2.TPMRCAuthFail) || errors.Is(err, tpm2.TPMRCBadAuth) {
			err = fmt.Errorf("%w (TPM2_Sign: %v)", ErrPIN, err)
			k.device.refused[uint32(k.handle)] = err
			return err
		} else if err != nil {
			return fmt.Errorf("TPM2_Sign: %w", err)
		}
		signature, err = encodeTPMSignature(&answer.Signature)
		return err
	})
	return signature, err
}

var tpmHashes = map[crypto.Hash]tpm2.TPMAlgID{
	crypto.SHA256: tpm2.TPMAlgSHA256, crypto.SHA384: tpm2.TPMAlgSHA384, crypto.SHA512: tpm2.TPMAlgSHA512,
}

func (k *tpmKey) scheme(opts crypto.SignerOpts) (tpm2.TPMTSigScheme, error) {
	hash, ok := tpmHashes[opts.HashFunc()]
	if !ok {
		return tpm2.TPMTSigScheme{}, fmt.Errorf("no hash %v", opts.HashFunc())
	}
	algorithm := tpm2.TPMAlgRSASSA
	if _, ok := opts.(*rsa.PSSOptions); ok {
		algorithm = tpm2.TPMAlgRSAPSS
	}
	if _, ok := k.public.(*ecdsa.PublicKey); ok {
		algorithm = tpm2.TPMAlgECDSA
	}
	return tpm2.TPMTSigScheme{
		Scheme:  algorithm,
		Details: tpm2.NewTPMUSigScheme(algorithm, &tpm2.TPMSSchemeHash{HashAlg: hash}),
	}, nil
}

func encodeTPMSignature(s *tpm2.TPMTSignature) ([]byte, error) {
	switch s.SigAlg {
	case tpm2.TPMAlgRSASSA:
		r, err := s.Signature.RSASSA()
		if err != nil {
			return nil, err
		}
		return bytes.Clone(r.Sig.Buffer), nil
	case tpm2.TPMAlgRSAPSS:
		r, err := s.Signature.RSAPSS()
		if err != nil {
			return nil, err
		}
		return bytes.Clone(r.Sig.Buffer), nil
	case tpm2.TPMAlgECDSA:
		e, err := s.Signature.ECDSA()
		if err != nil {
			return nil, err
		}
		return encodeECDSA(e.SignatureR.Buffer, e.SignatureS.Buffer)
	}
	return nil, fmt.Errorf("TPM2_Sign: answer in scheme %#x", s.SigAlg)
}
