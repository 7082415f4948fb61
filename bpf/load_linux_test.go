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
			t.Logf("%+v", r)
			r, err = Load(Options{Form: form})
			t.Logf("%+v %v", r, err)
			r, err = Inspect("")
			t.Logf("%+v %v", r, err)
			if err := Unload(""); err != nil {
				t.Fatal(err)
			}
		})
	}
}
