// SPDX-License-Identifier: Apache-2.0

//go:build goexperiment.runtimesecret

package handshaker

import (
	"runtime/secret"
	"testing"
)

func TestTheHandshakeRunsWhereSecretsAreErased(t *testing.T) {
	if !ErasesSecrets() {
		t.Skip("not on this platform")
	}
	erasing(func() {
		if !secret.Enabled() {
			t.Error("not enabled")
		}
	})
}
