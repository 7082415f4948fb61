// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"time"

	"github.com/offloadd/offloadd/cmd/offloadd/internal/custody"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/ledger"
	"github.com/offloadd/offloadd/ktls"
)

// startCustody begins to follow sockets and links, and opens the control socket. It
// must come before the first connection.
func (d *daemon) startCustody() (end func(), err error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			cancel()
		}
	}()
	before, err := custody.WatchSockets(ctx, d.log, d.custody, forgetful{d.ledger}, d.guardian)
	if err != nil {
		return nil, err
	}
	if n := before.Keyed(); n > 0 {
		d.log.Info("kernel TLS sockets from before this start are not in the custody table", "sockets", n)
	}
	if err := custody.WatchLinks(ctx, d.log, d.custody); err != nil {
		return nil, err
	}
	c, err := listenControl(d)
	if err != nil {
		return nil, err
	}
	go c.run()
	return func() {
		c.close()
		cancel()
	}, nil
}

// forgetful ends the ledger's entries with their socket.
type forgetful struct{ *ledger.Ledger }

func (f forgetful) Destroyed(socket uint64) { f.Forget(socket) }

// Reconciled has nothing to do: the ledger asks the kernel which sockets live when it
// is swept.
func (f forgetful) Reconciled(*custody.Census) {}

// custodyEntry is what is known before the keys are installed, which destroys the
// states.
func (c *connection) custodyEntry(w *workerProcess, readEpoch, writeEpoch uint32) custody.Entry {
	hands := func() []custody.Hand {
		return []custody.Hand{
			{Role: "worker", PID: w.cmd.Process.Pid, UID: c.listener.daemon.pool.uid, ID: w.opener.ID().String(), Time: c.accepted},
			c.listener.daemon.hand(),
		}
	}
	return custody.Entry{
		Listener: c.listener.Name, Accepted: c.accepted,
		Version: c.facts.Version.String(), Suite: c.facts.Suite.String(), Resumed: c.facts.Resumed,
		ALPN: c.facts.ALPN, ServerName: c.facts.ServerName,
		Read:  custody.Key{Epoch: readEpoch, Hands: hands()},
		Write: custody.Key{Epoch: writeEpoch, Hands: hands()},
	}
}

// recordCustody enters the connection into the table. The daemon still has its
// descriptor.
func (c *connection) recordCustody(e custody.Entry, info ktls.Info, importBegan time.Time) {
	now := time.Now()
	for _, d := range []struct {
		key  *custody.Key
		mode ktls.Mode
	}{{&e.Read, info.RX}, {&e.Write, info.TX}} {
		d.key.Since = now
		switch d.mode {
		case ktls.HW:
			d.key.Place = custody.Device
		case ktls.SW:
			d.key.Place, d.key.Reason = custody.Software, info.Reason
		default:
			d.key.Place, d.key.Reason = custody.Unknown, info.Reason
		}
	}
	c.addCustody(e, importBegan)
}

func (c *connection) addCustody(e custody.Entry, importBegan time.Time) {
	// That the table is full it says itself.
	if err := c.listener.daemon.custody.Add(c.tcp, e, importBegan); err != nil && !errors.Is(err, custody.ErrFull) {
		c.log.Warn("the connection is not in the custody table", "error", err)
	}
}
