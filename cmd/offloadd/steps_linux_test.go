// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// stepSin is a rogue worker's: it looks there whether it is to sin.
const stepSin step = "sin"

// Orders to the next process that reaches a step.
const (
	orderNone uint32 = iota
	orderKill
	orderStop
	orderSin
)

// testSteps tells a test which steps its processes have reached, and lets them end
// there. It is memory that all of them share, since a confined worker has no files.
type testSteps []testStep

type testStep struct{ reached, order atomic.Uint32 }

func stepIndex(s step) int {
	return slices.Index([]step{stepAccepted, stepAttached, stepOffered, stepReceived, stepHandshaken, stepSealed,
		stepSent, stepOpened, stepEntered, stepInstalled, stepHandedOver, stepWorkerReady, stepSin}, s)
}

// newTestSteps makes the file that is shared.
func newTestSteps(t testing.TB, dir string) (steps testSteps, path string) {
	t.Helper()
	path = filepath.Join(dir, "steps")
	if err := os.WriteFile(path, make([]byte, os.Getpagesize()), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	steps, err := openTestSteps(path)
	if err != nil {
		t.Fatal(err)
	}
	return steps, path // stays mapped: a test that has ended may still be asked
}

func openTestSteps(path string) (testSteps, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := unix.Mmap(int(f.Fd()), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return unsafe.Slice((*testStep)(unsafe.Pointer(&b[0])), stepIndex(stepSin)+1), nil
}

func (s testSteps) at(at step) *testStep { return &s[stepIndex(at)] }

// reach notes the step, and does as was ordered before. Who sees the note may give an order
// to the next one that comes there.
func (s testSteps) reach(at step) {
	ordered := s.at(at).order.Load()
	s.at(at).reached.Store(1)
	for order, signal := range map[uint32]unix.Signal{orderKill: unix.SIGKILL, orderStop: unix.SIGSTOP} {
		if ordered == order && s.at(at).order.CompareAndSwap(order, orderNone) {
			// The one call for it that a worker still has.
			unix.Tgkill(os.Getpid(), unix.Gettid(), signal)
			time.Sleep(time.Second) // a signal to oneself may take effect late
		}
	}
}
