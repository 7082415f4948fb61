// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"errors"
	"fmt"
	"time"

	"github.com/offloadd/offloadd/blob"
)

// Errors of [Open] and of entering a key.
var (
	// ErrReplay: the key was imported before. The error is a [*Replay].
	ErrReplay = errors.New("replay")
	// ErrHeld: another process has the ledger open.
	ErrHeld = errors.New("another daemon holds the ledger")
	// ErrCorrupt: the file is no ledger, or was changed by somebody else.
	ErrCorrupt = errors.New("the ledger is corrupt")
	// ErrForeign: the file is of another network namespace, or somebody else may
	// write to it.
	ErrForeign = errors.New("not this daemon's ledger")
	// ErrFull: so many keys of living sockets that no more are taken.
	ErrFull = errors.New("the ledger is full")
	// ErrUnwritten: the entry could not be written, so the key must not be installed.
	ErrUnwritten = errors.New("the ledger could not be written")
	// ErrUnknown: there is no entry to raise.
	ErrUnknown = errors.New("not in the ledger")
)

// Reason says what makes an import a replay.
type Reason string

// The four ways.
const (
	SameEpoch    Reason = "this socket, direction and epoch has been imported"
	EarlierEpoch Reason = "a later epoch of this socket and direction has been imported"
	LowerSeq     Reason = "the sequence number is below the one reached"
	SameKey      Reason = "the same key has been imported"
)

// Line is what the ledger says of one key: everything but the key.
type Line struct {
	Cookie    uint64
	Role      blob.Role
	Direction blob.Direction
	Epoch     uint32
	Seq       uint64
	// Instance is the start of the daemon that entered it, at Entered.
	Instance blob.Instance
	Entered  time.Time
}

func (l *Line) String() string {
	return fmt.Sprintf("socket %d, %v %v key, epoch %d, sequence number %d", l.Cookie, l.Role, l.Direction, l.Epoch, l.Seq)
}

// Replay is the refusal of a key: what was presented, and the entry that speaks
// against it.
type Replay struct {
	Reason           Reason
	Presented, Found Line
}

func (r *Replay) Error() string {
	return fmt.Sprintf("%v: %s: presented for %v; entered for %v, at %s by instance %v",
		ErrReplay, r.Reason, &r.Presented, &r.Found, r.Found.Entered.UTC().Format("2006-01-02T15:04:05.000Z"), r.Found.Instance)
}

// Is makes a Replay an ErrReplay.
func (r *Replay) Is(target error) bool { return target == ErrReplay }
