// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"testing"
)

// TestAFormThatCanBeSkippedIsNamed: Debian's Linux 7 preempts itself, and those before do
// not.
func TestAFormThatCanBeSkippedIsNamed(t *testing.T) {
	preempts := series(t) == "7"
	for form, skippable := range map[Form]bool{FormLSM: false, FormModifyReturn: preempts} {
		t.Run(string(form), func(t *testing.T) {
			if series(t) == "" || form == FormLSM && !lsmActive() {
				t.Skip("the BPF LSM is off")
			}
			g := loadGuard(t, form)
			if (g.report.Skippable != "") != skippable {
				t.Errorf("the report says %q", g.report.Skippable)
			}
			if err := g.Sound(); errors.Is(err, ErrSkippable) != skippable || err != nil && !skippable {
				t.Errorf("who opens it hears %v", err)
			}
			again, err := Inspect(g.pins.dir)
			if err != nil || again.Skippable != g.report.Skippable {
				t.Errorf("status: %q, %v", again.Skippable, err)
			}
		})
	}
}
