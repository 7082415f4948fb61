// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"context"
	"fmt"
	"syscall"
)

// account is what went through this Conn.
func (c *Conn) account() Account { return Account{c.in.bytes, c.out.counter.bytes} }

// Release gives the connection up to whoever has its custody: that one is told the
// account of this Conn by give, has the descriptor, and calls [Custody.Regain]. When
// give returns nil, the connection belongs to the other, and this Conn only serves
// NetConn and Close, which closes the descriptor and sends nothing. If give fails, or
// a Read or Write is under way, or the connection has ended, nothing has changed.
func (c *Conn) Release(give func(Account) error) error {
	if !c.out.TryLock() {
		return &NotQuietError{What: "a Write is under way"}
	}
	defer c.out.Unlock()
	if !c.in.TryLock() {
		return &NotQuietError{What: "a Read is under way"}
	}
	defer c.in.Unlock()
	if err := c.checkQuiet(); err != nil {
		return err
	}
	if c.out.owed.Load() {
		return &NotQuietError{What: "the peer waits for a KeyUpdate, which goes before the next Write, or by UpdateKey"}
	}
	if err := give(c.account()); err != nil {
		return err
	}
	c.moved()
	return nil
}

// Regain takes a live connection back from a process that used it and gave it up. The
// account is what that process says it read and wrote since custody was taken, or
// since the last Regain. Keys and sequence numbers stay in the kernel as they are;
// Regain proves by the kernel's numbers that the connection is at a quiet point (see
// [Conn.Export], also for ctx and *NotQuietError), so that the next owner begins where
// this one ended. If it fails, custody is as it was.
//
// An account that is wrong makes it fail, or, where that does not show, says of the
// next owner's bytes what is wrong of these: no key or byte depends on it.
func (custody *Custody) Regain(ctx context.Context, c syscall.Conn, a Account) (Info, error) {
	var info Info
	err := custody.quiet(ctx, c, a, func(fd int) error {
		if err := custody.move(fd, a); err != nil {
			return err
		}
		info = infoOf(fd)
		return nil
	})
	if err != nil {
		return Info{}, fmt.Errorf("regain: %w", err)
	}
	return info, nil
}

// move sets the marks to where the account ends. That is computed, not read: TLS may
// have taken a part of the next record from TCP already.
func (custody *Custody) move(fd int, a Account) error {
	sent, err := nextRecord(fd, optTX, custody.suite)
	if err != nil {
		return err
	}
	received, err := nextRecord(fd, optRX, custody.suite)
	if err != nil {
		return err
	}
	overhead := recordOverhead(custody.suite)
	custody.sent = custody.sent.after(sent, a.Written, overhead)
	custody.received = custody.received.after(received, a.Read, overhead)
	return nil
}

// after is the mark before record number seq, when records in between had so many bytes
// of content.
func (m mark) after(seq, content, overhead uint64) mark {
	return mark{seq, m.tcp + content + (seq-m.seq)*overhead}
}
