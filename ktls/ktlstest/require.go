// SPDX-License-Identifier: Apache-2.0

package ktlstest

import (
	"errors"
	"os"
	"testing"

	"github.com/offloadd/offloadd/ktls"
)

// InVM reports whether the test runs under the runner that promises a kernel with
// TLS, where a skip would hide a failure.
func InVM() bool {
	return os.Getenv("OFFLOADD_VM_KERNEL") != "" || os.Getenv("OFFLOADD_KERNEL_SERIES") != ""
}

// Require skips the test if the kernel has no TLS. Under the VM runner it fails the
// test instead.
func Require(t testing.TB) {
	t.Helper()
	pair := NewPair(t)
	err := ktls.Attach(pair.Client)
	switch {
	case err == nil:
	case errors.Is(err, ktls.ErrNoTLS) && !InVM():
		t.Skip(err)
	default:
		t.Fatalf("kernel TLS is required here: %v", err)
	}
}

// skipOrFail ends a test that lacks a privilege.
func skipOrFail(t testing.TB, what string, err error) {
	t.Helper()
	if InVM() {
		t.Fatalf("%s: %v", what, err)
	}
	t.Skipf("%s: %v", what, err)
}

// CanRekey says whether a kernel of the VM runner must be able to change keys.
func CanRekey() bool { return os.Getenv("OFFLOADD_KERNEL_SERIES") == "7" }
