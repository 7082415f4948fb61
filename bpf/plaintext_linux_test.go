// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/offloadd/offloadd/bpf/adversary"
)

// sending are the ways to send but some.
func sending(but func(*adversary.Way) bool) []*adversary.Way {
	return slices.DeleteFunc(adversary.Ways(adversary.Send), but)
}

// Of no security module, refused by the key guard, and slow.
func unseen(w *adversary.Way) bool    { return w.Unseen }
func repaired(w *adversary.Way) bool  { return strings.Contains(w.Name, "TCP_REPAIR") }
func elsewhere(w *adversary.Way) bool { return w.Elsewhere }

func either(a, b func(*adversary.Way) bool) func(*adversary.Way) bool {
	return func(w *adversary.Way) bool { return a(w) || b(w) }
}

// notOverTLS are the ways that kernel TLS itself does not take: net/tls/tls_sw.c allows few flags and knows no bundles,
// a record that is left open is dropped by a shutdown, SOCK_SUPPORT_ZC is gone, and it and sockmaps exclude each other.
func notOverTLS(series string) func(*adversary.Way) bool {
	names := []string{"send MSG_OOB", "send MSG_ZEROCOPY", "send MSG_FASTOPEN, connected", "send MSG_MORE, then uncork",
		"redirect by a sockmap", "io_uring SEND_ZC", "io_uring SEND_ZC from a registered buffer", "io_uring SENDMSG_ZC",
		"io_uring SENDMSG_ZC by a worker thread", "io_uring SEND bundle"}
	if series == "6.1" {
		names = append(names, "send MSG_EOR")
	}
	return func(w *adversary.Way) bool {
		return w.Fresh || repaired(w) || elsewhere(w) || slices.Contains(names, w.Name)
	}
}

// TestEveryWayToSend: refused, counted and without effect before the keys and after the end, for root and for a user;
// open to all once the keys are in, and on sockets that are not managed; and open as before when nothing is loaded. In
// the phases in which the guard must act its backstop is not there to help it.
func TestEveryWayToSend(t *testing.T) {
	series := series(t)
	for _, test := range []struct {
		form                Form
		early               []int // uids
		ready, late         int
		unmanaged, unloaded bool
	}{
		{form: FormLSM, ready: nobody, early: []int{root, nobody}, late: nobody, unmanaged: true, unloaded: true},
		{form: FormModifyReturn, ready: root, early: []int{nobody}, late: root},
	} {
		if !slices.Contains(formsHere(), test.form) {
			continue
		}
		t.Run(string(test.form), func(t *testing.T) {
			g := loadGuard(t, test.form)
			trials := newTrials(t, sending(notOverTLS(series)), true)
			g.attacked(t, trials, adversary.Attacker{UID: test.ready}, toReady...)
			wantAllArrived(t, "ready", trials, series, test.ready)
			if test.unmanaged {
				trials := newTrials(t, sending(elsewhere), false)
				g.attacked(t, trials, adversary.Attacker{})
				wantAllArrived(t, "not managed", trials, series, root)
			}
			g.withoutBackstop(t)
			for _, uid := range test.early {
				g.wantNothingLeft(t, "plaintext_early", sending(unseen), series, uid, toPending)
			}
			g.wantNothingLeft(t, "plaintext_late", sending(either(unseen, elsewhere)), series, test.late, toEnded)
			g.wantHandshakerOnly(t, series)
			if test.unloaded {
				g.wantFreedByUnload(t, series)
			}
		})
	}
}

func wantAllArrived(t *testing.T, phase string, trials *adversary.Trials, series string, uid int) {
	t.Helper()
	for _, trial := range trials.All {
		wantOutcome(t, phase, trial, trial.Unguarded(series, uid))
	}
}

func wantOutcome(t *testing.T, phase string, trial *adversary.Trial, want string) {
	t.Helper()
	arrived, err := trial.Arrived()
	if err != nil {
		t.Errorf("%s, %s: %v", phase, trial.Name, err)
	}
	if trial.Outcome != want || arrived != (want == adversary.Succeeded) {
		t.Errorf("%s, %s: %s, arrived %v; want %s", phase, trial.Name, trial.Outcome, arrived, want)
	}
}

// wantNothingLeft wants each way that the kernel knows to be refused and counted, and nothing to arrive by any.
func (g *loadedGuard) wantNothingLeft(t *testing.T, counter string, ways []*adversary.Way, series string, uid int, phase []move) {
	t.Helper()
	trials := newTrials(t, ways, false)
	before := g.counted(t, counter)
	g.attacked(t, trials, adversary.Attacker{UID: uid}, phase...)
	refused := uint64(0)
	for _, trial := range trials.All {
		if trial.Received != "" {
			t.Errorf("%s, uid %d, %s: the peer received %q", counter, uid, trial.Name, trial.Received)
		}
		free := trial.Unguarded(series, uid)
		switch {
		case free == adversary.Succeeded && trial.Outcome != "EPERM":
			t.Errorf("%s, uid %d, %s: %s, want EPERM", counter, uid, trial.Name, trial.Outcome)
		case free != adversary.Succeeded && trial.Outcome != free && trial.Outcome != "EPERM":
			t.Errorf("%s, uid %d, %s: %s, want %s, or EPERM", counter, uid, trial.Name, trial.Outcome, free)
		case free == adversary.Succeeded && !repaired(trial.Way):
			refused++
		}
	}
	if n := g.counted(t, counter) - before; n < refused || n > uint64(len(trials.All)) {
		t.Errorf("%s, uid %d: %d counted, of %d that were refused", counter, uid, n, refused)
	}
}

// wantHandshakerOnly: a handshaker sends before the keys, by each of its threads and those that the kernel runs for it.
// A process that it makes is not one.
func (g *loadedGuard) wantHandshakerOnly(t *testing.T, series string) {
	t.Helper()
	trials := newTrials(t, sending(either(unseen, repaired)), false)
	admit := func(pid int) error { return g.admitProcess(pid, Handshaker) }
	g.attacked(t, trials, adversary.Attacker{Started: admit}, toPending...)
	for _, trial := range trials.All {
		want := trial.Unguarded(series, root)
		if trial.Elsewhere {
			want = "EPERM"
		}
		wantOutcome(t, "handshaker", trial, want)
	}
}

// wantFreedByUnload: without programs, the same sockets in the same phase.
func (g *loadedGuard) wantFreedByUnload(t *testing.T, series string) {
	t.Helper()
	if err := Unload(g.pins.dir); err != nil {
		t.Fatal(err)
	}
	g.awaitSilence(t, func() error { return testKeyGuard(g.sockets) })
	for _, attempt := range plaintextAttempts {
		g.awaitSilence(t, func() error { return tryKeyGuard(g.sockets, []keyAttempt{attempt}) })
	}
	trials := newTrials(t, sending(elsewhere), false)
	g.attacked(t, trials, adversary.Attacker{}, toPending...)
	wantAllArrived(t, "unloaded", trials, series, root)
}

// TestTheBackstopAloneLetsNothingOut: without the guard before it nothing arrives by any way, whatever the process is
// told, and each packet is counted.
func TestTheBackstopAloneLetsNothingOut(t *testing.T) {
	series := series(t)
	g := loadGuard(t, "")
	g.wantFileHook(t, series == "6.1")
	g.withoutPlaintextGuard(t)
	for counter, phase := range map[string][]move{"packet_early": toPending, "packet_late": toEnded} {
		trials := newTrials(t, sending(elsewhere), false)
		trials.Patience = time.Second // what was dropped keeps the connection from ending
		before := g.counted(t, counter)
		g.attacked(t, trials, adversary.Attacker{}, phase...)
		sent := uint64(0)
		for _, trial := range trials.All {
			if trial.Received != "" {
				t.Errorf("%s, %s: the peer received %q", counter, trial.Name, trial.Received)
			}
			if trial.Outcome == adversary.Succeeded {
				sent++
			}
		}
		if n := g.counted(t, counter) - before; sent < 50 || n < sent {
			t.Errorf("%s: %d packets counted, of %d ways that the kernel took", counter, n, sent)
		}
	}
}

// wantFileHook to be there where the kernel has a second way into TCP, and where that is not known.
func (g *loadedGuard) wantFileHook(t *testing.T, want bool) {
	t.Helper()
	there := slices.ContainsFunc(g.report.Programs, func(p Program) bool { return p.Name == "plaintext_write" })
	if there != want || !sendsByPages("/nowhere") {
		t.Errorf("the hook of files is there: %v", there)
	}
}
