// SPDX-License-Identifier: Apache-2.0

package blob

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"testing"
	"time"
)

var testTime = time.UnixMilli(1_800_000_000_000)

const testCookie = 0x1122334455667788

// testState makes a valid state with random secrets.
func testState(suite CipherSuite, role Role, direction Direction) *State {
	random := func(n int) Secret {
		b := make([]byte, n)
		rand.Read(b)
		return NewSecret(b)
	}
	return &State{
		Role: role, Direction: direction, Version: suite.Version(), Suite: suite, Seq: 7, Cookie: testCookie,
		Key: random(suite.AEAD().KeySize()), IV: random(suite.IVSize()), NextSecret: random(suite.secretSize()),
	}
}

func cloneState(s *State) *State {
	c := *s
	c.Key = NewSecret(bytes.Clone(s.Key.Bytes()))
	c.IV = NewSecret(bytes.Clone(s.IV.Bytes()))
	c.NextSecret = NewSecret(bytes.Clone(s.NextSecret.Bytes()))
	return &c
}

func equalState(a, b *State) bool {
	x, y := *a, *b
	x.Key, x.IV, x.NextSecret = Secret{}, Secret{}, Secret{}
	y.Key, y.IV, y.NextSecret = Secret{}, Secret{}, Secret{}
	return x == y && a.Key.Equal(b.Key) && a.IV.Equal(b.IV) && a.NextSecret.Equal(b.NextSecret)
}

func destroyed(s *State) bool {
	return allZero(s.Key.Bytes()) && allZero(s.IV.Bytes()) && allZero(s.NextSecret.Bytes())
}

func testPair(t testing.TB) (*Sealer, *Opener) {
	t.Helper()
	key, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return testPairFor(t, key)
}

func testPairFor(t testing.TB, key *PrivateKey) (*Sealer, *Opener) {
	t.Helper()
	public, err := ParsePublicKey(key.Public().Bytes())
	if err != nil {
		t.Fatal(err)
	}
	sealer, setup, err := NewSealer(public)
	if err != nil {
		t.Fatal(err)
	}
	opener, err := key.NewOpener(setup)
	if err != nil {
		t.Fatal(err)
	}
	return sealer, opener
}

func mustSeal(t testing.TB, s *Sealer, state *State) Blob {
	t.Helper()
	b, err := s.Seal(state, testTime.Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// binding is what an honest recipient expects of state.
func binding(s *State) Binding {
	return Binding{Cookie: s.Cookie, Role: s.Role, Direction: s.Direction, Now: testTime}
}

func TestWhatIsOpenedIsExactlyWhatWasSealed(t *testing.T) {
	sealer, opener := testPair(t)
	for _, suite := range CipherSuites() {
		for _, role := range []Role{Client, Server} {
			for _, direction := range []Direction{Read, Write} {
				for _, seq := range []uint64{0, 1, 1 << 40, 1<<64 - 2} {
					state := testState(suite, role, direction)
					state.Seq = seq
					if suite.Version() == TLS13 {
						state.Epoch = 3
					}
					want := cloneState(state)
					b := mustSeal(t, sealer, state)
					if !destroyed(state) {
						t.Fatalf("%v: Seal left the state's secrets", want)
					}
					got, err := opener.Open(b, binding(want))
					if err != nil {
						t.Fatalf("%v: %v", want, err)
					}
					if !equalState(got, want) {
						t.Errorf("opened %v, sealed %v", got, want)
					}
				}
			}
		}
	}
}

func TestBlobSizesAreThoseOfTheFormat(t *testing.T) {
	sealer, _ := testPair(t)
	want := []int{152, 184, 168, 112, 128, 112, 128, 136, 136}
	for i, suite := range CipherSuites() {
		if b := mustSeal(t, sealer, testState(suite, Server, Write)); len(b) != want[i] || len(b) > MaxSize {
			t.Errorf("%v: %d bytes, FORMAT.md says %d", suite, len(b), want[i])
		}
	}
}

func TestSealDestroysAStateItRefuses(t *testing.T) {
	sealer, _ := testPair(t)
	for name, spoil := range map[string]func(*State){
		"no socket":          func(s *State) { s.Cookie = 0 },
		"short key":          func(s *State) { s.Key = NewSecret(s.Key.Bytes()[:15]) },
		"wrong version":      func(s *State) { s.Version = TLS12 },
		"unknown suite":      func(s *State) { s.Suite = 0x1304 },
		"no role":            func(s *State) { s.Role = 0 },
		"no direction":       func(s *State) { s.Direction = 3 },
		"used up":            func(s *State) { s.Seq = 1<<64 - 1 },
		"destroyed before":   func(s *State) { s.Destroy() },
		"no secret":          func(s *State) { s.NextSecret = Secret{} },
		"long IV":            func(s *State) { s.IV = NewSecret(make([]byte, 13)) },
		"epoch in TLS 1.2":   func(s *State) { *s = *testState(TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, Client, Read); s.Epoch = 1 },
		"secret in TLS 1.2":  func(s *State) { s.Suite, s.Version = TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, TLS12 },
		"12 bytes of IV 1.2": func(s *State) { s.Suite, s.Version, s.NextSecret = 0xc02f, TLS12, Secret{} },
	} {
		t.Run(name, func(t *testing.T) {
			state := testState(TLS_AES_128_GCM_SHA256, Client, Read)
			key := state.Key
			spoil(state)
			b, err := sealer.Seal(state, testTime)
			if !errors.Is(err, ErrState) || b != nil {
				t.Errorf("got blob %v, error %v, want ErrState", b, err)
			}
			if !destroyed(state) {
				t.Error("the state is still there")
			}
			_ = key
		})
	}
}

func TestABlobOpensOnce(t *testing.T) {
	sealer, opener := testPair(t)
	first := testState(TLS_AES_128_GCM_SHA256, Client, Read)
	want := binding(first)
	b := mustSeal(t, sealer, first)
	later := mustSeal(t, sealer, testState(TLS_AES_128_GCM_SHA256, Client, Read))
	if _, err := opener.Open(b, want); err != nil {
		t.Fatal(err)
	}
	if _, err := opener.Open(b, want); !errors.Is(err, ErrReplayed) {
		t.Errorf("opened twice: %v", err)
	}
	if _, err := opener.Open(later, want); err != nil {
		t.Errorf("the blob behind it: %v", err)
	}
}

func TestTheRecipientStepsOverMissingBlobsButNeverBack(t *testing.T) {
	sealer, opener := testPair(t)
	var blobs []Blob
	for range maxSkip + 3 {
		blobs = append(blobs, mustSeal(t, sealer, testState(TLS_AES_128_GCM_SHA256, Client, Read)))
	}
	want := binding(testState(TLS_AES_128_GCM_SHA256, Client, Read))
	if _, err := opener.Open(blobs[maxSkip+1], want); !errors.Is(err, ErrSkipped) {
		t.Errorf("%d blobs missing: %v, want ErrSkipped", maxSkip+1, err)
	}
	if _, err := opener.Open(blobs[maxSkip], want); err != nil {
		t.Errorf("%d blobs missing: %v", maxSkip, err)
	}
	if _, err := opener.Open(blobs[5], want); !errors.Is(err, ErrReplayed) {
		t.Errorf("a blob that was stepped over: %v, want ErrReplayed", err)
	}
}

func TestABlobIsRefusedWhereItDoesNotBelong(t *testing.T) {
	key, _ := GenerateKey()
	other, _ := GenerateKey()
	sealer, opener := testPairFor(t, key)
	_, otherSealersOpener := testPairFor(t, key)
	_, otherDaemon := testPairFor(t, other)
	state := testState(TLS_CHACHA20_POLY1305_SHA256, Server, Write)
	good := binding(state)
	b := mustSeal(t, sealer, state)
	for _, c := range []struct {
		name   string
		opener *Opener
		change func(*Binding)
		want   error
	}{
		{"other daemon", otherDaemon, func(*Binding) {}, ErrRecipient},
		{"other worker's channel", otherSealersOpener, func(*Binding) {}, ErrRecipient},
		{"other socket", opener, func(w *Binding) { w.Cookie++ }, ErrCookie},
		{"other direction", opener, func(w *Binding) { w.Direction = Read }, ErrDirection},
		{"other role", opener, func(w *Binding) { w.Role = Client }, ErrDirection},
		{"too late by nothing", opener, func(w *Binding) { w.Now = testTime.Add(time.Minute) }, ErrExpired},
		{"in time by a millisecond", opener, func(w *Binding) { w.Now = testTime.Add(time.Minute - time.Millisecond) }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := good
			c.change(&want)
			if got, err := c.opener.Open(b, want); !errors.Is(err, c.want) || (err != nil && got != nil) {
				t.Errorf("state %v, error %v; want error %v", got, err, c.want)
			}
		})
	}
}

// outcome is the one error of the package that err wraps.
func outcome(t testing.TB, err error) error {
	t.Helper()
	var found error
	for _, e := range []error{ErrMalformed, ErrVersion, ErrRecipient, ErrCookie, ErrDirection, ErrExpired, ErrReplayed, ErrSkipped, ErrSealed, ErrState} {
		if errors.Is(err, e) {
			if found != nil {
				t.Fatalf("error %v is both %v and %v", err, found, e)
			}
			found = e
		}
	}
	if found == nil && err != nil {
		t.Fatalf("error %v is none of the package's", err)
	}
	return found
}

func TestATruncatedOrExtendedBlobIsMalformed(t *testing.T) {
	for _, suite := range CipherSuites() {
		sealer, opener := testPair(t)
		state := testState(suite, Client, Read)
		want := binding(state)
		b := mustSeal(t, sealer, state)
		for n := range len(b) {
			if got, err := opener.Open(b[:n], want); outcome(t, err) != ErrMalformed || got != nil {
				t.Fatalf("%v cut to %d bytes: state %v, error %v", suite, n, got, err)
			}
		}
		if _, err := opener.Open(append(bytes.Clone(b), 0), want); outcome(t, err) != ErrMalformed {
			t.Errorf("%v with a trailing byte: %v", suite, err)
		}
		if _, err := opener.Open(b, want); err != nil {
			t.Errorf("%v: the refused ones used up the good one: %v", suite, err)
		}
	}
}

func TestNoBitCanBeFlipped(t *testing.T) {
	for _, suite := range CipherSuites() {
		sealer, opener := testPair(t)
		state := testState(suite, Server, Write)
		want := binding(state)
		b := mustSeal(t, sealer, state)
		for bit := range 8 * len(b) {
			flipped := bytes.Clone(b)
			flipped[bit/8] ^= 1 << (bit % 8)
			got, err := opener.Open(flipped, want)
			if err == nil || got != nil {
				t.Fatalf("%v with bit %d flipped opened: %v", suite, bit, got)
			}
			if class := outcome(t, err); bit/8 >= HeaderSize && class != ErrSealed {
				t.Fatalf("%v with bit %d of the body flipped: %v, want ErrSealed", suite, bit, err)
			}
		}
		if _, err := opener.Open(b, want); err != nil {
			t.Errorf("%v: the refused ones used up the good one: %v", suite, err)
		}
	}
}

func TestASealerCannotOpenWhatItSealed(t *testing.T) {
	sealer, _ := testPair(t)
	state := testState(TLS_AES_256_GCM_SHA384, Client, Write)
	want := binding(state)
	b := mustSeal(t, sealer, state)
	// All that a Sealer holds, used as its recipient would use it, from each index on.
	for index := range uint64(3) {
		thief := &Opener{ratchet: sealer.ratchet.clone(), instance: sealer.instance, id: sealer.id}
		thief.ratchet.index = index
		if got, err := thief.Open(b, want); err == nil {
			t.Errorf("opened as index %d: %v", index, got)
		}
	}
}

func TestTheRatchetErasesItsPast(t *testing.T) {
	sealer, opener := testPair(t)
	sealerChain, openerChain := sealer.ratchet.chain, opener.ratchet.chain
	if !sealerChain.Equal(openerChain) {
		t.Fatal("the two ends do not share a ratchet")
	}
	state := testState(TLS_AES_128_GCM_SHA256, Client, Read)
	want := binding(state)
	b := mustSeal(t, sealer, state)
	if _, err := opener.Open(b, want); err != nil {
		t.Fatal(err)
	}
	if !allZero(sealerChain.Bytes()) || !allZero(openerChain.Bytes()) {
		t.Error("an old chain key is still there")
	}
	sealer.Destroy()
	opener.Destroy()
	if _, err := sealer.Seal(testState(TLS_AES_128_GCM_SHA256, Client, Read), testTime); err == nil {
		t.Error("a destroyed Sealer sealed")
	}
	if _, err := opener.Open(b, want); err == nil {
		t.Error("a destroyed Opener opened")
	}
}

func TestASetupIsTakenOnce(t *testing.T) {
	key, _ := GenerateKey()
	_, setup, err := NewSealer(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := key.NewOpener(setup); err != nil {
		t.Fatal(err)
	}
	if _, err := key.NewOpener(setup); !errors.Is(err, ErrReplayed) {
		t.Errorf("second time: %v, want ErrReplayed", err)
	}
	if _, err := key.NewOpener(setup[1:]); !errors.Is(err, ErrMalformed) {
		t.Errorf("short setup: %v, want ErrMalformed", err)
	}
}

func TestSecretsNeverPrint(t *testing.T) {
	const mark = 0xA7
	secret := bytes.Repeat([]byte{mark}, 48)
	fill := func(s Secret) { copy(s.Bytes(), secret) }
	state := testState(TLS_AES_256_GCM_SHA384, Client, Read)
	fill(state.Key)
	fill(state.IV)
	fill(state.NextSecret)
	key, _ := GenerateKey()
	sealer, opener := testPairFor(t, key)
	fill(sealer.ratchet.chain)
	fill(opener.ratchet.chain)
	private, err := key.key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	needles := [][]byte{bytes.Repeat([]byte{mark}, 6), private[:8]}
	checkNeverPrints(t, needles, map[string]any{
		"Secret": state.Key, "*Secret": &state.Key, "*State": state, "State": *state,
		"*PrivateKey": key, "*Sealer": sealer, "*Opener": opener, "Sealer": *sealer, "Opener": *opener,
		"hidden":  struct{ s *State }{state},
		"hidden2": struct{ s State }{*state},
		"hidden3": []any{struct{ k Secret }{state.Key}, map[string]Secret{"k": state.Key}, [1]*Secret{&state.Key}},
		"hidden4": struct{ k *PrivateKey }{key},
		"error":   fmt.Errorf("about %v and %+v", state, state.Key),
	})
}
