// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"testing"

	"github.com/offloadd/offloadd/blob"
)

func TestTheCertificateOfTheAskedNameIsSent(t *testing.T) {
	server := &tls.Config{Certificates: []tls.Certificate{certs().ecdsaA, certs().ecdsaB}}
	for _, name := range []string{"a.test", "b.test"} {
		client := clientTLS()
		client.ServerName = name
		m := meet(t, blob.Server, &Config{TLS: server}, client)
		if m.session.Facts.ServerName != name {
			t.Errorf("facts: server name %q", m.session.Facts.ServerName)
		}
		if got := m.peer.ConnectionState().PeerCertificates[0].DNSNames[0]; got != name {
			t.Errorf("asked %s, got the certificate of %s", name, got)
		}
		m = meet(t, blob.Client, &Config{TLS: client}, server)
		if m.session.Facts.ServerName != name || !m.session.Facts.PeerVerified {
			t.Errorf("facts of the client: %q, verified %v", m.session.Facts.ServerName, m.session.Facts.PeerVerified)
		}
	}
}

func TestTheConfigForAClientIsTreatedLikeTheTemplate(t *testing.T) {
	server := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c := serverTLS()
		c.NextProtos = []string{"chosen"}
		return c, nil
	}}
	client := clientTLS()
	client.NextProtos = []string{"chosen"}
	m := meet(t, blob.Server, &Config{TLS: server}, client)
	m.exchange()
	if m.session.Facts.ALPN != "chosen" {
		t.Errorf("ALPN %q", m.session.Facts.ALPN)
	}
}

// fail lets a handshake and a peer meet; ours must fail.
func fail(t *testing.T, role blob.Role, config *Config, peerConfig *tls.Config) (*handshake, error) {
	t.Helper()
	ours, theirs := tcpPair(t)
	h, err := newHandshake(role, ours, config)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		peer := tlsConn(otherRole(role), theirs, peerConfig)
		if peer.Handshake() == nil {
			peer.Read(make([]byte, 1)) // TLS 1.3 clients learn of a refusal later
		}
		theirs.Close()
	}()
	s, err := h.run(testContext(t))
	if err == nil || s != nil {
		t.Fatalf("%v succeeded: %v", role, s)
	}
	checkLogDestroyed(t, h)
	return h, err
}

func TestALPN(t *testing.T) {
	for _, role := range roles {
		for _, tt := range []struct {
			ours, theirs []string
			want         string
			fails        bool
		}{
			{[]string{"h2", "http/1.1"}, []string{"http/1.1"}, "http/1.1", false},
			{nil, []string{"h2"}, "", false},
			{[]string{"h2"}, nil, "", false},
			{[]string{"h2"}, []string{"smtp"}, "", true},
		} {
			config, peer := template(role), template(otherRole(role))
			config.NextProtos, peer.NextProtos = tt.ours, tt.theirs
			if tt.fails {
				if _, err := fail(t, role, &Config{TLS: config}, peer); !errors.Is(err, ErrHandshake) {
					t.Error(err)
				}
				continue
			}
			if got := meet(t, role, &Config{TLS: config}, peer).session.Facts.ALPN; got != tt.want {
				t.Errorf("%v %v %v: %q", role, tt.ours, tt.theirs, got)
			}
		}
	}
}

func TestClientCertificates(t *testing.T) {
	for _, version := range versions {
		for _, tt := range []struct {
			auth            tls.ClientAuthType
			cert            *tls.Certificate
			given, verified bool
			fails           bool
		}{
			{auth: tls.NoClientCert, cert: &certs().client},
			{auth: tls.RequestClientCert},
			{auth: tls.RequestClientCert, cert: &certs().stranger, given: true},
			{auth: tls.RequireAnyClientCert, cert: &certs().stranger, given: true},
			{auth: tls.RequireAnyClientCert, fails: true},
			{auth: tls.VerifyClientCertIfGiven},
			{auth: tls.VerifyClientCertIfGiven, cert: &certs().stranger, fails: true},
			{auth: tls.RequireAndVerifyClientCert, cert: &certs().client, given: true, verified: true},
			{auth: tls.RequireAndVerifyClientCert, cert: &certs().stranger, fails: true},
			{auth: tls.RequireAndVerifyClientCert, fails: true},
		} {
			t.Run(fmt.Sprintf("%v %v given %v fails %v", version, tt.auth, tt.given, tt.fails), func(t *testing.T) {
				server, client := serverTLS(), clientTLS()
				server.ClientAuth, server.ClientCAs, server.MaxVersion = tt.auth, certs().roots, uint16(version)
				client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					if tt.cert == nil {
						return &tls.Certificate{}, nil
					}
					return tt.cert, nil
				}
				client.ClientSessionCache = tls.NewLRUClientSessionCache(1) // so that there is a ticket
				if tt.fails {
					if _, err := fail(t, blob.Server, &Config{TLS: server}, client); !errors.Is(err, ErrHandshake) {
						t.Error(err)
					}
					return
				}
				m := meet(t, blob.Server, &Config{TLS: server}, client)
				m.checkSequence()
				m.exchange()
				f := m.session.Facts
				if (len(f.PeerCertificates) > 0) != tt.given || f.PeerVerified != tt.verified {
					t.Errorf("facts: %d certificates, verified %v", len(f.PeerCertificates), f.PeerVerified)
				}
				if tt.given && !bytes.Equal(f.PeerCertificates[0], tt.cert.Certificate[0]) {
					t.Error("facts: another certificate")
				}
				m = meet(t, blob.Client, &Config{TLS: client}, server)
				m.exchange()
			})
		}
	}
}

func TestAClientRefusesAWrongServer(t *testing.T) {
	client := clientTLS()
	client.ServerName = "c.test"
	_, err := fail(t, blob.Client, &Config{TLS: client}, serverTLS())
	var verification *tls.CertificateVerificationError
	if !errors.Is(err, ErrHandshake) || !errors.As(err, &verification) {
		t.Error(err)
	}
}
