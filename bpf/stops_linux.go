// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// A Stop is one thing that a guard did not let happen.
type Stop struct {
	Time    time.Duration // since boot
	Reason  string        // a name that Stopped counts by
	Socket  uint64        // cookie of the socket, or 0
	PID     uint32        // of the process that was stopped,
	UID     uint32        // its user
	Command string        // and its name
	Target  uint32        // pid of the process that was protected, or 0
}

// stopRecord is struct stop of src/maps.h.
type stopRecord struct {
	Time, Cookie             uint64
	PID, UID, Reason, Target uint32
	Comm                     [16]byte
}

// Stops calls do for each stop, those that waited first, until ctx ends, and returns its cause. Each stop is told to one
// caller only. What did not fit into the kernel's ring is counted by Stopped, as lost_events.
func (g *Guard) Stops(ctx context.Context, do func(Stop)) error {
	reader, err := ringbuf.NewReader(g.stops)
	if err != nil {
		return fmt.Errorf("read what was stopped: %w", err)
	}
	defer reader.Close()
	// A deadline would not interrupt a reader that waits already.
	defer context.AfterFunc(ctx, func() { _ = reader.Flush() })()
	for ctx.Err() == nil {
		record, err := reader.Read()
		if errors.Is(err, ringbuf.ErrFlushed) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read what was stopped: %w", err)
		}
		var r stopRecord
		if err := binary.Read(bytes.NewReader(record.RawSample), binary.NativeEndian, &r); err != nil {
			return fmt.Errorf("read what was stopped: %w", err)
		}
		do(Stop{time.Duration(r.Time), reasonName(r.Reason), r.Cookie, r.PID, r.UID, unix.ByteSliceToString(r.Comm[:]), r.Target})
	}
	return context.Cause(ctx)
}
