// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"syscall"
	"time"

	"github.com/offloadd/offloadd/blob/handoff"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/custody"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/ledger"
)

// errRelayed: what an application asks of a relayed connection that only the kernel's
// record layer has.
var errRelayed = errors.New("the records of this connection are made by a relay, which has its keys and follows its KeyUpdates: an end of file is close_notify, and ECONNRESET any other end; pass the descriptor on yourself")

// relayed gives the keys to a relay, since the kernel cannot have them, for this reason.
// From the message to the relay on nobody else has them, and whatever fails ends the
// connection.
func (c *connection) relayed(w *workerProcess, r *reply, entered *ledger.Entered, reason error) (step, error) {
	start := time.Now()
	read, write := entered.Take()
	entry := c.custodyEntry(w, read.Epoch, write.Epoch)
	plain, p, err := c.listener.daemon.relays.relay(c, read, write)
	if err != nil {
		return stepEntered, err
	}
	c.plain = plain
	hand := custody.Hand{Role: "relay", PID: p.cmd.Process.Pid, UID: c.listener.daemon.pool.uid, ID: p.sealer.ID().String(), Time: time.Now()}
	for _, k := range []*custody.Key{&entry.Read, &entry.Write} {
		k.Place, k.Since, k.Reason, k.Hands = custody.UserSpace, hand.Time, reason.Error(), append(k.Hands, hand)
	}
	c.addCustody(entry, start)
	c.listener.daemon.metrics.relayed(c.facts, reason)
	c.log.Info("relayed", append(c.agreed(), "path", "user space", "path_reason", reason.Error(),
		"worker_pid", w.cmd.Process.Pid, "relay_pid", p.cmd.Process.Pid,
		"open_us", r.openTime.Microseconds(), "enter_us", r.enterTime.Microseconds(),
		"accept_to_relayed_us", time.Since(c.accepted).Microseconds())...)
	c.listener.daemon.guardian.settled(c.cookie)
	return stepInstalled, nil
}

// handOver is the message that gives the connection to an application, and the descriptor.
func (c *connection) handOver() (*handoff.Message, syscall.Conn, error) {
	if c.plain == nil {
		return &handoff.Message{Type: handoff.Connection, Cookie: c.cookie, Facts: c.facts}, c.tcp, nil
	}
	cookie, err := handoff.Cookie(c.plain)
	return handoff.NewRelayed(cookie, c.cookie, c.facts), c.plain, err
}

// closePlain closes our descriptor of the plain end, if there is one.
func (c *connection) closePlain() {
	if c.plain != nil {
		c.plain.Close() // an error means that it is closed
	}
}

// notKept is why nothing can be done for an application with a connection of which nothing
// is kept.
func notKept(file *os.File, err error) error {
	if errors.Is(err, custody.ErrNotKept) && isPlainEnd(file) {
		return errRelayed
	}
	return err
}
