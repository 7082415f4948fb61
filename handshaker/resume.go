// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"crypto/tls"

	"golang.org/x/crypto/cryptobyte"

	"github.com/offloadd/offloadd/blob"
)

// resumption remembers the master secret of the TLS 1.2 session that crypto/tls may
// resume. crypto/tls writes no key log line when it resumes one, so the session is
// the only place to learn it from.
//
// The encoding of a session is crypto/tls's own. Only its first fields are read, and
// the key that comes out must open both Finished messages before anyone gets it. A
// session that does not look as expected is not offered or accepted: the peers then
// shake hands in full, which always works.
type resumption struct {
	suite  blob.CipherSuite
	master blob.Secret
}

// note looks at a session that is about to be resumed and reports whether it may be.
func (r *resumption) note(s *tls.SessionState) bool {
	b, err := s.Bytes()
	if err != nil {
		return false
	}
	defer clear(b)
	return r.parse(b)
}

// parse reads the start of an encoded tls.SessionState: version, client or server,
// cipher suite, time, secret.
func (r *resumption) parse(b []byte) bool {
	var version, suite uint16
	var secret cryptobyte.String
	s := cryptobyte.String(b)
	if !s.ReadUint16(&version) {
		return false
	}
	if version == tls.VersionTLS13 {
		return true // logged like any other
	}
	if version != tls.VersionTLS12 || !s.Skip(1) || !s.ReadUint16(&suite) || !s.Skip(8) ||
		!s.ReadUint8LengthPrefixed(&secret) || len(secret) != 48 {
		return false
	}
	if c := blob.CipherSuite(suite); c.Version() != blob.TLS12 {
		return false
	}
	r.destroy()
	r.suite, r.master = blob.CipherSuite(suite), blob.NewSecret(append([]byte(nil), secret...))
	return true
}

func (r *resumption) destroy() { r.master.Destroy() }

// unwrap wraps a Config.UnwrapSession.
func (r *resumption) unwrap(f func([]byte, tls.ConnectionState) (*tls.SessionState, error)) func([]byte, tls.ConnectionState) (*tls.SessionState, error) {
	return func(identity []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
		s, err := f(identity, cs)
		if err != nil || s == nil || !r.note(s) {
			return nil, err
		}
		return s, nil
	}
}

// watchedCache is a client's session cache that shows what is taken out of it.
type watchedCache struct {
	tls.ClientSessionCache
	resumption *resumption
}

// Get returns a session if it can be handed over once resumed.
func (c watchedCache) Get(key string) (*tls.ClientSessionState, bool) {
	cs, ok := c.ClientSessionCache.Get(key)
	if !ok || cs == nil {
		return cs, ok
	}
	if _, s, err := cs.ResumptionState(); err != nil || s == nil || !c.resumption.note(s) {
		return nil, false
	}
	return cs, true
}
