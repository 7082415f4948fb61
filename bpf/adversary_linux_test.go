// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"slices"
	"testing"

	"github.com/offloadd/offloadd/bpf/adversary"
)

// TestEveryWayAtAKeyAndIntoAProcess is refused, in both forms to root, and to a user; what a kernel does not know stays
// unknown.
func TestEveryWayAtAKeyAndIntoAProcess(t *testing.T) {
	series := series(t)
	for _, form := range formsHere() {
		t.Run(string(form), func(t *testing.T) {
			g := loadGuard(t, form)
			victim, err := adversary.StartVictim()
			if err != nil {
				t.Fatal(err)
			}
			if err := g.admitProcess(victim.PID, Shielded); err != nil {
				t.Fatal(err)
			}
			withKeys := func(w *adversary.Way) bool { return w.Needs == adversary.WithKeys }
			withoutKeys := func(w *adversary.Way) bool { return w.Needs != adversary.WithKeys }
			users := []int{root, nobody}
			if form == FormModifyReturn {
				users = users[:1]
			}
			for _, uid := range users {
				ready := newTrials(t, slices.DeleteFunc(adversary.Ways(adversary.Key), withoutKeys), true)
				g.attacked(t, ready, adversary.Attacker{UID: uid}, toReady...)
				wantAllRefused(t, ready, series, uid)
				pending := newTrials(t, slices.DeleteFunc(adversary.Ways(adversary.Key), withKeys), false)
				g.attacked(t, pending, adversary.Attacker{UID: uid}, toPending...)
				wantAllRefused(t, pending, series, uid)
				process := newTrials(t, adversary.Ways(adversary.Process), false)
				process.Victim = victim.VictimInfo
				g.attacked(t, process, adversary.Attacker{UID: uid})
				wantAllRefused(t, process, series, uid)
			}
			if err := victim.Close(); err != nil {
				t.Error("the victim did not survive:", err)
			}
		})
	}
}

func wantAllRefused(t *testing.T, trials *adversary.Trials, series string, uid int) {
	t.Helper()
	for _, trial := range trials.All {
		free := trial.Unguarded(series, uid)
		if trial.Outcome != "EPERM" && (free == adversary.Succeeded || trial.Outcome != free) {
			t.Errorf("uid %d, %s: %s; without a guard it is %s", uid, trial.Name, trial.Outcome, free)
		}
	}
}
