// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"runtime/debug"
	heap "runtime/metrics"
	"time"
)

// Go collects garbage when there is as much of it as there is live data, and 4 MiB at
// least. A worker and a daemon without connections have hardly any live data, and spend
// up to a sixth of their time on that; a daemon with many has it for each of them twice.
const (
	// heapRoom is what garbage may gather before it is collected, in bytes.
	heapRoom = 16 << 20
	// Bounds of the garbage in per cent of the live data. The first is with next to none:
	// the runtime's 4 MiB become heapRoom.
	mostGarbage  = 400
	leastGarbage = 50
	// heapInterval is how often the daemon looks at its heap.
	heapInterval = 5 * time.Second
)

// roomyHeap gives a process with little live data heapRoom. GOGC is the operator's word.
func roomyHeap() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(mostGarbage)
	}
}

// garbagePercent is how much garbage, in per cent, there may be beside live data in bytes.
func garbagePercent(live uint64) int {
	if live == 0 {
		return mostGarbage
	}
	return int(min(max(100*heapRoom/live, leastGarbage), mostGarbage))
}

// tendHeap keeps the daemon's heap roomy while connections come, and small when none do:
// then what is alive is moved together, by repack, and the rest goes back to the system at
// once. accepted counts connections.
func tendHeap(ctx context.Context, accepted func() uint64, repack func()) {
	if os.Getenv("GOGC") != "" {
		return
	}
	roomyHeap()
	ticker := time.NewTicker(heapInterval)
	defer ticker.Stop()
	before, trimmed := uint64(0), uint64(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		n := accepted()
		if n == before && n != trimmed {
			repack()
			debug.FreeOSMemory()
			trimmed = n
		}
		before = n
		debug.SetGCPercent(garbagePercent(liveHeap()))
	}
}

// liveHeap is what the last collection found alive, in bytes.
func liveHeap() uint64 {
	sample := []heap.Sample{{Name: "/gc/heap/live:bytes"}}
	heap.Read(sample)
	if sample[0].Value.Kind() != heap.KindUint64 {
		return 0
	}
	return sample[0].Value.Uint64()
}
