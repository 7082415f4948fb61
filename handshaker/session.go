// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/offloadd/offloadd/blob"
)

// Session is a connection after its handshake: the state of both keys, and the
// facts. It owns the states until they are moved elsewhere.
type Session struct {
	Read, Write *blob.State
	Facts       blob.Facts
}

// Destroy destroys both states. It may be called on nil and more than once.
func (s *Session) Destroy() {
	if s == nil {
		return
	}
	s.Read.Destroy()
	s.Write.Destroy()
}

// String names the session without telling a key.
func (s *Session) String() string {
	if s == nil {
		return "no session"
	}
	return fmt.Sprintf("%v session, %v, %v; %v; %v", s.Facts.Role, s.Facts.Version, s.Facts.Suite, s.Read, s.Write)
}

// Format writes String for every verb.
func (s *Session) Format(f fmt.State, _ rune) { io.WriteString(f, s.String()) }

// LogValue is String.
func (s *Session) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText is String: a Session has no textual form that could be read back.
func (s *Session) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
