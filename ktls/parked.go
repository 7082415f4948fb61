// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/offloadd/offloadd/blob"
)

// Parked is an Attendant at rest: nothing but what it needs to go on, in one piece of
// memory without pointers. Whoever attends to many connections, most of which are idle,
// keeps them so.
//
// It holds secrets, and has the same owner that the Attendant had.
type Parked struct {
	version           blob.Version
	role              blob.Role
	suite             blob.CipherSuite
	follows, owed     bool
	custody           bool // there is one; else the fields of Custody mean nothing
	cookie            uint64
	readEpoch         uint32
	writeEpoch        uint32
	nextRead          parkedSecret
	nextWrite         parkedSecret
	sent, received    mark
	own               Account
	read              uint64
	useless           int32
	updates, requests int32
}

// parkedSecret is as long as the longest traffic secret: that of SHA-384.
type parkedSecret struct {
	size  uint8
	bytes [48]byte
}

// park moves a secret, which fits.
func (p *parkedSecret) park(s blob.Secret) {
	p.size = uint8(copy(p.bytes[:], s.Bytes()))
	s.Destroy()
}

// secret moves it back.
func (p *parkedSecret) secret() blob.Secret {
	if p.size == 0 {
		return blob.Secret{}
	}
	s := blob.NewSecret(append([]byte(nil), p.bytes[:p.size]...))
	*p = parkedSecret{}
	return s
}

// Park puts the Attendant to rest in p, and is of no use afterwards. It reports whether it
// could: not in the middle of a message of the peer. It writes to where p stays, so that
// no copy of a secret is left on the way.
func (a *Attendant) Park(p *Parked) bool {
	r, c := &a.control, a.custody
	if len(r.handshake)+len(r.alert) > 0 || r.update != nil ||
		c != nil && max(c.nextRead.Len(), c.nextWrite.Len()) > len(p.nextRead.bytes) {
		return false
	}
	*p = Parked{
		version: r.version, follows: r.follows, owed: a.owed, own: a.own, read: a.read,
		useless: int32(r.useless), updates: int32(r.updates), requests: int32(r.requests),
	}
	if c != nil {
		p.custody, p.role, p.suite, p.cookie = true, c.role, c.suite, c.cookie
		p.readEpoch, p.writeEpoch, p.sent, p.received = c.readEpoch, c.writeEpoch, c.sent, c.received
		p.nextRead.park(c.nextRead)
		p.nextWrite.park(c.nextWrite)
	}
	*a = Attendant{}
	return true
}

// Attend is the way back; enter is that of NewAttendant. The secrets leave p.
func (p *Parked) Attend(enter func(*blob.State) error) *Attendant {
	a := &Attendant{
		control: controlReader{version: p.version, follows: p.follows, useless: int(p.useless),
			updates: int(p.updates), requests: int(p.requests)},
		enter: enter, owed: p.owed, own: p.own, read: p.read,
	}
	if p.custody {
		a.custody = &Custody{role: p.role, suite: p.suite, cookie: p.cookie, readEpoch: p.readEpoch, writeEpoch: p.writeEpoch,
			nextRead: p.nextRead.secret(), nextWrite: p.nextWrite.secret(), sent: p.sent, received: p.received}
	}
	return a
}

// Destroy overwrites the secrets. It may be called more than once.
func (p *Parked) Destroy() { p.nextRead, p.nextWrite = parkedSecret{}, parkedSecret{} }

// String names the connection without telling a secret.
func (p Parked) String() string {
	if !p.custody {
		return "parked attendant with no custody"
	}
	return fmt.Sprintf("parked attendant of socket %d, %v, %v, epochs %d and %d", p.cookie, p.role, p.suite, p.readEpoch, p.writeEpoch)
}

// Format writes String for every verb.
func (p Parked) Format(f fmt.State, _ rune) { io.WriteString(f, p.String()) }

// LogValue is String.
func (p Parked) LogValue() slog.Value { return slog.StringValue(p.String()) }

// MarshalText is String: it has no textual form.
func (p Parked) MarshalText() ([]byte, error) { return []byte(p.String()), nil }
