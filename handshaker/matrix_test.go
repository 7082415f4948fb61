// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	_ "unsafe" // for linkname

	"github.com/offloadd/offloadd/blob"
)

// The suites of TLS 1.3 cannot be configured; crypto/tls leaves these two variables
// open for exactly this.
//
//go:linkname suites13 crypto/tls.defaultCipherSuitesTLS13
var suites13 []uint16

//go:linkname suites13NoAES crypto/tls.defaultCipherSuitesTLS13NoAES
var suites13NoAES []uint16

// forceSuite makes both ends of this process agree on a TLS 1.3 suite.
func forceSuite(t *testing.T, s blob.CipherSuite) {
	a, b := suites13, suites13NoAES
	t.Cleanup(func() { suites13, suites13NoAES = a, b })
	suites13, suites13NoAES = []uint16{uint16(s)}, []uint16{uint16(s)}
}

var roles = []blob.Role{blob.Server, blob.Client}

// suiteConfigs returns a server's and a client's config that agree on a suite.
func suiteConfigs(t *testing.T, s blob.CipherSuite) map[blob.Role]*tls.Config {
	server, client := serverTLS(), clientTLS()
	if strings.Contains(s.String(), "_RSA_") {
		server.Certificates = []tls.Certificate{certs().rsa}
	}
	if s.Version() == blob.TLS13 {
		forceSuite(t, s)
		server.MinVersion = tls.VersionTLS13
	} else {
		server.MaxVersion = tls.VersionTLS12
		client.CipherSuites = []uint16{uint16(s)}
	}
	return map[blob.Role]*tls.Config{blob.Server: server, blob.Client: client}
}

func TestEverySuiteGoesOnAfterTheHandOver(t *testing.T) {
	for _, suite := range blob.CipherSuites() {
		for _, role := range roles {
			for _, tickets := range []bool{true, false} {
				t.Run(fmt.Sprintf("%v %v tickets %v", role, suite, tickets), func(t *testing.T) {
					c := suiteConfigs(t, suite)
					if tickets {
						c[blob.Client].ClientSessionCache = tls.NewLRUClientSessionCache(1)
					}
					m := meet(t, role, &Config{TLS: c[role]}, c[otherRole(role)])
					f := m.session.Facts
					if f.Suite != suite || f.Version != suite.Version() || f.Role != role {
						t.Errorf("facts: %v %v %v", f.Role, f.Version, f.Suite)
					}
					m.checkSequence()
					m.exchange()
				})
			}
		}
	}
}

func TestEveryGroupGoesOnAfterTheHandOver(t *testing.T) {
	for _, group := range []tls.CurveID{tls.X25519MLKEM768, tls.SecP256r1MLKEM768, tls.SecP384r1MLKEM1024,
		tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521} {
		for _, role := range roles {
			t.Run(fmt.Sprintf("%v %v", role, group), func(t *testing.T) {
				peer := template(otherRole(role))
				peer.CurvePreferences = []tls.CurveID{group}
				m := meet(t, role, &Config{TLS: template(role)}, peer)
				if got := m.session.Facts.Group; got != uint16(group) {
					t.Errorf("group %d, want %d", got, group)
				}
				m.checkSequence()
				m.exchange()
			})
		}
	}
}

// checkSequence compares our numbers with those that crypto/tls keeps, on both ends.
// It reads private fields: a tripwire for this test, and nothing to build upon.
func (m *meeting) checkSequence() {
	m.Helper()
	private := func(c *tls.Conn, half string) (n uint64) {
		seq := reflect.ValueOf(c).Elem().FieldByName(half).FieldByName("seq")
		for i := range seq.Len() {
			n = n<<8 | seq.Index(i).Uint()
		}
		return n
	}
	if got, want := m.session.Read.Seq, private(m.h.tls, "in"); got != want {
		m.Errorf("read sequence number %d, crypto/tls has %d", got, want)
	}
	if got, want := m.session.Write.Seq, private(m.h.tls, "out"); got != want {
		m.Errorf("write sequence number %d, crypto/tls has %d", got, want)
	}
	if got, want := m.session.Read.Seq, private(m.peer, "out"); got != want {
		m.Errorf("read sequence number %d, the peer has written %d", got, want)
	}
}

// exchange sends records both ways between the exported session and the peer.
func (m *meeting) exchange() {
	m.Helper()
	l := newRecordLayer(m.conn, m.session)
	payloads := [][]byte{[]byte("one"), bytes.Repeat([]byte("two"), 500), make([]byte, 16384)}
	all := slices.Concat(payloads...)
	for round := range 2 {
		for _, p := range payloads {
			if err := l.send(23, p); err != nil {
				m.Fatal(err)
			}
		}
		got := make([]byte, len(all))
		if _, err := io.ReadFull(m.peer, got); err != nil || !bytes.Equal(got, all) {
			m.Fatalf("round %d: peer reads: %v", round, err)
		}
		for _, p := range payloads {
			if _, err := m.peer.Write(p); err != nil {
				m.Fatal(err)
			}
		}
		if got, err := l.receiveData(len(all)); err != nil || !bytes.Equal(got, all) {
			m.Fatalf("round %d: we read: %v", round, err)
		}
	}
}
