// SPDX-License-Identifier: Apache-2.0

package blob

import (
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"sync"
)

// The HPKE suite of FORMAT.md, section 4 (RFC 9180; draft-ietf-hpke-pq): a hybrid
// of ML-KEM-768 and X25519. Export only, since the ratchet does the encryption.
func hpkeSuite() (hpke.KEM, hpke.KDF, hpke.AEAD) {
	return hpke.MLKEM768X25519(), hpke.HKDFSHA256(), hpke.ExportOnly()
}

// Sizes in bytes (FORMAT.md, section 4).
const (
	// PublicKeySize is an Instance and an ML-KEM-768/X25519 public key.
	PublicKeySize = 16 + 1216
	// SetupSize is an encapsulated key.
	SetupSize = 1120
)

const (
	hpkeInfo       = "offloadd OPAQUEKEYBLOB v1"
	labelRatchet   = "offloadd OPAQUEKEYBLOB v1 ratchet"
	maxSealersSeen = 1 << 20
)

// PrivateKey opens what was sealed for one Instance. It is made afresh at each
// start of the opening process and never stored. Safe for concurrent use.
type PrivateKey struct {
	instance Instance
	key      hpke.PrivateKey

	mu   sync.Mutex
	seen map[SealerID]struct{} // guarded by mu
}

// GenerateKey makes a new Instance with its key.
func GenerateKey() (*PrivateKey, error) {
	kem, _, _ := hpkeSuite()
	key, err := kem.GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("generate blob key: %w", err)
	}
	k := &PrivateKey{key: key, seen: make(map[SealerID]struct{})}
	rand.Read(k.instance[:]) // never fails (crypto/rand)
	return k, nil
}

// Instance returns the name of this start.
func (k *PrivateKey) Instance() Instance { return k.instance }

// Public returns the key to seal with.
func (k *PrivateKey) Public() PublicKey {
	return PublicKey{instance: k.instance, key: k.key.PublicKey()}
}

// String names the key without telling it.
func (k *PrivateKey) String() string {
	return fmt.Sprintf("(private blob key of instance %v)", k.instance)
}

// Format writes String for every verb.
func (k *PrivateKey) Format(f fmt.State, _ rune) { io.WriteString(f, k.String()) }

// LogValue is String.
func (k *PrivateKey) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalText is String: the key has no textual form.
func (k *PrivateKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// NewOpener makes the counterpart of the Sealer that produced setup. Each setup is
// taken once: a second Opener would start the ratchet again, and with it open
// every blob a second time.
func (k *PrivateKey) NewOpener(setup []byte) (*Opener, error) {
	if len(setup) != SetupSize {
		return nil, fmt.Errorf("%w: setup of %d bytes, want %d", ErrMalformed, len(setup), SetupSize)
	}
	id := sealerID(setup)
	_, kdf, aead := hpkeSuite()
	r, err := hpke.NewRecipient(setup, k.key, kdf, aead, contextInfo(k.instance))
	if err != nil {
		return nil, fmt.Errorf("%w: setup of sealer %v: %v", ErrMalformed, id, err)
	}
	chain, err := r.Export(labelRatchet, 32)
	if err != nil {
		return nil, fmt.Errorf("derive ratchet: %w", err)
	}
	if err := k.remember(id); err != nil {
		clear(chain)
		return nil, err
	}
	return &Opener{ratchet: ratchet{chain: NewSecret(chain)}, instance: k.instance, id: id}, nil
}

func (k *PrivateKey) remember(id SealerID) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.seen[id]; ok {
		return fmt.Errorf("%w: sealer %v was set up before", ErrReplayed, id)
	}
	if len(k.seen) == maxSealersSeen {
		return fmt.Errorf("%w: %d sealers were set up; restart the daemon", ErrRecipient, maxSealersSeen)
	}
	k.seen[id] = struct{}{}
	return nil
}

// PublicKey is what a Sealer needs. It is not secret.
type PublicKey struct {
	instance Instance
	key      hpke.PublicKey
}

// Bytes returns PublicKeySize bytes that ParsePublicKey reads.
func (p PublicKey) Bytes() []byte { return append(p.instance[:], p.key.Bytes()...) }

// ParsePublicKey reads what Bytes wrote.
func ParsePublicKey(b []byte) (PublicKey, error) {
	if len(b) != PublicKeySize {
		return PublicKey{}, fmt.Errorf("%w: public key of %d bytes, want %d", ErrMalformed, len(b), PublicKeySize)
	}
	kem, _, _ := hpkeSuite()
	key, err := kem.NewPublicKey(b[16:])
	if err != nil {
		return PublicKey{}, fmt.Errorf("%w: public key: %v", ErrMalformed, err)
	}
	return PublicKey{instance: Instance(b[:16]), key: key}, nil
}

// NewSealer makes a Sealer, and the setup that must reach the recipient, once,
// before its first blob.
func NewSealer(p PublicKey) (s *Sealer, setup []byte, err error) {
	_, kdf, aead := hpkeSuite()
	setup, sender, err := hpke.NewSender(p.key, kdf, aead, contextInfo(p.instance))
	if err != nil {
		return nil, nil, fmt.Errorf("set up sealer: %w", err)
	}
	chain, err := sender.Export(labelRatchet, 32)
	if err != nil {
		return nil, nil, fmt.Errorf("derive ratchet: %w", err)
	}
	return &Sealer{ratchet: ratchet{chain: NewSecret(chain)}, instance: p.instance, id: sealerID(setup)}, setup, nil
}

func contextInfo(i Instance) []byte { return append([]byte(hpkeInfo), i[:]...) }

func sealerID(setup []byte) SealerID {
	sum := sha256.Sum256(setup)
	return SealerID(sum[:8])
}
