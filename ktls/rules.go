// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/offloadd/offloadd/blob"
)

// Rules is what Conn makes of the records of a peer that it does not just hand on, for
// the record layer beside the kernel's, package userspace. That both have the same rules
// and the same errors is why one can stand in for the other.
type Rules struct{ reader controlReader }

// NewRules returns the rules for the records of one connection, whose read key can
// change if its version knows that.
func NewRules(version blob.Version) *Rules {
	return &Rules{controlReader{version: version, follows: version == blob.TLS13}}
}

// Ending is why reading is over.
type Ending struct {
	Err error
	// Alert tells the peer so; close_notify, 0, means that nothing is to be sent.
	Alert uint8
}

func (e *ending) exported() *Ending {
	if e == nil {
		return nil
	}
	return &Ending{Err: e.err, Alert: e.alert}
}

// Data takes a record of application data. nil: its content is the application's.
func (r *Rules) Data() *Ending { return r.reader.data().exported() }

// Control takes a whole record of another type. owed says that an answer to a KeyUpdate
// from before is still to be sent. If the record ends with a KeyUpdate, the next one is
// under another key, and requested says that the peer wants one of ours.
func (r *Rules) Control(contentType uint8, content []byte, owed bool) (updated, requested bool, end *Ending) {
	if end := r.reader.control(contentType, content); end != nil {
		return false, false, end.exported()
	}
	u := r.reader.update
	if u == nil {
		return false, false, nil
	}
	r.reader.update = nil
	if end := r.reader.countUpdate(u, !owed); end != nil {
		return false, false, end.exported()
	}
	return true, u.requested, nil
}

// RecordLimit returns how many records one key may protect that this side writes, with
// some to spare for the alert at the end.
func RecordLimit(aead blob.AEAD) uint64 { return newRecordCounter(aead, maxRecordContent).limit }

// CheckStates says why a record layer cannot go on from two states on a socket: they are
// no pair, or a device has a key, or they were made for another socket, or the kernel has
// keys of this one. Unlike Install it takes a Multipath TCP socket.
func CheckStates(c syscall.Conn, read, write *blob.State) error {
	if err := checkMaterial(read, write); err != nil {
		return err
	}
	return control(c, func(fd int) error {
		n, err := cookie(fd)
		if err != nil {
			return err
		}
		if n != read.Cookie {
			return fmt.Errorf("%w: made for socket %d, not for %d", blob.ErrCookie, read.Cookie, n)
		}
		for _, option := range []int{optRX, optTX} {
			_, err := keyHeader(fd, option)
			if err = explain(opAskKey, "ask for "+optionName(option), err); err == nil {
				return fmt.Errorf("%s: %w", optionName(option), ErrInstalled)
			} else if !errors.Is(err, ErrNoKeys) {
				return err
			}
		}
		return nil
	})
}

// TryNoPad tries whether [Settings] may have NoPad: the error wraps ErrNotSupported if
// this kernel cannot, or says what it does wrong.
func TryNoPad() error {
	if err := tryNoPad(); err != nil {
		return err
	}
	return tryNoPadRetry()
}

// TryRekey tries what [Probe] tries for changing keys: the error wraps ErrNotSupported if
// the kernel takes one key per direction.
func TryRekey() error { return tryRekey(optTX) } // which changes the other end's TLS_RX as well

// TCPConn returns c if it is a *net.TCPConn, or the one that is below it as a method
// NetConn tells.
func TCPConn(c net.Conn) (*net.TCPConn, error) { return tcpConn(c) }
