// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"errors"
	"testing"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// TestASuiteThatTheKernelLacksIsNamed takes the cipher's module out of the kernel:
// the ULP attaches, the key does not, and then nothing may leave in clear.
func TestASuiteThatTheKernelLacksIsNamed(t *testing.T) {
	ktlstest.Require(t)
	ktlstest.TakeModule(t, "chacha20poly1305")
	p := ktlstest.NewPair(t)
	capture := ktlstest.StartCapture(t, p.Port())
	_, server := ktlstest.NewStates(t, blob.TLS_CHACHA20_POLY1305_SHA256, p)
	if _, err := ktls.Install(p.Server, server.Read, server.Write); !errors.Is(err, ktls.ErrSuite) {
		t.Errorf("got %v, want ErrSuite", err)
	}
	marker := []byte("a marker that must not go in clear")
	p.Server.Write(marker)
	capture.AssertNoPlaintext(t, marker)
	other := ktlstest.NewPair(t)
	_, server = ktlstest.NewStates(t, blob.TLS_AES_128_GCM_SHA256, other)
	if _, err := ktls.Install(other.Server, server.Read, server.Write); err != nil {
		t.Errorf("a suite that the kernel has: %v", err)
	}
}
