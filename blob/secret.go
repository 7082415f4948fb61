// SPDX-License-Identifier: Apache-2.0

package blob

import (
	"crypto/subtle"
	"fmt"
	"io"
	"log/slog"
)

// Secret is a byte string that never prints. The bytes are behind two pointers, so
// that even a reflective printer which ignores methods (fmt on an unexported field
// of somebody's struct) finds an address and not the secret. One pointer is not
// enough: for a verb it does not know, fmt follows the first.
//
// The zero value is empty. A Secret is not safe for concurrent use with Destroy.
type Secret struct{ p **[]byte }

// NewSecret takes ownership of b: the caller must not keep or change it.
func NewSecret(b []byte) Secret {
	p := &b
	return Secret{&p}
}

// Bytes returns the secret itself, not a copy; it is zero after Destroy.
func (s Secret) Bytes() []byte {
	if s.p == nil {
		return nil
	}
	return **s.p
}

// Len returns the length in bytes.
func (s Secret) Len() int { return len(s.Bytes()) }

// Equal compares in constant time.
func (s Secret) Equal(t Secret) bool {
	return subtle.ConstantTimeCompare(s.Bytes(), t.Bytes()) == 1
}

// Destroy overwrites the bytes with zeros. All copies of this Secret share them.
func (s Secret) Destroy() { clear(s.Bytes()) }

// String tells the length only.
func (s Secret) String() string { return fmt.Sprintf("(%d secret bytes)", s.Len()) }

// Format writes the same for every verb.
func (s Secret) Format(f fmt.State, _ rune) { io.WriteString(f, s.String()) }

// LogValue tells the length only.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText tells the length only, so that encoders which look for it
// (encoding/json, encoding/xml, slog) cannot go round String.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
