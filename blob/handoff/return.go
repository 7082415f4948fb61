// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

const (
	accountSize = 16 // body of Returned
	unreadSize  = 4  // what the reason in the body of Taken comes after
)

// ErrNoAnswer: the daemon went away before it took the connection back. The
// connection is the caller's as before.
var ErrNoAnswer = errors.New("the daemon ended before it took the connection back")

// NotTakenError: the daemon does not take a connection back now. It is the caller's as
// before.
type NotTakenError struct {
	Reason string
	// Unread is how many bytes of a record that was read in part are left: when they are
	// read, and only they, it can be tried again. 0 if that is not what is in the way.
	Unread int
}

func (e *NotTakenError) Error() string {
	return "the daemon did not take the connection back: " + e.Reason
}

// Return gives a live connection back to the daemon, which gives it to the next
// application of its listener. read and written are what was read from it and written
// to it since Accept returned it, in bytes of content: ktls.Conn.Release tells them,
// and sees that nothing is under way.
//
// After success the caller closes its descriptor, and uses it for nothing else; closing
// sends nothing, since the daemon has another. After NotTakenError and ErrNoAnswer the
// connection goes on as before. After net.ErrClosed, that is if Close was called
// meanwhile, nobody knows, and the connection must be closed.
func (l *Listener) Return(s *Socket, read, written uint64) error {
	body := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, read), written)
	m, err := l.ask(&Message{Type: Returned, Cookie: s.Cookie, Body: body}, s, 0)
	if err != nil {
		return err
	}
	return refusal(m.Body)
}

// ask sends a message about a connection and waits for the answer, for some time if
// patience is not 0.
func (l *Listener) ask(m *Message, s *Socket, patience time.Duration) (*Message, error) {
	answer := make(chan *Message, 1)
	conn, err := l.expectAnswer(s.Cookie, answer)
	if err != nil {
		return nil, err
	}
	if err := conn.Send(m, s); err != nil {
		l.forget(s.Cookie)
		return nil, fmt.Errorf("%w: %v", ErrNoAnswer, err)
	}
	got, err := l.await(conn, answer, patience)
	switch {
	case err != nil:
		l.forget(s.Cookie)
		return nil, err
	case got == nil && l.closed.Err() != nil:
		return nil, net.ErrClosed
	case got == nil:
		return nil, ErrNoAnswer
	case (m.Type == Returned) != (got.Type == Taken):
		return nil, fmt.Errorf("%w: %v to %v", ErrMalformed, got.Type, m.Type)
	}
	return got, nil
}

// await waits for the answer; if nobody else receives, it does.
func (l *Listener) await(conn *Conn, answer <-chan *Message, patience time.Duration) (*Message, error) {
	var late <-chan time.Time
	var deadline time.Time
	if patience > 0 {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		late, deadline = timer.C, time.Now().Add(patience)
	}
	for {
		select {
		case m := <-answer:
			return m, nil
		case <-late:
			return nil, fmt.Errorf("%w within %v", ErrNoAnswer, patience)
		case l.receiving <- struct{}{}:
		}
		select {
		case m := <-answer: // who had the token before had it
			<-l.receiving
			return m, nil
		default:
		}
		// Without the channel, dropped by now, the answer is nil.
		conn.SetReadDeadline(deadline)
		l.receive(conn)
		conn.SetReadDeadline(time.Time{})
		<-l.receiving
	}
}

// forget is for who waits no longer.
func (l *Listener) forget(cookie uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.answers, cookie)
}

// expectAnswer enters who waits for the answer about a connection, and returns the
// channel to ask on.
func (l *Listener) expectAnswer(cookie uint64, answer chan *Message) (*Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed.Err() != nil:
		return nil, net.ErrClosed
	case l.conn == nil:
		return nil, fmt.Errorf("%w: there is none now", ErrNoAnswer)
	case l.answers[cookie] != nil:
		return nil, errors.New("the daemon has been asked about the connection already, or it is being given back")
	}
	l.answers[cookie] = answer
	return l.conn, nil
}

// answered passes an answer on to who waits for it.
func (l *Listener) answered(m *Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if answer := l.answers[m.Cookie]; answer != nil {
		delete(l.answers, m.Cookie)
		answer <- m
	}
}

// unanswered tells all who wait that no answer will come. The caller holds mu.
func (l *Listener) unanswered() {
	for cookie, answer := range l.answers {
		delete(l.answers, cookie)
		answer <- nil
	}
}

// Account reads the body of Returned.
func (m *Message) Account() (read, written uint64) {
	return binary.BigEndian.Uint64(m.Body), binary.BigEndian.Uint64(m.Body[8:])
}

// NewTaken makes the answer about a connection: it is taken, or why not.
func NewTaken(cookie uint64, refused *NotTakenError) *Message {
	m := &Message{Type: Taken, Cookie: cookie}
	if refused != nil {
		reason := refused.Reason[:min(len(refused.Reason), shapes[Taken].body-unreadSize)]
		m.Body = append(binary.BigEndian.AppendUint32(nil, uint32(refused.Unread)), reason...)
	}
	return m
}

func refusal(body []byte) error {
	if len(body) == 0 {
		return nil
	}
	return &NotTakenError{strings.ToValidUTF8(string(body[unreadSize:]), "?"), int(binary.BigEndian.Uint32(body))}
}
