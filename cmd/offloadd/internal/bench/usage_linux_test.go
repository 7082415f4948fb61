// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// TestSystemCallsOfAllThreadsAreCounted, of those that are there and those that come.
func TestSystemCallsOfAllThreadsAreCounted(t *testing.T) {
	c, err := countSyscalls()
	if err != nil {
		if ktlstest.InVM() {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	defer c.close()
	before, err := c.read()
	if err != nil {
		t.Fatal(err)
	}
	const calls, several = 20_000, 4
	var all sync.WaitGroup
	for range several {
		all.Go(func() {
			for range calls {
				unix.Getppid()
			}
		})
	}
	all.Wait()
	after, err := c.read()
	if err != nil || after-before < several*calls || after-before > 2*several*calls {
		t.Errorf("%d system calls were counted, want a little over %d; %v", after-before, several*calls, err)
	}
}

// TestProcessorTimeGrows, and memory is known.
func TestProcessorTimeGrows(t *testing.T) {
	o := newUsageOf()
	defer o.close()
	before := o.now()
	for n := 0; ; n++ {
		newPattern(1)
		after := o.now()
		if after.UserUS > before.UserUS && after.RSSBytes > 1<<20 && after.PID != 0 {
			break
		}
		if n > 10_000 {
			t.Fatalf("%+v, and before %+v", after, before)
		}
	}
}
