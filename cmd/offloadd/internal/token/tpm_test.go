// SPDX-License-Identifier: Apache-2.0

package token

import (
	"crypto"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/offloadd/offloadd/cmd/offloadd/internal/token/tokentest"
)

func TestATPMSignsAndKeepsWhatItHas(t *testing.T) {
	tpm := tokentest.StartTPM(t)
	s := store(t)
	for name, template := range map[string]tpm2.TPMTPublic{"RSA": tokentest.RSA, "P-256": tokentest.P256, "P-384": tokentest.P384} {
		for _, pin := range []string{"", tokentest.PIN} {
			t.Run(name+pin, func(t *testing.T) {
				reference, public := tpm.Make(template, pin)
				before := tpm.Objects()
				key, err := find(t, s, reference, pin)
				if err != nil {
					t.Fatal(err)
				}
				signAll(t, key, public)
				if after := tpm.Objects(); after != before || !strings.Contains(after, "\n") {
					t.Errorf("objects before:\n%safter:\n%s", before, after)
				}
			})
		}
	}
}

func TestATPMKeyThatCannotBeUsedIsRefused(t *testing.T) {
	tpm := tokentest.StartTPM(t)
	restricted := tokentest.P256
	restricted.ObjectAttributes.Restricted = true
	restricted.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
		CurveID: tpm2.TPMECCNistP256,
		Scheme:  tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
	})
	onlyPKCS1 := tokentest.RSA
	onlyPKCS1.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
		KeyBits: 2048,
		Scheme:  tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgRSASSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256})},
	})
	restrictedReference, _ := tpm.Make(restricted, "")
	pkcs1Reference, _ := tpm.Make(onlyPKCS1, "")
	lockedReference, _ := tpm.Make(tokentest.P256, tokentest.PIN)
	elsewhere := "tpm:handle=0x81000001;device=" + tpm.Socket + "-none"
	for _, c := range []struct {
		name, reference, pin string
		want                 error
		text                 string
	}{
		{"restricted", restrictedReference, "", ErrUnsuitable, "restricted"},
		{"for PKCS #1 only", pkcs1Reference, "", ErrUnsuitable, "RSASSA-PSS"},
		{"wrong PIN", lockedReference, tokentest.WrongPIN, ErrPIN, "TPM2_Sign"},
		{"no PIN", lockedReference, "", ErrPIN, "TPM2_Sign"},
		{"no object", "tpm:handle=0x81000777;device=" + tpm.Socket, "", ErrNotFound, "tpm2_getcap"},
		{"no TPM", elsewhere, "", nil, "no such file"},
		{"no device", "tpm:handle=0x81000001;device=/etc/passwd", "", nil, "not a device"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := find(t, store(t), c.reference, c.pin)
			if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%v; want %v with %q", err, c.want, c.text)
			}
			if err != nil && strings.Contains(err.Error(), tokentest.WrongPIN) {
				t.Errorf("the error tells the PIN: %v", err)
			}
		})
	}
}

// TestAWrongPINIsGivenToATPMOnce: each one counts against the lockout of the whole TPM.
func TestAWrongPINIsGivenToATPMOnce(t *testing.T) {
	tpm := tokentest.StartTPM(t)
	reference, _ := tpm.Make(tokentest.P256, tokentest.PIN)
	s := store(t)
	for range 3 {
		if _, err := find(t, s, reference, tokentest.WrongPIN); !errors.Is(err, ErrPIN) {
			t.Fatal(err)
		}
	}
	if n := tpm.LockoutCounter(); n != 1 {
		t.Errorf("the TPM counts %d wrong PINs, want 1", n)
	}
}

func TestATPMThatWasAwaySignsAgain(t *testing.T) {
	tpm := tokentest.StartTPM(t)
	reference, public := tpm.Make(tokentest.P256, "")
	key, err := find(t, store(t), reference, "")
	if err != nil {
		t.Fatal(err)
	}
	before := tpm.Objects()
	tpm.Stop()
	if signature, err := key.Sign(nil, digests[crypto.SHA256], crypto.SHA256); err == nil || signature != nil {
		t.Errorf("signed without a TPM: %x, %v", signature, err)
	}
	tpm.Start()
	signAll(t, key, public)
	if after := tpm.Objects(); after != before {
		t.Errorf("objects before:\n%safter:\n%s", before, after)
	}
}
