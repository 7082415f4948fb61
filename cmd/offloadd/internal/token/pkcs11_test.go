// SPDX-License-Identifier: Apache-2.0

//go:build pkcs11 && cgo

package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/offloadd/offloadd/cmd/offloadd/internal/token/tokentest"
)

func newECDSA(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newRSA(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestAPKCS11TokenSignsAndKeepsWhatItHas(t *testing.T) {
	hsm := tokentest.NewSoftHSM(t, os.Getuid())
	hsm.MakeToken("web server")
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]crypto.Signer{"rsa": newRSA(t), "p256": newECDSA(t, elliptic.P256()), "p384": newECDSA(t, elliptic.P384()), "ed25519": edwards}
	ids := map[string]string{"rsa": "01", "p256": "02", "p384": "03", "ed25519": "04"}
	for name, key := range keys {
		hsm.Import("web server", name, ids[name], key)
	}
	pin := hsm.PINFile(tokentest.PIN)
	before := hsm.Objects()
	s := NewStore()
	for name, key := range keys {
		t.Run(name, func(t *testing.T) {
			for _, path := range []string{"token=web%20server;object=" + name, "token=web%20server;id=%" + ids[name] + ";type=private;manufacturer=SoftHSM%20project"} {
				found, err := find(t, s, hsm.URI(path, pin), tokentest.PIN)
				if err != nil {
					t.Fatal(err)
				}
				signAll(t, found, key.Public())
			}
		})
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if after := hsm.Objects(); after != before {
		t.Errorf("objects before:\n%safter:\n%s", before, after)
	}
}

func TestAPKCS11KeyThatCannotBeUsedIsRefused(t *testing.T) {
	hsm := tokentest.NewSoftHSM(t, os.Getuid())
	hsm.MakeToken("web")
	hsm.MakeToken("twin")
	hsm.MakeToken("twin")
	hsm.Import("web", "tls", "01", newECDSA(t, elliptic.P256()))
	hsm.Import("web", "double", "02", newECDSA(t, elliptic.P256()))
	hsm.Import("web", "double", "03", newECDSA(t, elliptic.P256()))
	hsm.Import("web", "large", "04", newECDSA(t, elliptic.P521()))
	for _, c := range []struct {
		name, path, pin string
		want            error
		text            string
	}{
		{"fine", "token=web;object=double;id=%03", tokentest.PIN, nil, ""},
		{"wrong PIN", "token=web;object=tls", tokentest.WrongPIN, ErrPIN, "CKR_PIN_INCORRECT"},
		{"no PIN", "token=web;object=tls", "", nil, "pin-source"},
		{"no token", "token=wob;object=tls", tokentest.PIN, ErrNotFound, "--list-slots"},
		{"another manufacturer", "token=web;manufacturer=ACME;object=tls", tokentest.PIN, ErrNotFound, "--list-slots"},
		{"two tokens", "token=twin;object=tls", tokentest.PIN, ErrAmbiguous, "serial="},
		{"no object", "token=web;object=tlz", tokentest.PIN, ErrNotFound, "--list-objects"},
		{"no object with this id", "token=web;object=tls;id=%02", tokentest.PIN, ErrNotFound, "--list-objects"},
		{"two objects", "token=web;object=double", tokentest.PIN, ErrAmbiguous, "id="},
		{"P-521", "token=web;object=large", tokentest.PIN, ErrUnsuitable, "P-256 or P-384"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := find(t, store(t), hsm.URI(c.path, "/pin"), c.pin)
			if c.text == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%v; want %v with %q", err, c.want, c.text)
			}
			if err != nil && (strings.Contains(err.Error(), tokentest.WrongPIN) || strings.Contains(err.Error(), tokentest.PIN)) {
				t.Errorf("the error tells the PIN: %v", err)
			}
		})
	}
	t.Run("no module", func(t *testing.T) {
		if _, err := find(t, store(t), "pkcs11:token=web;object=tls?module-path=/etc/passwd", ""); err == nil || !strings.Contains(err.Error(), "/etc/passwd cannot be loaded") {
			t.Error(err)
		}
	})
}

func TestAPKCS11TokenThatWasAwaySignsAgain(t *testing.T) {
	hsm := tokentest.NewSoftHSM(t, os.Getuid())
	hsm.MakeToken("web")
	private := newECDSA(t, elliptic.P256())
	hsm.Import("web", "tls", "01", private)
	before := hsm.Objects()
	s := store(t)
	key, err := find(t, s, hsm.URI("token=web;object=tls", "/pin"), tokentest.PIN)
	if err != nil {
		t.Fatal(err)
	}
	s.modules.loaded[hsm.Module].pause = 0
	bringBack := hsm.TakeAway()
	if signature, err := key.Sign(nil, digests[crypto.SHA256], crypto.SHA256); err == nil || signature != nil {
		t.Errorf("signed without a token: %x", signature)
	} else {
		t.Log(err)
	}
	bringBack()
	signAll(t, key, private.Public())
	if after := hsm.Objects(); after != before {
		t.Errorf("objects before:\n%safter:\n%s", before, after)
	}
}

// faulty is a module that says what a test wants.
type faulty struct {
	cryptoki
	flags  uint
	login  error
	logins int
	sign   func(times int) error
	signed int
}

func (f *faulty) GetTokenInfo(slot uint) (pkcs11.TokenInfo, error) {
	info, err := f.cryptoki.GetTokenInfo(slot)
	info.Flags |= f.flags
	return info, err
}

func (f *faulty) Login(s pkcs11.SessionHandle, user uint, pin string) error {
	f.logins++
	if f.login != nil {
		return f.login
	}
	return f.cryptoki.Login(s, user, pin)
}

func (f *faulty) Sign(s pkcs11.SessionHandle, b []byte) ([]byte, error) {
	f.signed++
	if f.sign != nil {
		if err := f.sign(f.signed); err != nil {
			return nil, err
		}
	}
	return f.cryptoki.Sign(s, b)
}

// withFaults returns a store whose module is hsm's with faults.
func withFaults(t *testing.T, hsm *tokentest.SoftHSM, f *faulty) *Store {
	t.Helper()
	s := store(t)
	m, err := s.modules.load(hsm.Module)
	if err != nil {
		t.Fatal(err)
	}
	f.cryptoki, m.cryptoki = m.cryptoki, f
	return s
}

func TestPINsAreNotTriedUntilATokenLocks(t *testing.T) {
	hsm := tokentest.NewSoftHSM(t, os.Getuid())
	hsm.MakeToken("web")
	hsm.Import("web", "tls", "01", newECDSA(t, elliptic.P256()))
	reference := hsm.URI("token=web;object=tls", "/pin")
	for _, c := range []struct {
		name   string
		fault  faulty
		logins int
		text   string
	}{
		{"refused once", faulty{login: pkcs11.Error(pkcs11.CKR_PIN_INCORRECT)}, 1, "CKR_PIN_INCORRECT"},
		{"one more would lock it", faulty{flags: pkcs11.CKF_USER_PIN_FINAL_TRY}, 0, "one more wrong one locks it"},
		{"locked", faulty{flags: pkcs11.CKF_USER_PIN_LOCKED}, 0, "it is locked"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := withFaults(t, hsm, &c.fault)
			for range 3 {
				if _, err := find(t, s, reference, tokentest.PIN); !errors.Is(err, ErrPIN) || !strings.Contains(err.Error(), c.text) {
					t.Error(err)
				}
			}
			if c.fault.logins != c.logins {
				t.Errorf("%d logins, want %d", c.fault.logins, c.logins)
			}
		})
	}
	t.Run("a second PIN for one token", func(t *testing.T) {
		f := &faulty{}
		s := withFaults(t, hsm, f)
		if _, err := find(t, s, reference, tokentest.PIN); err != nil {
			t.Fatal(err)
		}
		if _, err := find(t, s, reference, tokentest.WrongPIN); !errors.Is(err, ErrPIN) || f.logins != 1 {
			t.Errorf("%v after %d logins", err, f.logins)
		}
	})
}

func TestAFailedSignatureIsTriedAgainWhereThatCanHelp(t *testing.T) {
	hsm := tokentest.NewSoftHSM(t, os.Getuid())
	hsm.MakeToken("web")
	hsm.Import("web", "tls", "01", newECDSA(t, elliptic.P256()))
	f := &faulty{}
	key, err := find(t, withFaults(t, hsm, f), hsm.URI("token=web;object=tls", "/pin"), tokentest.PIN)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		code  uint
		times int // failures in a row
		calls int
		good  bool
	}{
		{"reset", pkcs11.CKR_SESSION_HANDLE_INVALID, 1, 2, true},
		{"logged out", pkcs11.CKR_USER_NOT_LOGGED_IN, 1, 2, true},
		{"gone", pkcs11.CKR_DEVICE_REMOVED, 9, signTries, false},
		{"does not want to", pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, 9, 1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			f.signed = 0
			f.sign = func(n int) error {
				if n <= c.times {
					return pkcs11.Error(c.code)
				}
				return nil
			}
			_, err := key.Sign(nil, digests[crypto.SHA256], crypto.SHA256)
			if (err == nil) != c.good || f.signed != c.calls {
				t.Errorf("%v after %d calls; want good %v after %d", err, f.signed, c.good, c.calls)
			}
		})
	}
}
