// SPDX-License-Identifier: Apache-2.0

package blob

import (
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
)

// Version is a TLS protocol version as it stands on the wire.
type Version uint16

// The versions whose keys can be sealed.
const (
	TLS12 Version = 0x0303 // RFC 5246
	TLS13 Version = 0x0304 // RFC 8446
)

func (v Version) String() string {
	switch v {
	case TLS12:
		return "TLS 1.2"
	case TLS13:
		return "TLS 1.3"
	}
	return fmt.Sprintf("TLS version 0x%04x", uint16(v))
}

// AEAD is the record protection algorithm of a cipher suite.
type AEAD uint8

// The three AEADs of TLS that both crypto/tls and the kernel have.
const (
	AES128GCM AEAD = iota + 1
	AES256GCM
	ChaCha20Poly1305
)

func (a AEAD) String() string {
	switch a {
	case AES128GCM:
		return "AES-128-GCM"
	case AES256GCM:
		return "AES-256-GCM"
	case ChaCha20Poly1305:
		return "ChaCha20-Poly1305"
	}
	return fmt.Sprintf("AEAD %d", uint8(a))
}

// KeySize returns the length of the key in bytes.
func (a AEAD) KeySize() int {
	if a == AES128GCM {
		return 16
	}
	return 32
}

// CipherSuite is a TLS cipher suite as it stands on the wire.
type CipherSuite uint16

// The cipher suites whose keys can be sealed: those of RFC 8446, Appendix B.4
// without CCM, and the ECDHE AEAD suites of RFC 5289 and RFC 7905.
const (
	TLS_AES_128_GCM_SHA256                        CipherSuite = 0x1301
	TLS_AES_256_GCM_SHA384                        CipherSuite = 0x1302
	TLS_CHACHA20_POLY1305_SHA256                  CipherSuite = 0x1303
	TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256       CipherSuite = 0xc02b
	TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384       CipherSuite = 0xc02c
	TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256         CipherSuite = 0xc02f
	TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384         CipherSuite = 0xc030
	TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256   CipherSuite = 0xcca8
	TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 CipherSuite = 0xcca9
)

// suiteInfo is one line of the table below.
type suiteInfo struct {
	name    string
	version Version
	aead    AEAD
	sha384  bool
}

func (c CipherSuite) info() (suiteInfo, bool) {
	switch c {
	case TLS_AES_128_GCM_SHA256:
		return suiteInfo{"TLS_AES_128_GCM_SHA256", TLS13, AES128GCM, false}, true
	case TLS_AES_256_GCM_SHA384:
		return suiteInfo{"TLS_AES_256_GCM_SHA384", TLS13, AES256GCM, true}, true
	case TLS_CHACHA20_POLY1305_SHA256:
		return suiteInfo{"TLS_CHACHA20_POLY1305_SHA256", TLS13, ChaCha20Poly1305, false}, true
	case TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256:
		return suiteInfo{"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", TLS12, AES128GCM, false}, true
	case TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384:
		return suiteInfo{"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", TLS12, AES256GCM, true}, true
	case TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256:
		return suiteInfo{"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", TLS12, AES128GCM, false}, true
	case TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384:
		return suiteInfo{"TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", TLS12, AES256GCM, true}, true
	case TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256:
		return suiteInfo{"TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", TLS12, ChaCha20Poly1305, false}, true
	case TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256:
		return suiteInfo{"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", TLS12, ChaCha20Poly1305, false}, true
	}
	return suiteInfo{}, false
}

// CipherSuites returns all suites whose keys can be sealed, in a fixed order:
// TLS 1.3 first.
func CipherSuites() []CipherSuite {
	return []CipherSuite{
		TLS_AES_128_GCM_SHA256, TLS_AES_256_GCM_SHA384, TLS_CHACHA20_POLY1305_SHA256,
		TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
		TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	}
}

func (c CipherSuite) String() string {
	if i, ok := c.info(); ok {
		return i.name
	}
	return fmt.Sprintf("cipher suite 0x%04x", uint16(c))
}

// Known reports whether keys of the suite can be sealed.
func (c CipherSuite) Known() bool { _, ok := c.info(); return ok }

// Version returns the one version the suite belongs to, 0 if it is not known.
func (c CipherSuite) Version() Version { i, _ := c.info(); return i.version }

// AEAD returns the record protection algorithm, 0 if the suite is not known.
func (c CipherSuite) AEAD() AEAD { i, _ := c.info(); return i.aead }

// IVSize returns the length in bytes of the IV that the key schedule yields:
// 12 (RFC 8446, Section 5.3; RFC 7905), or 4, the implicit part of the nonce, for
// AES-GCM in TLS 1.2 (RFC 5288, Section 3).
func (c CipherSuite) IVSize() int {
	if i, _ := c.info(); i.version == TLS12 && i.aead != ChaCha20Poly1305 {
		return 4
	}
	return 12
}

// newHash returns the hash of the suite's key schedule (TLS 1.3) or PRF (TLS 1.2).
func (c CipherSuite) newHash() func() hash.Hash {
	if i, _ := c.info(); i.sha384 {
		return sha512.New384
	}
	return sha256.New
}

// secretSize returns the length in bytes of a traffic secret: the hash's output in
// TLS 1.3, and 0 in TLS 1.2, which has none.
func (c CipherSuite) secretSize() int {
	if c.Version() != TLS13 {
		return 0
	}
	return c.newHash()().Size()
}
