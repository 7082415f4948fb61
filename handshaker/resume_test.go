// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/offloadd/offloadd/blob"
)

var versions = []blob.Version{blob.TLS12, blob.TLS13}

func TestResumedSessionsAreHandedOver(t *testing.T) {
	for _, version := range versions {
		for _, role := range roles {
			t.Run(fmt.Sprintf("%v %v", role, version), func(t *testing.T) {
				c := map[blob.Role]*tls.Config{blob.Server: serverTLS(), blob.Client: clientTLS()}
				c[blob.Server].MaxVersion = uint16(version)
				c[blob.Client].ClientSessionCache = tls.NewLRUClientSessionCache(1)
				for i := range 3 {
					m := meet(t, role, &Config{TLS: c[role]}, c[otherRole(role)])
					m.checkSequence()
					m.exchange() // also lets a peer that is the client read its ticket
					f := m.session.Facts
					if f.Resumed != (i > 0) {
						t.Errorf("connection %d: resumed %v", i, f.Resumed)
					}
					if f.Group != uint16(tls.X25519MLKEM768) && f.Group != uint16(tls.X25519) {
						t.Errorf("connection %d: group %d", i, f.Group)
					}
					// If this fails, crypto/tls has begun to log the master secret of a resumed
					// session, and resume.go can go.
					if logged := m.h.log.lines > 0; logged != (version == blob.TLS13 || i == 0) {
						t.Errorf("connection %d: %d key log lines", i, m.h.log.lines)
					}
				}
			})
		}
	}
}

func TestConfigsForClientKeepTheirOwnTicketKeys(t *testing.T) {
	chosen := serverTLS()
	server := serverTLS()
	for _, step := range []struct {
		name    string
		choice  *tls.Config
		resumed bool
	}{
		{"first", chosen, false}, {"the same again", chosen, true}, {"the template", server, false},
		{"the template again", nil, true}, {"a new one", serverTLS(), false},
	} {
		server.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return step.choice, nil }
		m := meet(t, blob.Server, &Config{TLS: server}, sessionClient())
		m.exchange()
		if got := m.session.Facts.Resumed; got != step.resumed {
			t.Errorf("%s: resumed %v", step.name, got)
		}
	}
}

// sessionClient is a client that remembers sessions over all its uses.
var sessionClient = func() func() *tls.Config {
	cache := tls.NewLRUClientSessionCache(1)
	return func() *tls.Config {
		c := clientTLS()
		c.ClientSessionCache = cache
		return c
	}
}()

func TestExplicitTicketKeysAreShared(t *testing.T) {
	client := clientTLS()
	client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for i := range 2 {
		server := serverTLS() // as another process would make it
		server.SetSessionTicketKeys([][32]byte{{1, 2, 3}})
		m := meet(t, blob.Server, &Config{TLS: server}, client)
		m.exchange()
		if got := m.session.Facts.Resumed; got != (i > 0) {
			t.Errorf("connection %d: resumed %v", i, got)
		}
	}
}

func TestCallersTicketFunctionsAreUsed(t *testing.T) {
	wrapped, unwrapped := 0, 0
	server, client := serverTLS(), clientTLS()
	client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	server.MaxVersion = tls.VersionTLS12
	server.WrapSession = func(cs tls.ConnectionState, s *tls.SessionState) ([]byte, error) {
		wrapped++
		return s.Bytes()
	}
	server.UnwrapSession = func(b []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
		if len(b) == 0 {
			return nil, nil
		}
		unwrapped++
		return tls.ParseSessionState(b)
	}
	for range 2 {
		meet(t, blob.Server, &Config{TLS: server}, client).exchange()
	}
	if wrapped != 2 || unwrapped != 1 {
		t.Errorf("wrapped %d, unwrapped %d times", wrapped, unwrapped)
	}
}

func TestAStrangeSessionIsNotResumed(t *testing.T) {
	encode := func(version, suite uint16, secret int) []byte {
		b := binary.BigEndian.AppendUint16(nil, version)
		b = append(b, 1)
		b = binary.BigEndian.AppendUint16(b, suite)
		b = append(b, make([]byte, 8)...)
		b = append(b, byte(secret))
		return append(b, make([]byte, secret)...)
	}
	good := encode(0x0303, 0xc02f, 48)
	for name, tt := range map[string]struct {
		b    []byte
		want bool
	}{
		"TLS 1.2":            {good, true},
		"TLS 1.3":            {encode(0x0304, 0x1301, 32), true},
		"TLS 1.1":            {encode(0x0302, 0xc02f, 48), false},
		"a CBC suite":        {encode(0x0303, 0xc013, 48), false},
		"a suite of TLS 1.3": {encode(0x0303, 0x1301, 48), false},
		"a short secret":     {encode(0x0303, 0xc02f, 47), false},
		"cut off":            {good[:len(good)-1], false},
		"empty":              {nil, false},
	} {
		if got := new(resumption).parse(tt.b); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestAForgottenSessionIsNoHarm(t *testing.T) {
	client := clientTLS()
	client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for i := range 2 {
		server := serverTLS() // with keys of its own
		server.MaxVersion = tls.VersionTLS12
		m := meet(t, blob.Client, &Config{TLS: client}, server)
		if offered := m.h.resumption.master.Len() > 0; m.session.Facts.Resumed || offered != (i > 0) {
			t.Errorf("connection %d: resumed %v, offered %v", i, m.session.Facts.Resumed, offered)
		}
		m.exchange()
	}
}
