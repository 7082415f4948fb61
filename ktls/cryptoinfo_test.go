// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/offloadd/offloadd/blob"
)

// counting returns n bytes that begin at first.
func counting(first byte, n int) blob.Secret {
	b := make([]byte, n)
	for i := range b {
		b[i] = first + byte(i)
	}
	return blob.NewSecret(b)
}

func testState(suite blob.CipherSuite, seq uint64) *blob.State {
	return &blob.State{
		Version: suite.Version(), Suite: suite, Seq: seq,
		Key: counting(0x10, suite.AEAD().KeySize()), IV: counting(0xa0, suite.IVSize()),
	}
}

func TestEncodeCryptoInfo(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the vectors are little-endian")
	}
	for _, c := range []struct {
		suite blob.CipherSuite
		seq   uint64
		// version cipher_type iv key salt rec_seq
		want string
	}{
		{blob.TLS_AES_128_GCM_SHA256, 1,
			"0403 3300 a4a5a6a7a8a9aaab 101112131415161718191a1b1c1d1e1f a0a1a2a3 0000000000000001"},
		{blob.TLS_AES_256_GCM_SHA384, 1 << 40,
			"0403 3400 a4a5a6a7a8a9aaab 101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f a0a1a2a3 0000010000000000"},
		{blob.TLS_CHACHA20_POLY1305_SHA256, 0,
			"0403 3600 a0a1a2a3a4a5a6a7a8a9aaab 101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f 0000000000000000"},
		{blob.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, 0x0102030405060708,
			"0303 3300 0102030405060708 101112131415161718191a1b1c1d1e1f a0a1a2a3 0102030405060708"},
		{blob.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, 1,
			"0303 3400 0000000000000001 101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f a0a1a2a3 0000000000000001"},
		{blob.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, 5,
			"0303 3600 a0a1a2a3a4a5a6a7a8a9aaab 101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f 0000000000000005"},
	} {
		t.Run(c.suite.String(), func(t *testing.T) {
			got := encodeCryptoInfo(testState(c.suite, c.seq))
			if want := strings.ReplaceAll(c.want, " ", ""); hex.EncodeToString(got) != want {
				t.Errorf("%x, want %s", got, want)
			}
			version, aead := decodeHeader(got)
			if version != c.suite.Version() || aead != c.suite.AEAD() {
				t.Errorf("decodes as %v %v", version, aead)
			}
		})
	}
}

func TestAMismatchNamesTheFieldAndNoValue(t *testing.T) {
	for aead, l := range layouts {
		for name, s := range map[string]span{
			"version": infoVersion, "cipher_type": infoCipher, "iv": l.iv, "key": l.key, "salt": l.salt, "rec_seq": l.seq,
		} {
			if s.size == 0 {
				continue
			}
			want := bytes.Repeat([]byte{0x5a}, l.size)
			got := bytes.Clone(want)
			got[s.at+s.size-1] ^= 1
			err := compareCryptoInfo(want, got, aead)
			if !errors.Is(err, ErrMismatch) || !strings.HasSuffix(err.Error(), " in "+name) {
				t.Errorf("%v, %s: %v", aead, name, err)
			}
			if err := compareCryptoInfo(want, want, aead); err != nil {
				t.Error(err)
			}
			if err := compareCryptoInfo(want, got[:4], aead); !errors.Is(err, ErrMismatch) {
				t.Error(err)
			}
		}
	}
}

func TestRewinds(t *testing.T) {
	const suite = blob.TLS_AES_128_GCM_SHA256
	at := func(seq uint64) []byte { return encodeCryptoInfo(testState(suite, seq)) }
	other := testState(suite, 9)
	other.Key.Bytes()[0] ^= 1
	for _, c := range []struct {
		name string
		held []byte
		want bool
	}{
		{"the same key, further", at(6), true},
		{"the same key, here", at(5), false},
		{"the same key, not so far", at(4), false},
		{"another key, further", encodeCryptoInfo(other), false},
		{"another cipher", make([]byte, 56), false},
	} {
		if got := rewinds(at(5), c.held, suite.AEAD()); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestNoErrorTellsASecret(t *testing.T) {
	s := testState(blob.TLS_AES_128_GCM_SHA256, 1)
	info := encodeCryptoInfo(s)
	in := &installation{fd: -1, read: s, write: s}
	text := fmt.Sprintf("%v %+v %v %v", in.run(), in.checkStates(),
		compareCryptoInfo(info, make([]byte, len(info)), s.Suite.AEAD()), Info{Version: s.Version})
	for _, secret := range []string{hex.EncodeToString(s.Key.Bytes()[:4]), fmt.Sprint(s.Key.Bytes()[:3])} {
		if strings.Contains(text, secret) {
			t.Errorf("%q tells a secret", text)
		}
	}
}
