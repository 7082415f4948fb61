// SPDX-License-Identifier: Apache-2.0

package custody

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/ktls/ktlstest"
)

const envFew = "CUSTODY_TEST_FEW_CAPABILITIES"

// TestOneCapabilityIsEnough runs what a confined daemon does in a process that has
// CAP_NET_ADMIN and no other.
func TestOneCapabilityIsEnough(t *testing.T) {
	watched(t, 1) // or skip
	cmd := exec.Command("/proc/self/exe", "-test.v", "-test.run=^(TestFewCapabilitiesProcess|TestRevocationFindsASocketThatMoved|"+
		"TestLostWordIsMadeUpFor|TestAFullTableCountsWhatItCannotKeep)$")
	cmd.Env = append(os.Environ(), envFew+"=1")
	var out []byte
	done := make(chan error)
	go func() {
		// The bounding set belongs to this thread, which ends with the goroutine.
		runtime.LockOSThread()
		for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
			if c != unix.CAP_NET_ADMIN {
				if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
					done <- err
					return
				}
			}
		}
		var err error
		out, err = cmd.CombinedOutput()
		done <- err
	}()
	if err := <-done; err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestFewCapabilitiesProcess is a part of that process.
func TestFewCapabilitiesProcess(t *testing.T) {
	if os.Getenv(envFew) == "" {
		return
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&head, &sets[0]); err != nil {
		t.Fatal(err)
	}
	if sets[0].Effective != 1<<unix.CAP_NET_ADMIN || sets[1].Effective != 0 {
		t.Fatalf("has capabilities %#x", sets[0].Effective)
	}
	table, _ := watched(t, 1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := WatchLinks(ctx, table.log, table); err != nil {
		t.Fatal(err)
	}
	p := ktlstest.NewPair(t)
	socket := add(t, table, p.Server, inDevice())
	if e, _ := table.Get(socket); e.Read.Device != "lo" {
		t.Errorf("device %q, %s", e.Read.Device, e.Read.Reason)
	}
}
