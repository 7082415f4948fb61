// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"time"

	"github.com/offloadd/offloadd/blob"
)

// UsageError: the options cannot be meant so.
type UsageError struct{ why string }

func (e *UsageError) Error() string { return e.why }

func usagef(format string, args ...any) error { return &UsageError{fmt.Sprintf(format, args...)} }

// suites are the names of AEADs and what they stand for in TLS 1.2.
var suites = map[string]struct {
	aead blob.AEAD
	old  []uint16
}{
	"aes128":   {blob.AES128GCM, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}},
	"aes256":   {blob.AES256GCM, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384}},
	"chacha20": {blob.ChaCha20Poly1305, []uint16{tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256}},
}

// Choice is what the user wants of a handshake. The zero value leaves it to crypto/tls.
type Choice struct {
	Suite   string // aes128, aes256 or chacha20
	Version string // 1.2 or 1.3
	Group   string // x25519 or mlkem
}

// WithoutAES is a setting of GODEBUG with which crypto/tls prefers ChaCha20-Poly1305, as on
// a processor without AES. There is no other way: it lets nobody choose a suite of TLS 1.3.
const WithoutAES = "cpu.aes=off"

// NeedsNoAES reports whether the process must have been started with WithoutAES.
func (c Choice) NeedsNoAES() bool { return c.Suite == "chacha20" && c.Version != "1.2" }

// Apply puts the choice into a config.
func (c Choice) Apply(config *tls.Config) error {
	switch c.Version {
	case "":
	case "1.2":
		config.MinVersion, config.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	case "1.3":
		config.MinVersion, config.MaxVersion = tls.VersionTLS13, tls.VersionTLS13
	default:
		return usagef("TLS version %q, want 1.2 or 1.3", c.Version)
	}
	switch c.Group {
	case "":
	case "x25519":
		config.CurvePreferences = []tls.CurveID{tls.X25519}
	case "mlkem":
		if c.Version == "1.2" {
			return usagef("TLS 1.2 has no X25519MLKEM768")
		}
		config.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768}
	default:
		return usagef("group %q, want x25519 or mlkem", c.Group)
	}
	if c.Suite == "" {
		return nil
	}
	s, ok := suites[c.Suite]
	if !ok {
		return usagef("suite %q, want aes128, aes256 or chacha20", c.Suite)
	}
	if c.Suite == "aes256" && c.Version != "1.2" {
		return usagef("crypto/tls prefers AES-128 in TLS 1.3 and lets nobody choose: add the version 1.2")
	}
	config.CipherSuites = s.old
	return nil
}

// check refuses another suite than was chosen.
func (c Choice) check(suite uint16) error {
	if c.Suite == "" {
		return nil
	}
	if got := blob.CipherSuite(suite); !got.Known() || got.AEAD() != suites[c.Suite].aead {
		return fmt.Errorf("the peer chose %s, not %s", tls.CipherSuiteName(suite), c.Suite)
	}
	return nil
}

// ServerConfig returns the config of a server. Without files it gets a certificate of its
// own, with a P-256 key.
func ServerConfig(certificate, key string, choice Choice, tickets bool) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, SessionTicketsDisabled: !tickets}
	if err := choice.Apply(config); err != nil {
		return nil, err
	}
	var pair tls.Certificate
	var err error
	switch {
	case (certificate == "") != (key == ""):
		return nil, usagef("a certificate needs its key, and a key its certificate")
	case certificate != "":
		pair, err = tls.LoadX509KeyPair(certificate, key)
	default:
		pair, err = newCertificate()
	}
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	config.Certificates = []tls.Certificate{pair}
	return config, nil
}

func newCertificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "offloadd bench"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
