// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"fmt"

	"golang.org/x/crypto/cryptobyte"

	"github.com/offloadd/offloadd/blob"
)

// Limits of the facts, beside MaxMessage.
const (
	maxName         = 255
	maxCertificates = 32
)

const (
	flagResumed  = 1 << 0
	flagVerified = 1 << 1
)

func encodeFacts(f *blob.Facts) ([]byte, error) {
	if len(f.ALPN) > maxName || len(f.ServerName) > maxName || len(f.PeerCertificates) > maxCertificates {
		return nil, fmt.Errorf("%w: ALPN of %d bytes, server name of %d, %d certificates; at most %d, %d, %d", ErrTooLarge,
			len(f.ALPN), len(f.ServerName), len(f.PeerCertificates), maxName, maxName, maxCertificates)
	}
	total := 0
	for _, c := range f.PeerCertificates {
		if total += len(c); total > MaxMessage {
			return nil, fmt.Errorf("%w: the peer's certificate chain has more than %d bytes", ErrTooLarge, MaxMessage)
		}
	}
	var flags uint8
	if f.Resumed {
		flags |= flagResumed
	}
	if f.PeerVerified {
		flags |= flagVerified
	}
	var b cryptobyte.Builder
	b.AddUint8(uint8(f.Role))
	b.AddUint16(uint16(f.Version))
	b.AddUint16(uint16(f.Suite))
	b.AddUint16(f.Group)
	b.AddUint8(flags)
	b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(f.ALPN)) })
	b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(f.ServerName)) })
	for _, c := range f.PeerCertificates {
		b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(c) })
	}
	return b.Bytes()
}

func decodeFacts(in []byte) (*blob.Facts, error) {
	s := cryptobyte.String(in)
	var role, flags uint8
	var version, suite uint16
	var alpn, name cryptobyte.String
	f := &blob.Facts{}
	if !s.ReadUint8(&role) || !s.ReadUint16(&version) || !s.ReadUint16(&suite) || !s.ReadUint16(&f.Group) ||
		!s.ReadUint8(&flags) || !s.ReadUint8LengthPrefixed(&alpn) || !s.ReadUint8LengthPrefixed(&name) {
		return nil, fmt.Errorf("%w: facts cut short", ErrMalformed)
	}
	f.Role, f.Version, f.Suite = blob.Role(role), blob.Version(version), blob.CipherSuite(suite)
	switch {
	case f.Role != blob.Client && f.Role != blob.Server:
		return nil, fmt.Errorf("%w: facts of %v", ErrMalformed, f.Role)
	case !f.Suite.Known() || f.Suite.Version() != f.Version:
		return nil, fmt.Errorf("%w: facts of %v with %v", ErrMalformed, f.Version, f.Suite)
	case flags&^(flagResumed|flagVerified) != 0:
		return nil, fmt.Errorf("%w: facts with unknown flags %#x", ErrMalformed, flags)
	}
	f.Resumed, f.PeerVerified = flags&flagResumed != 0, flags&flagVerified != 0
	f.ALPN, f.ServerName = string(alpn), string(name)
	for !s.Empty() {
		var c cryptobyte.String
		if !s.ReadUint24LengthPrefixed(&c) || c.Empty() {
			return nil, fmt.Errorf("%w: peer certificate %d of the facts", ErrMalformed, len(f.PeerCertificates))
		}
		if len(f.PeerCertificates) == maxCertificates {
			return nil, fmt.Errorf("%w: more than %d peer certificates", ErrTooLarge, maxCertificates)
		}
		f.PeerCertificates = append(f.PeerCertificates, c)
	}
	return f, nil
}
