// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"testing"

	"github.com/offloadd/offloadd/blob"
)

func TestConfigsThatCannotWorkAreRefusedAtOnce(t *testing.T) {
	conn, _ := net.Pipe() // any byte would block for ever
	for name, change := range map[string]func(*tls.Config){
		"KeyLogWriter":  func(c *tls.Config) { c.KeyLogWriter = new(bytes.Buffer) },
		"Renegotiation": func(c *tls.Config) { c.Renegotiation = tls.RenegotiateOnceAsClient },
		"MaxVersion":    func(c *tls.Config) { c.MaxVersion = tls.VersionTLS11 },
		"no suite left": func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA}
		},
		"no version left": func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS13, tls.VersionTLS12 },
	} {
		for _, role := range roles {
			c := template(role)
			change(c)
			if s, err := start(context.Background(), role, conn, &Config{TLS: c}); s != nil || !errors.Is(err, ErrConfig) {
				t.Errorf("%v, %s: %v", role, name, err)
			}
		}
	}
	inner := tls.Client(conn, clientTLS())
	for name, f := range map[string]func() (*Session, error){
		"no config":     func() (*Session, error) { return Server(context.Background(), conn, nil) },
		"no TLS config": func() (*Session, error) { return Server(context.Background(), conn, &Config{}) },
		"no conn":       func() (*Session, error) { return Server(context.Background(), nil, &Config{TLS: serverTLS()}) },
		"TLS in TLS":    func() (*Session, error) { return Server(context.Background(), inner, &Config{TLS: serverTLS()}) },
		"no server name": func() (*Session, error) {
			return Client(context.Background(), conn, &Config{TLS: &tls.Config{}})
		},
	} {
		if s, err := f(); s != nil || !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestABadConfigForAClientIsTheCallersFault(t *testing.T) {
	server := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{KeyLogWriter: new(bytes.Buffer)}, nil
	}}
	if _, err := fail(t, blob.Server, &Config{TLS: server}, clientTLS()); !errors.Is(err, ErrConfig) || errors.Is(err, ErrHandshake) {
		t.Error(err)
	}
}

func TestTheTemplateIsNotChanged(t *testing.T) {
	for _, role := range roles {
		c := template(role)
		c.MinVersion = tls.VersionTLS10
		meet(t, role, &Config{TLS: c}, template(otherRole(role)))
		if c.MinVersion != tls.VersionTLS10 || c.CipherSuites != nil || c.KeyLogWriter != nil || c.WrapSession != nil || c.UnwrapSession != nil {
			t.Errorf("%v: changed", role)
		}
	}
}

func TestOnlySuitesThatCanBeHandedOverAreNegotiated(t *testing.T) {
	for name, peer := range map[string]*tls.Config{
		"CBC":     {CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}, MaxVersion: tls.VersionTLS12},
		"TLS 1.1": {MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11},
	} {
		peer.RootCAs, peer.ServerName = certs().roots, "a.test"
		server := serverTLS()
		server.MinVersion = tls.VersionTLS10
		if _, err := fail(t, blob.Server, &Config{TLS: server}, peer); !errors.Is(err, ErrHandshake) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFactsThatDoNotFitAreRefusedAndTheKeysDestroyed(t *testing.T) {
	client := clientTLS()
	client.InsecureSkipVerify = true
	client.ServerName = string(bytes.Repeat([]byte("a."), 150))
	h, err := fail(t, blob.Server, &Config{TLS: serverTLS()}, client)
	if !errors.Is(err, ErrUnsupported) {
		t.Fatal(err)
	}
	checkDestroyed(t, h)
}

// checkDestroyed checks that a handshake that got as far as keys has none left.
func checkDestroyed(t *testing.T, h *handshake) {
	t.Helper()
	if h.read == nil || h.write == nil {
		t.Fatal("failed before there were keys")
	}
	checkZero(t, h.read.Key, h.read.IV, h.read.NextSecret, h.write.Key, h.write.IV, h.write.NextSecret)
	checkLogDestroyed(t, h)
}

// checkLogDestroyed checks that nothing is left of the secrets keys come from.
func checkLogDestroyed(t *testing.T, h *handshake) {
	t.Helper()
	checkZero(t, h.log.client, h.log.server, h.log.master, h.resumption.master)
}

func checkZero(t *testing.T, secrets ...blob.Secret) {
	t.Helper()
	for _, s := range secrets {
		if !bytes.Equal(s.Bytes(), make([]byte, s.Len())) {
			t.Error("a secret is left")
		}
	}
}

func TestOldVersionsAreOff(t *testing.T) {
	for name, tt := range map[string]struct {
		c    *tls.Config
		want uint16
	}{
		"default":      {&tls.Config{}, tls.VersionTLS12},
		"TLS 1.0":      {&tls.Config{MinVersion: tls.VersionTLS10}, tls.VersionTLS12},
		"TLS 1.3":      {&tls.Config{MinVersion: tls.VersionTLS13}, tls.VersionTLS13},
		"no 1.2 suite": {&tls.Config{CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA}}, tls.VersionTLS13},
	} {
		h := &handshake{role: blob.Server, log: &keyLog{}, resumption: &resumption{}}
		if got, err := h.prepare(tt.c); err != nil || got.MinVersion != tt.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAPanicInACallbackLeavesNoSecret(t *testing.T) {
	ours, theirs := tcpPair(t)
	client := clientTLS()
	client.ClientSessionCache = panickingCache{}
	go tls.Server(theirs, serverTLS()).Handshake()
	h, err := newHandshake(blob.Client, ours, &Config{TLS: client, TicketWait: longWait})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
		checkDestroyed(t, h)
	}()
	h.run(testContext(t))
}

type panickingCache struct{}

func (panickingCache) Put(string, *tls.ClientSessionState)        { panic("full") }
func (panickingCache) Get(string) (*tls.ClientSessionState, bool) { return nil, false }

func TestOneConfigServesManyConnectionsAtOnce(t *testing.T) {
	client := clientTLS()
	client.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	server := serverTLS()
	for _, version := range versions {
		server := server.Clone()
		server.MaxVersion = uint16(version)
		for _, role := range roles {
			config := &Config{TLS: map[blob.Role]*tls.Config{blob.Server: server, blob.Client: client}[role]}
			peer := map[blob.Role]*tls.Config{blob.Server: client, blob.Client: server}[role]
			for range 10 {
				t.Run(role.String(), func(t *testing.T) {
					t.Parallel()
					m := meet(t, role, config, peer)
					m.checkSequence()
					m.exchange()
				})
			}
		}
	}
}
