// SPDX-License-Identifier: Apache-2.0

package main

import "testing"

func TestTheGarbageBesideLiveDataIsBounded(t *testing.T) {
	for live, want := range map[uint64]int{0: 400, 1 << 20: 400, 4 << 20: 400, 8 << 20: 200, 16 << 20: 100, 32 << 20: 50, 1 << 34: 50} {
		if got := garbagePercent(live); got != want {
			t.Errorf("%d %% beside %d bytes, want %d %%", got, live, want)
		}
	}
}
