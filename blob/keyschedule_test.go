// SPDX-License-Identifier: Apache-2.0

package blob

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"hash"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestTrafficKeysOfRFC8448 uses RFC 8448, Section 3 (simple 1-RTT handshake): the
// application traffic secrets and the keys derived from them.
func TestTrafficKeysOfRFC8448(t *testing.T) {
	for _, v := range []struct {
		name, secret, key, iv string
	}{
		{"server", "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643",
			"9f02283b6c9c07efc26bb9f2ac92e356", "cf782b88dd83549aadf1e984"},
		{"client", "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5",
			"17422dda596ed5d9acd890e3c63f5051", "5b78923dee08579033e523d9"},
	} {
		t.Run(v.name, func(t *testing.T) {
			s, err := NewState13(TLS_AES_128_GCM_SHA256, Server, Write, NewSecret(unhex(t, v.secret)))
			if err != nil {
				t.Fatal(err)
			}
			if got := hex.EncodeToString(s.Key.Bytes()); got != v.key {
				t.Errorf("key %s, want %s", got, v.key)
			}
			if got := hex.EncodeToString(s.IV.Bytes()); got != v.iv {
				t.Errorf("IV %s, want %s", got, v.iv)
			}
		})
	}
}

// TestNextSecretEqualsOpenSSL compares "traffic upd" and the SHA-384 suite, which
// RFC 8448 does not show, with an independent HKDF.
func TestNextSecretEqualsOpenSSL(t *testing.T) {
	openssl := lookOpenSSL(t)
	for suite, digest := range map[CipherSuite]string{
		TLS_AES_128_GCM_SHA256: "SHA256", TLS_AES_256_GCM_SHA384: "SHA384", TLS_CHACHA20_POLY1305_SHA256: "SHA256",
	} {
		secret := bytes.Repeat([]byte{0x5a}, suite.secretSize())
		secretHex := hex.EncodeToString(secret)
		s, err := NewState13(suite, Client, Read, NewSecret(secret))
		if err != nil {
			t.Fatal(err)
		}
		for label, got := range map[string]Secret{"key": s.Key, "iv": s.IV, "traffic upd": s.NextSecret} {
			out, err := exec.Command(openssl, "kdf", "-keylen", strconv.Itoa(got.Len()), "-kdfopt", "mode:EXPAND_ONLY",
				"-kdfopt", "digest:"+digest, "-kdfopt", "hexkey:"+secretHex, "-kdfopt", "prefix:tls13 ",
				"-kdfopt", "label:"+label, "TLS13-KDF").CombinedOutput()
			if err != nil {
				t.Fatalf("openssl kdf: %v: %s", err, out)
			}
			want := strings.ToLower(strings.ReplaceAll(strings.TrimSpace(string(out)), ":", ""))
			if hex.EncodeToString(got.Bytes()) != want {
				t.Errorf("%v %q: got %x, OpenSSL has %s", suite, label, got.Bytes(), want)
			}
		}
	}
}

// TestPRF12Vectors uses the P_SHA256 and P_SHA384 vectors that the TLS working
// group published beside RFC 5246.
func TestPRF12Vectors(t *testing.T) {
	for _, v := range []struct {
		name, secret, seed, out string
		hash                    func() hash.Hash
	}{
		{"SHA-256", "9bbe436ba940f017b17652849a71db35", "a0ba9f936cda311827a6f796ffd5198c",
			`e3f229ba727be17b8d122620557cd453c2aab21d07c3d495329b52d4e61edb5a6b301791e90d35c9c9a46b4e14baf9af
			 0fa022f7077def17abfd3797c0564bab4fbc91666e9def9b97fce34f796789baa48082d122ee42c5a72e5a5110fff701
			 87347b66`, sha256.New},
		{"SHA-384", "b80b733d6ceefcdc71566ea48e5567df", "cd665cf6a8447dd6ff8b27555edb7465",
			`7b0c18e9ced410ed1804f2cfa34a336a1c14dffb4900bb5fd7942107e81c83cde9ca0faa60be9fe34f82b1233c9146a0
			 e534cb400fed2700884f9dc236f80edd8bfa961144c9e8d792eca722a7b32fc3d416d473ebc2c5fd4abfdad05d918425
			 9b5bf8cd4d90fa0d31e2dec479e4f1a26066f2eea9a69236a3e52655c9e9aee691c8f3a26854308d5eaa3be85e099070
			 3d73e56f`, sha512.New384},
	} {
		t.Run(v.name, func(t *testing.T) {
			want := unhex(t, v.out)
			got := prf12(v.hash, unhex(t, v.secret), "test label", unhex(t, v.seed), len(want))
			if !bytes.Equal(got, want) {
				t.Errorf("got  %x\nwant %x", got, want)
			}
		})
	}
}

// TestKeyBlock12EqualsOpenSSL cuts the key block of every TLS 1.2 suite as
// RFC 5246, Section 6.3 orders it, out of an independent PRF.
func TestKeyBlock12EqualsOpenSSL(t *testing.T) {
	openssl := lookOpenSSL(t)
	clientRandom, serverRandom := bytes.Repeat([]byte{0xc1}, 32), bytes.Repeat([]byte{0x5e}, 32)
	for _, suite := range CipherSuites() {
		if suite.Version() != TLS12 {
			continue
		}
		t.Run(suite.String(), func(t *testing.T) {
			k, v := suite.AEAD().KeySize(), suite.IVSize()
			digest := "SHA256"
			if strings.HasSuffix(suite.String(), "SHA384") {
				digest = "SHA384"
			}
			master := bytes.Repeat([]byte{0x77}, 48)
			out, err := exec.Command(openssl, "kdf", "-keylen", strconv.Itoa(2*k+2*v), "-kdfopt", "digest:"+digest,
				"-kdfopt", "hexsecret:"+hex.EncodeToString(master), "-kdfopt", "seed:key expansion",
				"-kdfopt", "hexseed:"+hex.EncodeToString(serverRandom)+hex.EncodeToString(clientRandom),
				"TLS1-PRF").CombinedOutput()
			if err != nil {
				t.Fatalf("openssl kdf: %v: %s", err, out)
			}
			block := unhex(t, strings.ReplaceAll(string(out), ":", ""))
			for _, role := range []Role{Client, Server} {
				read, write, err := NewStates12(suite, role, NewSecret(bytes.Clone(master)), clientRandom, serverRandom)
				if err != nil {
					t.Fatal(err)
				}
				client, server := write, read
				if role == Server {
					client, server = read, write
				}
				got := bytes.Join([][]byte{client.Key.Bytes(), server.Key.Bytes(), client.IV.Bytes(), server.IV.Bytes()}, nil)
				if !bytes.Equal(got, block) {
					t.Errorf("%v: got %x, OpenSSL has %x", role, got, block)
				}
				if read.Direction != Read || write.Direction != Write || read.Role != role || write.Role != role {
					t.Errorf("%v: roles or directions are mixed up: %v; %v", role, read, write)
				}
			}
		})
	}
}

func TestKeyScheduleConsumesItsSecret(t *testing.T) {
	traffic := NewSecret(bytes.Repeat([]byte{1}, 32))
	if _, err := NewState13(TLS_AES_128_GCM_SHA256, Client, Read, traffic); err != nil {
		t.Fatal(err)
	}
	refused := NewSecret(bytes.Repeat([]byte{1}, 31))
	if _, err := NewState13(TLS_AES_128_GCM_SHA256, Client, Read, refused); err == nil {
		t.Error("took a secret of 31 bytes")
	}
	master := NewSecret(bytes.Repeat([]byte{1}, 48))
	if _, _, err := NewStates12(TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, Client, master, make([]byte, 32), make([]byte, 32)); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]Secret{"traffic": traffic, "refused": refused, "master": master} {
		if !allZero(s.Bytes()) {
			t.Errorf("%s secret still there", name)
		}
	}
}

// lookOpenSSL finds openssl 3, or skips; in the test VM it must be there.
func lookOpenSSL(t *testing.T) string {
	path, err := exec.LookPath("openssl")
	if err != nil {
		if os.Getenv("OFFLOADD_VM_KERNEL") != "" {
			t.Fatal("the test VM has no openssl")
		}
		t.Skip("no openssl here to compare with")
	}
	return path
}
