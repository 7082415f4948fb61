// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/bpf/adversary"
)

// series is that of the kernel under the runner of test/vm, for which the attacks are listed.
func series(t *testing.T) string {
	t.Helper()
	s := os.Getenv("OFFLOADD_KERNEL_SERIES")
	if s == "" || os.Getuid() != 0 {
		t.Skip("attacks are listed for the kernels of test/vm, as root")
	}
	return s
}

// A loaded guard is one in a directory of its test.
type loadedGuard struct {
	*Guard
	pins   pins
	report Report
}

func loadGuard(t *testing.T, form Form) *loadedGuard {
	t.Helper()
	dir := filepath.Join("/sys/fs/bpf", strings.NewReplacer("/", "-", ".", "-").Replace(t.Name()))
	report, err := Load(Options{Dir: dir, Form: form})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Unload(dir); err != nil && !errors.Is(err, ErrNotLoaded) {
			t.Error(err)
		}
	})
	g, err := OpenGuard(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return &loadedGuard{g, pins{dir}, report}
}

// detach takes away the programs of an object.
func (g *loadedGuard) detach(t *testing.T, object string) {
	t.Helper()
	for _, p := range g.report.Programs {
		if p.Object == object {
			if err := os.Remove(g.pins.linkPin(p.pin())); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// awaitSilence waits for the kernel to let go of programs, which takes its time, until a self-test fails.
func (g *loadedGuard) awaitSilence(t *testing.T, test func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = test(); errors.Is(err, ErrSilent) {
			return
		}
	}
	t.Fatalf("the programs still act: %v", err)
}

func (g *loadedGuard) withoutBackstop(t *testing.T) {
	t.Helper()
	g.detach(t, "egress")
	g.awaitSilence(t, func() error { return tryBackstop(g.sockets) })
}

func (g *loadedGuard) withoutPlaintextGuard(t *testing.T) {
	t.Helper()
	g.detach(t, "plaintext")
	for _, attempt := range plaintextAttempts {
		g.awaitSilence(t, func() error { return tryKeyGuard(g.sockets, []keyAttempt{attempt}) })
	}
}

// move is a phase to put a socket into.
type move func(*Guard, uint64) error

var (
	toPending = []move{(*Guard).Pending}
	toReady   = []move{(*Guard).Pending, (*Guard).Ready}
	toEnded   = []move{(*Guard).Pending, (*Guard).Ended}
)

func (g *loadedGuard) put(t *testing.T, cookie uint64, moves ...move) {
	t.Helper()
	for _, do := range moves {
		if err := do(g.Guard, cookie); err != nil {
			t.Fatal(err)
		}
	}
}

func (g *loadedGuard) admitProcess(pid int, roles Role) error {
	return admitProcess(g.Guard, pid, roles)
}

func admitProcess(g *Guard, pid int, roles Role) error {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	return g.Admit(pidfd, roles)
}

// counted is a counter by its name.
func (g *loadedGuard) counted(t *testing.T, name string) uint64 {
	t.Helper()
	counts, err := g.Stopped()
	if err != nil {
		t.Fatal(err)
	}
	n, ok := counts[name]
	if !ok {
		t.Fatalf("there is no counter %s", name)
	}
	return n
}

// attacked puts the sockets of new trials into a phase and has them attacked.
func (g *loadedGuard) attacked(t *testing.T, trials *adversary.Trials, attacker adversary.Attacker, moves ...move) {
	t.Helper()
	for _, trial := range trials.All {
		if trial.Socket == nil {
			continue
		}
		cookie, err := trial.Cookie()
		if err != nil {
			t.Fatal(err)
		}
		g.put(t, cookie, moves...)
	}
	if err := trials.Run(t.Context(), attacker); err != nil {
		t.Fatal(err)
	}
}

func newTrials(t *testing.T, ways []*adversary.Way, installed bool) *adversary.Trials {
	t.Helper()
	trials, err := adversary.NewTrials(ways, installed)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { trials.Close() })
	return trials
}
