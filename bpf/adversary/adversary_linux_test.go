// SPDX-License-Identifier: Apache-2.0

package adversary

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

// series is that of the kernel under the runner of test/vm, without which nothing here is known to work.
func series(t *testing.T) string {
	t.Helper()
	s := os.Getenv("OFFLOADD_KERNEL_SERIES")
	if s == "" || os.Getuid() != 0 {
		t.Skip("attacks are listed for the kernels of test/vm, as root")
	}
	return s
}

var users = map[string]int{"root": 0, "a user": 65534}

func TestEveryWayToSendWorksOnAFreeSocket(t *testing.T) {
	series := series(t)
	for user, uid := range users {
		t.Run(user, func(t *testing.T) {
			for _, trial := range run(t, Send, uid, VictimInfo{}) {
				arrived, err := trial.Arrived()
				if err != nil {
					t.Error(err)
				}
				want := trial.Unguarded(series, uid)
				if trial.Outcome != want || arrived != (want == Succeeded) {
					t.Errorf("%s: %s, arrived %v; want %s", trial.Name, trial.Outcome, arrived, want)
				}
			}
		})
	}
}

func TestEveryWayAtAKeyWorksOnAFreeSocket(t *testing.T) {
	series := series(t)
	for user, uid := range users {
		t.Run(user, func(t *testing.T) {
			for _, trial := range run(t, Key, uid, VictimInfo{}) {
				if want := trial.Unguarded(series, uid); trial.Outcome != want {
					t.Errorf("%s: %s, want %s", trial.Name, trial.Outcome, want)
				}
			}
		})
	}
}

func TestEveryWayAtAProcessWorksOnAFreeProcess(t *testing.T) {
	series := series(t)
	victim, err := StartVictim()
	if err != nil {
		t.Fatal(err)
	}
	for user, uid := range users {
		t.Run(user, func(t *testing.T) {
			for _, trial := range run(t, Process, uid, victim.VictimInfo) {
				if want := trial.Unguarded(series, uid); trial.Outcome != want {
					t.Errorf("%s: %s, want %s", trial.Name, trial.Outcome, want)
				}
			}
		})
	}
	if err := victim.Close(); err != nil {
		t.Error("the victim did not survive:", err)
	}
}

func run(t *testing.T, kind Kind, uid int, victim VictimInfo) []*Trial {
	t.Helper()
	trials, err := NewTrials(Ways(kind), false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { trials.Close() })
	trials.Victim = victim
	if err := trials.Run(t.Context(), Attacker{UID: uid}); err != nil {
		t.Fatal(err)
	}
	return trials.All
}
