// SPDX-License-Identifier: Apache-2.0

package signer

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

var errMalformed = errors.New("malformed message")

const (
	version       = 1
	requestFixed  = 44
	responseFixed = 8
	mostMessage   = 512  // of Ed25519, in bytes
	mostSignature = 1024 // in bytes: RSA with 8192 bits
)

type operation byte

const (
	opCheck operation = 1
	opSign  operation = 2
)

type scheme byte

const (
	schemeNone scheme = iota
	schemePKCS1v15
	schemePSS
	schemeECDSA
	schemeEd25519
)

// hashes by their number in RFC 5246, Section 7.4.1.4.1.
var hashes = map[byte]crypto.Hash{4: crypto.SHA256, 5: crypto.SHA384, 6: crypto.SHA512}

// hashNumber returns the number of a hash, 0 for none, and whether it has one.
func hashNumber(hash crypto.Hash) (byte, bool) {
	for number, h := range hashes {
		if h == hash {
			return number, true
		}
	}
	return 0, false
}

// Status is the outcome of a request.
type Status byte

// The statuses. What exactly a token said is in the signer's log.
const (
	statusDone     Status = iota
	statusNoKey           // the channel has no key of this number
	statusOtherKey        // the key of this number is not the one that is meant
	statusMisfit          // scheme, hash or message do not suit the key
	statusToken           // the token could not
	statusEnd             // no status
)

var statusText = [...]string{
	statusDone:     "done",
	statusNoKey:    "the signer gave this worker no such key",
	statusOtherKey: "the key in the token is not that of the certificate",
	statusMisfit:   "the signer does not sign this with that key",
	statusToken:    "the token failed; the signer's log says why",
}

func (s Status) Error() string { return statusText[s] }

// request asks for one signature.
type request struct {
	operation operation
	key       uint16
	number    uint32
	public    [sha256.Size]byte
	scheme    scheme
	hash      crypto.Hash // 0 for none
	digest    []byte
}

func (r *request) encode() []byte {
	b := make([]byte, requestFixed, requestFixed+len(r.digest))
	b[0], b[1] = version, byte(r.operation)
	binary.BigEndian.PutUint16(b[2:], r.key)
	binary.BigEndian.PutUint32(b[4:], r.number)
	copy(b[8:], r.public[:])
	b[40] = byte(r.scheme)
	b[41], _ = hashNumber(r.hash)
	binary.BigEndian.PutUint16(b[42:], uint16(len(r.digest)))
	return append(b, r.digest...)
}

func decodeRequest(b []byte) (*request, error) {
	if len(b) < requestFixed || b[0] != version {
		return nil, fmt.Errorf("%w: request of %d bytes", errMalformed, len(b))
	}
	r := &request{
		operation: operation(b[1]), key: binary.BigEndian.Uint16(b[2:]), number: binary.BigEndian.Uint32(b[4:]),
		public: [32]byte(b[8:40]), scheme: scheme(b[40]), hash: hashes[b[41]], digest: bytes.Clone(b[requestFixed:]),
	}
	if r.hash == 0 && b[41] != 0 {
		return nil, fmt.Errorf("%w: hash %d", errMalformed, b[41])
	}
	if int(binary.BigEndian.Uint16(b[42:])) != len(r.digest) {
		return nil, fmt.Errorf("%w: digest of %d bytes, it says %d", errMalformed, len(r.digest), binary.BigEndian.Uint16(b[42:]))
	}
	if !r.consistent() {
		return nil, fmt.Errorf("%w: operation %d, scheme %d, hash %d, %d bytes", errMalformed, r.operation, r.scheme, b[41], len(r.digest))
	}
	return r, nil
}

// consistent reports whether the fields of a request may stand together.
func (r *request) consistent() bool {
	_, hashes := hashNumber(r.hash)
	switch {
	case r.operation == opCheck:
		return r.scheme == schemeNone && r.hash == 0 && len(r.digest) == 0
	case r.operation != opSign:
		return false
	case r.scheme == schemePKCS1v15, r.scheme == schemePSS, r.scheme == schemeECDSA:
		return hashes && len(r.digest) == r.hash.Size()
	case r.scheme == schemeEd25519:
		return r.hash == 0 && len(r.digest) <= mostMessage
	}
	return false
}

// response answers one request.
type response struct {
	status    Status
	number    uint32
	signature []byte
}

func (r *response) encode() []byte {
	b := make([]byte, responseFixed, responseFixed+len(r.signature))
	b[0], b[1] = version, byte(r.status)
	binary.BigEndian.PutUint16(b[2:], uint16(len(r.signature)))
	binary.BigEndian.PutUint32(b[4:], r.number)
	return append(b, r.signature...)
}

func decodeResponse(b []byte) (*response, error) {
	if len(b) < responseFixed || len(b) > responseFixed+mostSignature || b[0] != version || b[1] >= byte(statusEnd) {
		return nil, fmt.Errorf("%w: response of %d bytes", errMalformed, len(b))
	}
	r := &response{status: Status(b[1]), number: binary.BigEndian.Uint32(b[4:]), signature: bytes.Clone(b[responseFixed:])}
	if int(binary.BigEndian.Uint16(b[2:])) != len(r.signature) || r.status != statusDone && len(r.signature) != 0 {
		return nil, fmt.Errorf("%w: signature of %d bytes with status %d", errMalformed, len(r.signature), r.status)
	}
	return r, nil
}
