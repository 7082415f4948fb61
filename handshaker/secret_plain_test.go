// SPDX-License-Identifier: Apache-2.0

//go:build !goexperiment.runtimesecret

package handshaker

import "testing"

func TestAPlainBuildSaysThatItErasesNothing(t *testing.T) {
	if ErasesSecrets() {
		t.Error("it claims to")
	}
}
