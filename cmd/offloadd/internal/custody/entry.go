// SPDX-License-Identifier: Apache-2.0

package custody

import (
	"net/netip"
	"slices"
	"time"
)

// Place is where the working copy of a key is.
type Place string

// The places. The kernel keeps a copy of its own beside that in a device.
const (
	Device   Place = "device"
	Software Place = "kernel software"
	Unknown  Place = "unknown"
	// UserSpace is the memory of a relay.
	UserSpace Place = "user space"
)

// Hand is a process that a key, or the socket with the key in it, went through.
type Hand struct {
	Role string    `json:"role"` // worker, daemon, application; daemon again when it is given back
	PID  int       `json:"pid"`
	UID  uint32    `json:"uid"`
	ID   string    `json:"id,omitempty"` // a worker's sealer, a daemon's instance
	Time time.Time `json:"time"`
}

// Degradation says that a key is no longer, or not safely, where it was put.
type Degradation struct {
	Since  time.Time `json:"since"`
	Reason string    `json:"reason"`
}

// Key is the custody of one direction's key.
type Key struct {
	Place Place     `json:"place"`
	Since time.Time `json:"since"`
	// Device is the interface that has the key or had it, "" if none or not known.
	Device string `json:"device,omitempty"`
	Epoch  uint32 `json:"epoch"`
	// Reason says why the key is not in a better place.
	Reason   string       `json:"reason,omitempty"`
	Degraded *Degradation `json:"degraded,omitempty"`
	Hands    []Hand       `json:"hands"`
}

// Condition is what became of a connection.
type Condition string

// The conditions. A closed or revoked connection stays in the table while somebody
// holds a descriptor of the socket, since the kernel keeps the keys until then.
const (
	Live    Condition = "live"
	Closed  Condition = "closed"  // reset or finished: nothing goes in or out any more
	Revoked Condition = "revoked" // ended by us
)

// Entry is what is known of one connection.
type Entry struct {
	Socket     uint64         `json:"socket"`
	Condition  Condition      `json:"condition"`
	Listener   string         `json:"listener"`
	Local      netip.AddrPort `json:"local"`
	Peer       netip.AddrPort `json:"peer"`
	Version    string         `json:"version"`
	Suite      string         `json:"suite"`
	Resumed    bool           `json:"resumed"`
	ALPN       string         `json:"alpn,omitempty"`
	ServerName string         `json:"server_name,omitempty"`
	Accepted   time.Time      `json:"accepted"`
	Over       *time.Time     `json:"over,omitempty"` // since when it is not live
	Read       Key            `json:"read"`
	Write      Key            `json:"write"`
}

// keys returns both directions.
func (e *Entry) keys() []*Key { return []*Key{&e.Read, &e.Write} }

// inDevice reports whether a device has, or had, one of the keys.
func (e *Entry) inDevice() bool { return e.Read.Place == Device || e.Write.Place == Device }

// Degraded reports whether one of the keys is.
func (e *Entry) Degraded() bool { return e.Read.Degraded != nil || e.Write.Degraded != nil }

// Application is the last application that got the socket; nil before the hand-over.
func (e *Entry) Application() *Hand {
	for _, h := range slices.Backward(e.Write.Hands) {
		if h.Role == "application" {
			return &h
		}
	}
	return nil
}

// Totals counts connections. The first group is of now, the second since the start.
type Totals struct {
	Live     int `json:"live"`
	Over     int `json:"over"` // closed or revoked, the socket still held
	Device   int `json:"device"`
	Mixed    int `json:"mixed"` // one key in a device, one in the kernel
	Software int `json:"kernel_software"`
	// UserSpace: a relay makes the records.
	UserSpace int `json:"user_space"`
	Unknown   int `json:"unknown"`
	Degraded  int `json:"degraded"`

	Ended        uint64 `json:"ended"`
	Revoked      uint64 `json:"revoked"`
	DegradedEver uint64 `json:"degraded_ever"`
	Unrecorded   uint64 `json:"unrecorded"` // the table was full
	// Keys that were changed, and connections that ended since nobody could follow a KeyUpdate.
	ReadKeys   uint64 `json:"read_keys_changed"`
	WriteKeys  uint64 `json:"write_keys_changed"`
	Unfollowed uint64 `json:"key_updates_unfollowed"`
}
