// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"crypto/sha256"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// explore visits every state that can be reached, and returns the first violation with
// the way there, which is a shortest one.
func explore(f modelFaults, bounds modelBounds) (states int, err error) {
	first := &modelState{accepted: [modelSockets]bool{true}, alive: [modelSockets]bool{true}}
	first.file.unwritten = f.unwritten
	if err := first.boot(); err != nil {
		return 0, err
	}
	type visit struct {
		state *modelState
		from  *visit
		move  string
	}
	seen := map[[sha256.Size]byte]struct{}{first.key(): {}}
	for queue := []*visit{{state: first}}; len(queue) > 0; queue = queue[1:] {
		at := queue[0]
		for _, mv := range at.state.moves(f, bounds) {
			m := at.state.clone()
			v := &visit{m, at, mv.name}
			if err := mv.do(m); err != nil {
				var way []string
				for ; v.from != nil; v = v.from {
					way = append(way, v.move)
				}
				slices.Reverse(way)
				return len(seen), fmt.Errorf("%w\nafter: %s", err, strings.Join(way, "\n       "))
			}
			key := m.key()
			if _, ok := seen[key]; !ok {
				seen[key] = struct{}{}
				queue = append(queue, v)
			}
		}
		at.state = nil
	}
	return len(seen), nil
}

// skipInVM: the model asks nothing of a kernel, and an emulated CPU is slow.
func skipInVM(t *testing.T) {
	if os.Getenv("OFFLOADD_VM_KERNEL") != "" {
		t.Skip("runs on the host")
	}
}

// TestNoInterleavingInstallsAKeyTwice: nor refuses an honest import.
func TestNoInterleavingInstallsAKeyTwice(t *testing.T) {
	skipInVM(t)
	all := []modelBounds{{1, 1, 1}, {1, 2, 0}}
	if testing.Short() {
		all = []modelBounds{{1, 1, 0}}
	}
	for _, bounds := range all {
		start := time.Now()
		states, err := explore(modelFaults{}, bounds)
		if err != nil {
			t.Errorf("%+v: %v", bounds, err)
		}
		t.Logf("%+v: %d states in %v", bounds, states, time.Since(start).Round(time.Millisecond))
	}
}

// TestTheModelFindsWhatIsBuiltWrongly: else it would prove nothing.
func TestTheModelFindsWhatIsBuiltWrongly(t *testing.T) {
	skipInVM(t)
	if testing.Short() {
		t.Skip("with the race detector it takes long and finds no race")
	}
	for name, f := range map[string]modelFaults{
		"entries are not written":          {unwritten: true},
		"entered after the install":        {installFirst: true},
		"forgotten before the socket ends": {forgetEarly: true},
		"an old list of sockets":           {lateAnswer: true},
	} {
		t.Run(name, func(t *testing.T) {
			states, err := explore(f, modelBounds{1, 1, 1})
			if err == nil || !strings.Contains(err.Error(), "is again in socket") {
				t.Fatalf("not found in %d states: %v", states, err)
			}
			t.Logf("%d states: %v", states, err)
		})
	}
}
