// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/blob/handoff"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/custody"
	"github.com/offloadd/offloadd/ktls"
)

// attend answers what an application asks about a connection that it has.
func (l *listener) attend(from *handoff.Conn, m *handoff.Message, file *os.File) {
	log := l.log.With("socket", m.Cookie, "application_pid", from.Peer().PID)
	answer, err := l.answer(m, file)
	l.daemon.metrics.answered(answer)
	if errors.Is(err, ktls.ErrKeyUpdate) {
		l.daemon.custody.Unfollowed()
	}
	switch answer.Verdict {
	case blob.Ended:
		log.Info("connection ended after the handshake", "alert", answer.Alert, "error", err)
	case blob.Alerted:
		log.Info("connection ended after the handshake", "peer_alert", answer.Alert, "reason", answer.Reason)
	}
	from.SetWriteDeadline(time.Now().Add(time.Duration(l.daemon.config.ApplicationTimeout)))
	if err := from.Send(handoff.NewAnswered(m.Cookie, answer), nil); err != nil {
		log.Warn("answer not sent", "error", err)
		l.applications.remove(from, err) // so that it does not wait for the answer
	}
}

// answer does what the question asks for. The error is the reason of the verdict Ended.
func (l *listener) answer(m *handoff.Message, file *os.File) (blob.Answer, error) {
	refused := func(err error) (blob.Answer, error) {
		return blob.Answer{Verdict: blob.Ended, Reason: err.Error()}, err
	}
	// As it is: a net.Conn of it would be non-blocking, and so would the application's own descriptor, behind its back.
	defer file.Close()
	q, err := m.Question()
	if err != nil {
		return refused(err)
	}
	kept, err := l.daemon.borrow(m.Cookie)
	switch {
	case errors.Is(err, custody.ErrNotKept) && isPlainEnd(file):
		return refused(errRelayed)
	case errors.Is(err, custody.ErrNotKept):
		attendant, err := attendStranger(file)
		if err != nil {
			return refused(err)
		}
		return attendant.Answer(file, q)
	case err != nil:
		return refused(err)
	}
	defer l.daemon.custody.Keep(m.Cookie, kept)
	attendant := kept.attend(l.daemon.ledger)
	defer kept.park(attendant)
	answer, err := attendant.Answer(file, q)
	read, write := attendant.Epochs()
	l.daemon.custody.Rekeyed(m.Cookie, read, write)
	return answer, err
}

// attendStranger is for a connection of which nothing is kept, say of an earlier start:
// what a record means can be told all the same, and a KeyUpdate ends it.
func attendStranger(file *os.File) (*ktls.Attendant, error) {
	info, err := ktls.InfoOf(file)
	if err != nil {
		return nil, err
	}
	if info.RX == ktls.Base {
		return nil, ktls.ErrNoKeys
	}
	return ktls.NewAttendant(file, nil, info.Version, nil)
}
