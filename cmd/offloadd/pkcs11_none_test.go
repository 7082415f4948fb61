// SPDX-License-Identifier: Apache-2.0

//go:build !pkcs11 || !cgo

package main

import (
	"strings"
	"testing"
)

func TestServeWithoutPKCS11SaysHowToBuildIt(t *testing.T) {
	code, _, stderr := call("", "serve", "--listen", "127.0.0.1:0", "--certificate", "c", "--key", "pkcs11:token=web;object=tls?module-path=/m.so&pin-source=file:/pin")
	if code != exitUsage || !strings.Contains(stderr, "go build -tags pkcs11") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}
