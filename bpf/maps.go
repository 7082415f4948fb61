// SPDX-License-Identifier: Apache-2.0

package bpf

import "fmt"

// The other side of src/maps.h.

// Names of maps.
const (
	mapSockets = "sockets"
	mapTasks   = "tasks"
	mapStopped = "stopped"
	mapStops   = "stops"
)

// phase of a managed socket.
type phase uint32

const (
	pending phase = iota + 1
	ready
	ended
)

// flagProbe marks a socket of the self-test: what is denied on it is denied to all.
const flagProbe = 1

type managed struct {
	Phase phase
	Flags uint32
}

// A Role is what a process may do with managed sockets. Roles are bits, and a process may have several.
type Role uint32

const (
	// KeyHolder may get and set keys.
	KeyHolder Role = 1 << iota
	// Handshaker may send on a socket that has no key yet.
	Handshaker
	// Shielded lets no other process look into its memory, or take its descriptors. Its children are born so.
	Shielded
	// probed marks a process of the self-test.
	probed
)

// lostEvents is the counter of stops of which the ring had no room to tell.
const lostEvents = 0

// PacketInClear is the reason of a Stop on a socket without keys of which a packet was about to leave that is no part of
// a TLS record. The packet stays in the queue, and everything behind it, so the connection can only be ended.
const PacketInClear = "packet_early"

// reasons are the names of all counters of map stopped.
var reasons = map[uint32]string{
	lostEvents: "lost_events",
	1:          "key_get",
	2:          "key_set",
	3:          "repair",
	4:          "zerocopy_receive",
	5:          "ulp",
	6:          "disconnect",
	7:          "listen",
	8:          "attach",
	16:         "plaintext_early",
	17:         "plaintext_late",
	18:         PacketInClear,
	19:         "packet_late",
	20:         "packet_unreadable",
}

func reasonName(reason uint32) string {
	if name := reasons[reason]; name != "" {
		return name
	}
	return fmt.Sprintf("reason_%d", reason)
}
