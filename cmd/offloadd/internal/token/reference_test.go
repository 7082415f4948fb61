// SPDX-License-Identifier: Apache-2.0

package token

import (
	"strings"
	"testing"
)

func TestReferencesAreParsedStrictly(t *testing.T) {
	const module = "?module-path=/m.so"
	for _, c := range []struct {
		name, text, want string // want "": it parses
	}{
		{"label", "pkcs11:token=web;object=tls" + module, ""},
		{"all of it", "pkcs11:token=my%20token;manufacturer=M;serial=00ff;model=v2;library-manufacturer=L;library-description=D;library-version=2.6;slot-manufacturer=S;slot-description=s;slot-id=07;object=a%3Bb;id=%01%ff;type=private?module-path=/m.so&pin-source=file:/pin", ""},
		{"upper case scheme", "PKCS11:token=web;object=tls" + module, ""},
		{"file URI", "pkcs11:token=web;object=tls?module-path=/m.so&pin-source=file:///pin", ""},
		{"tpm", "tpm:handle=0x81000001", ""},
		{"tpm with device", "tpm:handle=0x81FFffff;device=/run/swtpm%20.sock?pin-source=file:/pin", ""},

		{"no scheme", "/etc/key.pem", "neither"},
		{"no module", "pkcs11:token=web;object=tls", "module-path"},
		{"relative module", "pkcs11:token=web;object=tls?module-path=m.so", "module-path"},
		{"module name", "pkcs11:token=web;object=tls?module-path=/m.so&module-name=m", "module-name"},
		{"no key", "pkcs11:token=web" + module, "names no key"},
		{"no token", "pkcs11:object=tls;manufacturer=M" + module, "names no token"},
		{"certificate", "pkcs11:token=web;object=tls;type=cert" + module, "type must be private"},
		{"unknown attribute", "pkcs11:token=web;objekt=tls" + module, "objekt is not"},
		{"unknown query", "pkcs11:token=web;object=tls?module-path=/m.so&x-y=1", "x-y is not"},
		{"twice", "pkcs11:token=web;token=web;object=tls" + module, "token is given twice"},
		{"space", "pkcs11:token=my token;object=tls" + module, "%20"},
		{"slash", "pkcs11:token=my/token;object=tls" + module, "percent-encoded"},
		{"half an escape", "pkcs11:token=web;object=tls%2" + module, "percent"},
		{"no escape", "pkcs11:token=web;object=tls%zz" + module, "%25"},
		{"control characters are no digits", "pkcs11:token=web;object=tls%\x10\x11" + module, "%25"},
		{"empty", "pkcs11:token=;object=tls" + module, "token is empty"},
		{"no value", "pkcs11:token;object=tls" + module, "attribute 1"},
		{"stray semicolon", "pkcs11:token=web;object=tls;" + module, "attribute 3"},
		{"second question mark", "pkcs11:token=web;object=tls?module-path=/m.so?pin-source=file:/pin", ""}, // a path may hold one
		{"slot", "pkcs11:slot-id=-1;object=tls" + module, "slot-id"},
		{"version", "pkcs11:token=web;object=tls;library-version=2.6.1" + module, "library-version"},
		{"PIN value", "pkcs11:token=web;object=tls?module-path=/m.so&pin-value=SECRET", "pin-value would"},
		{"PIN value before", "pkcs11:token=web;object=tls;pin-value=SECRET" + module, "pin-value is not"},
		{"PIN program", "pkcs11:token=web;object=tls?module-path=/m.so&pin-source=|SECRET", "not run"},
		{"PIN relative", "pkcs11:token=web;object=tls?module-path=/m.so&pin-source=file:SECRET", "absolute"},
		{"PIN of the environment", "pkcs11:token=web;object=tls?module-path=/m.so&pin-source=env:SECRET", "pin-source"},
		{"PIN without a name", "pkcs11:token=web;object=tls?module-path=/m.so&SECRET", "attribute 2"},
		{"PIN in a broken escape", "pkcs11:token=web;object=tls?module-path=/m.so&pin-value=SECRET%", "pin-value"},
		{"tpm without handle", "tpm:device=/dev/tpmrm0", "0x81000000"},
		{"tpm transient", "tpm:handle=0x80000001", "0x81000000"},
		{"tpm decimal", "tpm:handle=2164260865", "0x81000000"},
		{"tpm relative", "tpm:handle=0x81000001;device=tpm0", "absolute"},
		{"tpm unknown", "tpm:handle=0x81000001;pcr=SECRET", "pcr is not"},
		{"tpm with module", "tpm:handle=0x81000001?module-path=/m.so", "module-path is not"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := Parse(c.text)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("%q: %v", c.text, err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || r != nil):
				t.Errorf("%q: %v, want an error with %q", c.text, err, c.want)
			case err != nil && strings.Contains(err.Error(), "SECRET"):
				t.Errorf("the error tells a value: %v", err)
			}
		})
	}
}

func TestAReferenceMeansWhatItSays(t *testing.T) {
	r, err := Parse("pkcs11:token=my%20token;slot-id=007;library-version=3;id=%01%fF;object=100%25?pin-source=file:///a%20b&module-path=/m.so")
	if err != nil {
		t.Fatal(err)
	}
	u := r.pkcs11
	if u.token["token"] != "my token" || u.token["slot-id"] != "7" || u.token["library-version"] != "3.0" || u.id != "\x01\xff" || u.object != "100%" || u.module != "/m.so" || r.PINFile != "/a b" {
		t.Errorf("%+v, PIN file %q", u, r.PINFile)
	}
	if s := r.String(); strings.ContainsAny(s, "?") || !strings.HasPrefix(s, "pkcs11:token=my%20token") {
		t.Errorf("shown as %q", s)
	}
	if r, err = Parse("tpm:handle=0x81000002"); err != nil || r.tpm.handle != 0x81000002 || r.tpm.device != defaultDevice {
		t.Errorf("%+v, %v", r, err)
	}
	for text, want := range map[string]bool{"pkcs11:": true, "Pkcs11:x": true, "TPM:": true, "/etc/tpm:key": false, "key.pem": false, "pkcs11": false} {
		if Names(text) != want {
			t.Errorf("Names(%q) = %v", text, !want)
		}
	}
}

// FuzzParse: no panic, no value in an error, and what parses names all that it must.
func FuzzParse(f *testing.F) {
	f.Add("pkcs11:token=web;object=tls?module-path=/m.so&pin-source=file:/pin")
	f.Add("tpm:handle=0x81000001;device=/dev/tpmrm0")
	f.Add("pkcs11:id=%01;serial=%zz?pin-value=1")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := Parse(s)
		if err != nil {
			if r != nil {
				t.Error("a result beside an error")
			}
			return
		}
		if (r.pkcs11 == nil) == (r.tpm == nil) || !Names(s) || strings.Contains(r.String(), "?") {
			t.Errorf("%q is %+v", s, r)
		}
		if u := r.pkcs11; u != nil && (u.object+u.id == "" || len(u.token) == 0 || u.module[0] != '/') {
			t.Errorf("%q is %+v", s, u)
		}
	})
}
