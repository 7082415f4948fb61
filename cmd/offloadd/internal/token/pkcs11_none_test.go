// SPDX-License-Identifier: Apache-2.0

//go:build !pkcs11 || !cgo

package token

import (
	"strings"
	"testing"
)

func TestABuildWithoutPKCS11SaysHowToBuildIt(t *testing.T) {
	const reference = "pkcs11:token=web;object=tls?module-path=/m.so"
	r, err := Parse(reference)
	if err != nil {
		t.Fatal(err)
	}
	if _, found := find(t, store(t), reference, ""); found == nil || r.Supported() == nil || !strings.Contains(found.Error(), "-tags pkcs11") {
		t.Errorf("%v, %v", found, r.Supported())
	}
}
