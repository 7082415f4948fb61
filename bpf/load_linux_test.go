// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"testing"
)

func TestLoad(t *testing.T) {
	for _, form := range []Form{FormLSM, FormModifyReturn} {
		t.Run(string(form), func(t *testing.T) {
			r, err := Load(Options{Form: form})
			if err != nil {
				t.Fatal(err)
			}
			_ = r
			r, err = Load(Options{Form: form})
			_, _ = r, err
			r, err = Inspect("")
			_, _ = r, err
			if err := Unload(""); err != nil {
				t.Fatal(err)
			}
		})
	}
}
