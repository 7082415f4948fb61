// SPDX-License-Identifier: Apache-2.0

package blob

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
	"math"
	"time"
)

// Sealer seals States for one recipient, one after the other. Each blob has a key
// of its own, out of a one-way ratchet whose past is erased: a Sealer cannot open
// what it sealed. It is not safe for concurrent use, and blobs should be sent in
// the order in which they were sealed, since the recipient never goes back.
type Sealer struct {
	ratchet  ratchet
	instance Instance
	id       SealerID
}

// ID returns the name under which the recipient knows the Sealer.
func (s *Sealer) ID() SealerID { return s.id }

// Seal turns a State into a blob that is refused from expiry on (rounded down to
// the millisecond), and consumes the State: it is destroyed on success and on
// failure.
func (s *Sealer) Seal(state *State, expiry time.Time) (Blob, error) {
	defer state.Destroy()
	if err := state.Validate(); err != nil {
		return nil, err
	}
	if ms := expiry.UnixMilli(); ms < 0 || ms > maxExpiry {
		return nil, fmt.Errorf("%w: expiry %v out of range", ErrState, expiry)
	}
	index, key, err := s.ratchet.next()
	if err != nil {
		return nil, err
	}
	defer clear(key)
	header := Header{
		Kind: state.Kind(), Role: state.Role, Direction: state.Direction,
		Version: state.Version, Suite: state.Suite, Epoch: state.Epoch,
		Index: index, Instance: s.instance, Sealer: s.id,
		Cookie: state.Cookie, Expiry: expiry,
	}
	body := state.body()
	defer clear(body)
	out := make([]byte, 0, HeaderSize+len(body)+tagSize)
	out = header.append(out, len(body))
	return blobAEAD(key).Seal(out, blobNonce(), body, out), nil
}

// Destroy erases the ratchet; Seal fails from then on.
func (s *Sealer) Destroy() { s.ratchet.destroy() }

// Binding is what the opening process knows by itself of the blob it expects. A
// blob does not vouch for itself.
type Binding struct {
	// Cookie is SO_COOKIE, read afresh from the descriptor that came with the blob.
	Cookie    uint64
	Role      Role
	Direction Direction
	// Now is compared with the blob's expiry.
	Now time.Time
}

// maxSkip is how many blobs of a sealer may get lost in a row, a bound on the work
// that one blob can cause.
const maxSkip = 1024

// Opener opens the blobs of one Sealer, each once and in order. It is not safe for
// concurrent use.
type Opener struct {
	ratchet  ratchet
	instance Instance
	id       SealerID
}

// ID returns the name of the Sealer.
func (o *Opener) ID() SealerID { return o.id }

// Open returns the State that was sealed into b. The error wraps one of the
// package's errors, and then nothing has changed: the blob that was expected can
// still be opened. After success, b and all earlier blobs are refused.
func (o *Opener) Open(b Blob, want Binding) (*State, error) {
	header, err := Inspect(b)
	if err != nil {
		return nil, err
	}
	if err := o.check(&header, want); err != nil {
		return nil, err
	}
	ahead := o.ratchet.clone()
	defer func() { ahead.destroy() }()
	var key []byte
	for {
		var index uint32
		if index, key, err = ahead.next(); err != nil {
			return nil, err
		}
		if index == header.Index {
			break
		}
		clear(key)
	}
	defer clear(key)
	body, err := blobAEAD(key).Open(nil, blobNonce(), b[HeaderSize:], b[:HeaderSize])
	if err != nil {
		return nil, ErrSealed
	}
	defer clear(body)
	// From here on the blob is used up, whatever it contains.
	o.ratchet, ahead = ahead, o.ratchet
	return stateOf(&header, body)
}

// check refuses what can be refused before any cryptography, in the order of
// FORMAT.md, section 6.
func (o *Opener) check(h *Header, want Binding) error {
	next := o.ratchet.index
	switch {
	case h.Instance != o.instance:
		return fmt.Errorf("%w: instance %v, this is %v", ErrRecipient, h.Instance, o.instance)
	case h.Sealer != o.id:
		return fmt.Errorf("%w: sealer %v, this channel's is %v", ErrRecipient, h.Sealer, o.id)
	case h.Cookie != want.Cookie:
		return fmt.Errorf("%w: bound to socket %d, came with %d", ErrCookie, h.Cookie, want.Cookie)
	case h.Role != want.Role || h.Direction != want.Direction:
		return fmt.Errorf("%w: %v %v key, want %v %v", ErrDirection, h.Role, h.Direction, want.Role, want.Direction)
	case !want.Now.Before(h.Expiry):
		return fmt.Errorf("%w: %v ago", ErrExpired, want.Now.Sub(h.Expiry).Round(time.Millisecond))
	case uint64(h.Index) < next:
		return fmt.Errorf("%w: index %d, next is %d", ErrReplayed, h.Index, next)
	case uint64(h.Index)-next > maxSkip:
		return fmt.Errorf("%w: index %d, next is %d, at most %d may be missing", ErrSkipped, h.Index, next, maxSkip)
	}
	return nil
}

// Destroy erases the ratchet; Open fails from then on.
func (o *Opener) Destroy() { o.ratchet.destroy() }

// ratchet is the chain of FORMAT.md, section 4: from each chain key come one blob
// key and the next chain key, and it is erased.
type ratchet struct {
	chain Secret
	index uint64
}

const (
	labelKey   = "offloadd OPAQUEKEYBLOB v1 key"
	labelChain = "offloadd OPAQUEKEYBLOB v1 chain"
)

// next returns the key of the blob with the returned index, and steps on.
func (r *ratchet) next() (index uint32, key []byte, err error) {
	if r.chain.Len() == 0 {
		return 0, nil, fmt.Errorf("%w: the ratchet was destroyed", ErrSealed)
	}
	if r.index > math.MaxUint32 {
		return 0, nil, fmt.Errorf("%w: the sealer has sealed 2^32 blobs; make a new one", ErrSealed)
	}
	if key, err = hkdf.Expand(sha256.New, r.chain.Bytes(), labelKey, 32); err != nil {
		return 0, nil, fmt.Errorf("derive blob key: %w", err)
	}
	chain, err := hkdf.Expand(sha256.New, r.chain.Bytes(), labelChain, 32)
	if err != nil {
		clear(key)
		return 0, nil, fmt.Errorf("derive chain key: %w", err)
	}
	r.chain.Destroy()
	r.chain = NewSecret(chain)
	index = uint32(r.index)
	r.index++
	return index, key, nil
}

func (r *ratchet) clone() ratchet {
	return ratchet{NewSecret(append([]byte(nil), r.chain.Bytes()...)), r.index}
}

func (r *ratchet) destroy() {
	r.chain.Destroy()
	r.chain = Secret{}
}

// blobAEAD is AES-256-GCM under a key that protects one message only.
func blobAEAD(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic("blob: internal error: " + err.Error())
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic("blob: internal error: " + err.Error())
	}
	return aead
}

// blobNonce is all zero: each key seals once (FORMAT.md, section 4).
func blobNonce() []byte { return make([]byte, 12) }
