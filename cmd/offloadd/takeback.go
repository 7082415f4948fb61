// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/offloadd/offloadd/blob/handoff"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/custody"
	"github.com/offloadd/offloadd/ktls"
)

// takeBack takes a live connection back from an application and gives it to the next
// one. Up to the answer it is the application's: whatever fails before leaves it there.
// From the answer on it is the daemon's.
func (l *listener) takeBack(from *handoff.Conn, m *handoff.Message, file *os.File) {
	log := l.log.With("socket", m.Cookie, "application_pid", from.Peer().PID)
	c, err := l.regain(m, file)
	// The last one may be over: it was that of a connection.
	from.SetWriteDeadline(time.Now().Add(time.Duration(l.daemon.config.ApplicationTimeout)))
	if err != nil {
		log.Info("connection not taken back", "error", err, "unread", notTaken(err).Unread)
		if err := from.Send(handoff.NewTaken(m.Cookie, notTaken(err)), nil); err != nil {
			l.applications.remove(from, err) // so that it does not wait for the answer
		}
		return
	}
	defer c.tcp.Close()
	if err := from.Send(handoff.NewTaken(m.Cookie, nil), nil); err != nil {
		log.Warn("connection not taken back", "error", err)
		l.applications.remove(from, err) // so that it does not wait for the answer
		return
	}
	l.daemon.custody.Pass(m.Cookie, l.daemon.hand())
	log.Info("connection taken back", "application_uid", from.Peer().UID)
	c.deliver(context.Background(), from)
}

// regain proves that the connection is one of ours and at a quiet point. The caller
// closes its socket.
func (l *listener) regain(m *handoff.Message, file *os.File) (*connection, error) {
	kept, err := l.daemon.borrow(m.Cookie)
	if err != nil {
		err = notKept(file, err)
		file.Close()
		return nil, err
	}
	defer l.daemon.custody.Keep(m.Cookie, kept)
	tcp, err := tcpOf(file)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), time.Duration(l.daemon.config.ApplicationTimeout),
		fmt.Errorf("waited for %v", time.Duration(l.daemon.config.ApplicationTimeout)))
	defer cancel()
	read, written := m.Account()
	attendant := kept.attend(l.daemon.ledger)
	defer kept.park(attendant)
	if _, err := attendant.Regain(ctx, tcp, ktls.Account{Read: read, Written: written}); err != nil {
		tcp.Close()
		return nil, err
	}
	return &connection{listener: l, tcp: tcp, cookie: m.Cookie, facts: kept.handshakeFacts(), accepted: time.Unix(0, kept.accepted),
		log: l.log.With("socket", m.Cookie)}, nil
}

// borrow takes out what is kept of a connection, to be put back.
func (d *daemon) borrow(cookie uint64) (*keptConnection, error) {
	kept, err := d.custody.Borrow(cookie)
	if err != nil {
		return nil, err
	}
	return kept.(*keptConnection), nil
}

// tcpOf makes a connection of a received descriptor, and closes the file.
func tcpOf(file *os.File) (*net.TCPConn, error) {
	defer file.Close()
	c, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", handoff.ErrDescriptor, err)
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("%w: a %T", handoff.ErrDescriptor, c)
	}
	return tcp, nil
}

// notTaken is the reason for the application.
func notTaken(err error) *handoff.NotTakenError {
	r := &handoff.NotTakenError{Reason: err.Error()}
	var notQuiet *ktls.NotQuietError
	if errors.As(err, &notQuiet) {
		r.Unread = notQuiet.Unread
	}
	return r
}

// hand is this daemon's.
func (d *daemon) hand() custody.Hand {
	return custody.Hand{Role: "daemon", PID: os.Getpid(), UID: uint32(os.Getuid()), ID: d.key.Instance().String(), Time: time.Now()}
}
