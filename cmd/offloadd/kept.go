// SPDX-License-Identifier: Apache-2.0

package main

import (
	"time"
	"unique"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/custody"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/ledger"
	"github.com/offloadd/offloadd/ktls"
)

// keptConnection is what the daemon keeps of a connection that an application has, to
// be able to take it back and to change its keys: no key that is in use, and no descriptor.
// There may be hundreds of thousands, so it is as small as it can be.
type keptConnection struct {
	parked ktls.Parked
	// attendant is nil, unless it cannot be parked.
	attendant *ktls.Attendant
	facts     unique.Handle[commonFacts]
	// certificates are the peer's, which hardly another connection has.
	certificates [][]byte
	accepted     int64 // nanoseconds of Unix
}

// commonFacts are those facts of a handshake that many connections have in common.
type commonFacts struct {
	role             blob.Role
	version          blob.Version
	suite            blob.CipherSuite
	group            uint16
	resumed          bool
	alpn, serverName string
	verified         bool
}

func keep(a *ktls.Attendant, f *blob.Facts, accepted time.Time) *keptConnection {
	k := &keptConnection{
		facts:        unique.Make(commonFacts{f.Role, f.Version, f.Suite, f.Group, f.Resumed, f.ALPN, f.ServerName, f.PeerVerified}),
		certificates: f.PeerCertificates, accepted: accepted.UnixNano(),
	}
	k.park(a)
	return k
}

// park puts the attendant to rest.
func (k *keptConnection) park(a *ktls.Attendant) {
	if !a.Park(&k.parked) {
		k.attendant = a
	}
}

// attend is the way back, for who has borrowed the connection.
func (k *keptConnection) attend(l *ledger.Ledger) *ktls.Attendant {
	if a := k.attendant; a != nil {
		k.attendant = nil
		return a
	}
	return k.parked.Attend(l.EnterNext)
}

func (k *keptConnection) handshakeFacts() *blob.Facts {
	f := k.facts.Value()
	return &blob.Facts{Role: f.role, Version: f.version, Suite: f.suite, Group: f.group, Resumed: f.resumed,
		ALPN: f.alpn, ServerName: f.serverName, PeerCertificates: k.certificates, PeerVerified: f.verified}
}

// repack moves what the daemon has of idle connections together, so that the memory in
// between goes back to the system.
func (d *daemon) repack() {
	d.ledger.Repack()
	d.custody.Repack(func(most int) func(custody.Kept) custody.Kept {
		all := make([]keptConnection, 0, most)
		return func(k custody.Kept) custody.Kept {
			old := k.(*keptConnection)
			all = append(all, *old)
			*old = keptConnection{} // with the secrets, which are moved
			return &all[len(all)-1]
		}
	})
}

func (k *keptConnection) Destroy() {
	k.parked.Destroy()
	if k.attendant != nil {
		k.attendant.Destroy()
	}
}
