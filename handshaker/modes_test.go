// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/crypto/cryptobyte"

	"github.com/offloadd/offloadd/blob"
)

// newECHConfig makes an ECHConfig (RFC 9849, Section 4) for X25519, HKDF-SHA256 and
// AES-128-GCM.
func newECHConfig(t *testing.T) tls.EncryptedClientHelloKey {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var b cryptobyte.Builder
	b.AddUint16(0xfe0d)
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint8(1)
		b.AddUint16(0x20)
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(key.PublicKey().Bytes()) })
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint16(1); b.AddUint16(1) })
		b.AddUint8(32)
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte("b.test")) })
		b.AddUint16(0)
	})
	return tls.EncryptedClientHelloKey{Config: b.BytesOrPanic(), PrivateKey: key.Bytes(), SendAsRetry: true}
}

func TestEncryptedClientHelloIsHandedOver(t *testing.T) {
	key := newECHConfig(t)
	var list cryptobyte.Builder
	list.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(key.Config) })
	c := map[blob.Role]*tls.Config{blob.Server: serverTLS(), blob.Client: clientTLS()}
	c[blob.Server].EncryptedClientHelloKeys = []tls.EncryptedClientHelloKey{key}
	c[blob.Client].EncryptedClientHelloConfigList = list.BytesOrPanic()
	for _, role := range roles {
		m := meet(t, role, &Config{TLS: c[role]}, c[otherRole(role)])
		if !m.h.tls.ConnectionState().ECHAccepted {
			t.Errorf("%v: ECH was not used", role)
		}
		if got := m.session.Facts.ServerName; got != "a.test" {
			t.Errorf("%v: server name %q", role, got)
		}
		m.checkSequence()
		m.exchange()
	}
}

// The setting is read once, at the start of a process.
func TestFIPSModeGoesOnAfterTheHandOver(t *testing.T) {
	const running = "OFFLOADD_TEST_FIPS"
	if os.Getenv(running) != "" {
		for _, role := range roles {
			for _, version := range versions {
				t.Run(fmt.Sprintf("%v %v", role, version), func(t *testing.T) {
					c, peer := template(role), template(otherRole(role))
					c.MaxVersion = uint16(version)
					m := meet(t, role, &Config{TLS: c}, peer)
					m.checkSequence()
				})
			}
		}
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []string{"on", "only"} {
		cmd := exec.Command(self, "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), running+"=1", "GODEBUG=fips140="+mode)
		out, err := cmd.CombinedOutput()
		if err != nil || strings.Count(string(out), "    --- PASS") != 4 {
			t.Errorf("fips140=%s: %v\n%s", mode, err, out)
		}
	}
}
