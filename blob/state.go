// SPDX-License-Identifier: Apache-2.0

package blob

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"unicode/utf8"
)

// Role says which end of the connection holds the key.
type Role uint8

// The two ends of a connection.
const (
	Client Role = 1
	Server Role = 2
)

func (r Role) String() string {
	switch r {
	case Client:
		return "client"
	case Server:
		return "server"
	}
	return fmt.Sprintf("role %d", uint8(r))
}

// Direction says whether the key protects what its holder reads or writes.
type Direction uint8

// The two directions of a connection.
const (
	Read  Direction = 1
	Write Direction = 2
)

func (d Direction) String() string {
	switch d {
	case Read:
		return "read"
	case Write:
		return "write"
	}
	return fmt.Sprintf("direction %d", uint8(d))
}

// State is the state of one traffic key: one direction of one connection.
//
// It is moved, never copied: [Sealer.Seal] and ktls.Install consume it, on success
// and on failure. A State is not safe for concurrent use.
type State struct {
	Role      Role
	Direction Direction
	Version   Version
	Suite     CipherSuite
	// Epoch counts the KeyUpdates before this key; 0 is the first application key.
	// Always 0 in TLS 1.2.
	Epoch uint32
	// Seq is the sequence number of the next record (RFC 8446, Section 5.3).
	Seq uint64
	// Cookie is the SO_COOKIE of the one socket that may use this key. The kernel
	// does not reuse a cookie within a boot. 0 means that no socket is known, and
	// such a State can be neither sealed nor installed.
	Cookie uint64
	// Key is AEAD.KeySize bytes, IV is CipherSuite.IVSize bytes.
	Key, IV Secret
	// Held is set if the key stays where it is, in a network device. Then Key and IV are
	// empty, and the State is no more than the key's name: it cannot be installed.
	Held Held
	// NextSecret is application_traffic_secret_N+1, where N is Epoch: what a
	// KeyUpdate switches to (RFC 8446, Section 7.2). The secret that Key comes from is
	// not kept, so who finds a State later cannot recompute an earlier key. Empty in
	// TLS 1.2.
	NextSecret Secret
}

// Held names a key that a network device holds. The zero value names none.
type Held struct {
	// Device is the name of the interface, 1 to 15 bytes.
	Device string
	// Digest is that of the key, by State.KeyDigest.
	Digest KeyDigest
}

// maxDevice is IFNAMSIZ without its NUL (include/uapi/linux/if.h).
const maxDevice = 15

func (h Held) valid() bool {
	named := len(h.Device) >= 1 && len(h.Device) <= maxDevice &&
		!strings.ContainsFunc(h.Device, func(r rune) bool { return r <= ' ' || r == '/' || r == 0x7f || r == utf8.RuneError })
	return named && h.Digest != KeyDigest{}
}

// KeyDigest recognises a key without being one: the first half of a SHA-256 over a
// label, the suite, the key and the IV (FORMAT.md, section 3).
type KeyDigest [16]byte

func (d KeyDigest) String() string { return hex.EncodeToString(d[:]) }

const labelDigest = "offloadd keydigest" // 18 bytes

// KeyDigest returns the digest of the State's key, be it here or held elsewhere.
//
// What is hashed is exactly one block of SHA-256: a part of a block would stay behind
// in the hash's own buffer.
func (s *State) KeyDigest() KeyDigest {
	if s.Kind() == KindReference {
		return s.Held.Digest
	}
	var block [sha256.BlockSize]byte
	copy(block[:18], labelDigest)
	binary.BigEndian.PutUint16(block[18:], uint16(s.Suite))
	copy(block[20:52], s.Key.Bytes())
	copy(block[52:], s.IV.Bytes())
	sum := sha256.Sum256(block[:])
	clear(block[:])
	return KeyDigest(sum[:16])
}

// Kind says whether the State holds the key or names it.
func (s *State) Kind() Kind {
	if s.Held != (Held{}) {
		return KindReference
	}
	return KindMaterial
}

// Validate reports the first way in which the State is not one, as an [ErrState].
func (s *State) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrState, fmt.Sprintf(format, args...))
	}
	switch {
	case s.Role != Client && s.Role != Server:
		return bad("unknown %v", s.Role)
	case s.Direction != Read && s.Direction != Write:
		return bad("unknown %v", s.Direction)
	case !s.Suite.Known():
		return bad("unsupported %v", s.Suite)
	case s.Version != s.Suite.Version():
		return bad("%v does not belong to %v", s.Suite, s.Version)
	case s.Version == TLS12 && s.Epoch != 0:
		return bad("epoch %d in TLS 1.2, which has no KeyUpdate", s.Epoch)
	case s.Cookie == 0:
		return bad("bound to no socket")
	case s.Seq == 1<<64-1:
		return bad("sequence numbers are used up")
	case s.NextSecret.Len() != s.Suite.secretSize():
		return bad("traffic secret of %d bytes, want %d", s.NextSecret.Len(), s.Suite.secretSize())
	}
	if s.Kind() == KindReference {
		return s.validateHeld(bad)
	}
	switch {
	case s.Key.Len() != s.Suite.AEAD().KeySize():
		return bad("key of %d bytes, want %d", s.Key.Len(), s.Suite.AEAD().KeySize())
	case s.IV.Len() != s.Suite.IVSize():
		return bad("IV of %d bytes, want %d", s.IV.Len(), s.Suite.IVSize())
	case allZero(s.Key.Bytes()):
		return bad("the key is all zero: it was destroyed")
	}
	return nil
}

func (s *State) validateHeld(bad func(string, ...any) error) error {
	switch {
	case !s.Held.valid():
		return bad("device %q or digest of a held key", s.Held.Device)
	case s.Key.Len() != 0 || s.IV.Len() != 0:
		return bad("a reference that carries key bytes")
	}
	return nil
}

func allZero(b []byte) bool {
	var or byte
	for _, c := range b {
		or |= c
	}
	return or == 0
}

// Destroy overwrites key, IV and secret with zeros. It may be called on nil and
// more than once. A key that a device holds is not touched: only its name goes away.
func (s *State) Destroy() {
	if s == nil {
		return
	}
	s.Key.Destroy()
	s.IV.Destroy()
	s.NextSecret.Destroy()
}

// String names the key without telling it.
func (s *State) String() string {
	if s == nil {
		return "no state"
	}
	where := ""
	if s.Kind() == KindReference {
		where = fmt.Sprintf(", held by %s", s.Held.Device)
	}
	return fmt.Sprintf("%v %v key, %v, %v, epoch %d, sequence number %d, socket %d%s",
		s.Role, s.Direction, s.Version, s.Suite, s.Epoch, s.Seq, s.Cookie, where)
}

// Format writes String for every verb.
func (s *State) Format(f fmt.State, _ rune) { io.WriteString(f, s.String()) }

// LogValue is String.
func (s *State) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText is String: a State has no textual form that could be read back.
func (s *State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
