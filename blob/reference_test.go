// SPDX-License-Identifier: Apache-2.0

package blob

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"testing"
)

// testReference names the key of a state.
func testReference(s *State) *State {
	r := *s
	r.Key, r.IV, r.Held = Secret{}, Secret{}, Held{Device: "eth0", Digest: s.KeyDigest()}
	return &r
}

func TestAReferenceComesBackAndCarriesNoKeyByte(t *testing.T) {
	for _, suite := range CipherSuites() {
		sealer, opener := testPair(t)
		state := testState(suite, Server, Read)
		reference := testReference(state)
		want := *reference
		want.NextSecret = NewSecret(bytes.Clone(reference.NextSecret.Bytes()))
		// The body before encryption is all that a recipient can ever learn.
		if body := reference.body(); bytes.Contains(body, state.Key.Bytes()) || bytes.Contains(body, state.IV.Bytes()) {
			t.Errorf("%v: the body holds the key", suite)
		}
		b := mustSeal(t, sealer, reference)
		if len(b) != 124+suite.secretSize() {
			t.Errorf("%v: %d bytes", suite, len(b))
		}
		if h, err := Inspect(b); err != nil || h.Kind != KindReference {
			t.Errorf("%v: %v, %v", suite, h, err)
		}
		got, err := opener.Open(b, binding(state))
		if err != nil || !equalState(got, &want) || got.Kind() != KindReference {
			t.Errorf("%v: got %v, %v", suite, got, err)
		}
	}
}

func TestADigestTellsKeysApartAndSuitesToo(t *testing.T) {
	s := testState(TLS_AES_128_GCM_SHA256, Server, Write)
	seen := map[KeyDigest]string{s.KeyDigest(): "itself"}
	for name, change := range map[string]func(*State){
		"another key":   func(s *State) { s.Key.Bytes()[0] ^= 1 },
		"another IV":    func(s *State) { s.IV.Bytes()[11] ^= 1 },
		"another suite": func(s *State) { s.Suite = TLS_CHACHA20_POLY1305_SHA256 },
	} {
		c := cloneState(s)
		change(c)
		if same, ok := seen[c.KeyDigest()]; ok {
			t.Errorf("%s has the digest of %s", name, same)
		}
		seen[c.KeyDigest()] = name
	}
	later := cloneState(s)
	later.Seq, later.Cookie, later.Role, later.Direction = 99, 5, Client, Read
	if later.KeyDigest() != s.KeyDigest() {
		t.Error("the same key at another number, socket or end has another digest")
	}
}

// TestADigestIsThatOfTheFormat computes it by FORMAT.md, section 3.
func TestADigestIsThatOfTheFormat(t *testing.T) {
	for _, suite := range CipherSuites() {
		s := testState(suite, Client, Read)
		pad := func(b []byte, n int) []byte { return append(bytes.Clone(b), make([]byte, n-len(b))...) }
		block := slices.Concat([]byte("offloadd keydigest"), []byte{byte(suite >> 8), byte(suite)}, pad(s.Key.Bytes(), 32), pad(s.IV.Bytes(), 12))
		want := sha256.Sum256(block)
		if got := s.KeyDigest(); len(block) != 64 || !bytes.Equal(got[:], want[:16]) {
			t.Errorf("%v: %v, want %x of a block of %d bytes", suite, got, want[:16], len(block))
		}
	}
}

func TestAReferenceThatNamesNothingIsNoState(t *testing.T) {
	for name, change := range map[string]func(*State){
		"no device":      func(s *State) { s.Held.Device = "" },
		"long device":    func(s *State) { s.Held.Device = strings.Repeat("x", 16) },
		"path":           func(s *State) { s.Held.Device = "a/b" },
		"space":          func(s *State) { s.Held.Device = "a b" },
		"NUL":            func(s *State) { s.Held.Device = "a\x00b" },
		"not UTF-8":      func(s *State) { s.Held.Device = "a\xff" },
		"no digest":      func(s *State) { s.Held.Digest = KeyDigest{} },
		"key bytes":      func(s *State) { s.Key = NewSecret([]byte{1}) },
		"an IV":          func(s *State) { s.IV = NewSecret([]byte{1}) },
		"surplus secret": func(s *State) { s.NextSecret = NewSecret([]byte{1}) },
	} {
		sealer, _ := testPair(t)
		s := testReference(testState(TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, Server, Write))
		change(s)
		if b, err := sealer.Seal(s, testTime); !errors.Is(err, ErrState) || b != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
