// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"testing"

	"github.com/offloadd/offloadd/ktls/ktlstest"
)

func TestKeysAreSealedAndReadBack(t *testing.T) {
	ktlstest.Require(t)
	for _, choice := range []Choice{{Version: "1.3"}, {Version: "1.2", Suite: "aes256"}, {Version: "1.2", Suite: "chacha20"}} {
		config, err := ServerConfig("", "", choice, true)
		if err != nil {
			t.Fatal(err)
		}
		steps, err := MeasureKeySteps(t.Context(), config, 2)
		if err != nil {
			t.Fatalf("%+v: %v", choice, err)
		}
		seal, back := NewLatency(steps.Seal), NewLatency(steps.ReadBack)
		if seal == nil || back == nil || seal.Count != 2 || back.Count != 2 || seal.Min <= 0 || back.Min <= 0 {
			t.Errorf("%+v: sealed in %+v, read back in %+v", choice, seal, back)
		}
	}
}
