// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/offloadd/offloadd/blob"
)

const (
	questionSize = 1 // body of Asked
	answerSize   = 3 // what the reason in the body of Answered comes after
)

// Flags of a question and of an answer (PROTOCOL.md, section 7).
const (
	flagMet = 1 << iota
	flagUpdated
	flagRequested
	flagQuiet
	flagUpdate
	flagRequest

	knownQuestion = 1<<iota - 1
)

const (
	flagOwed    = 1
	flagRefused = 2
)

func questionFlags(q *blob.Question) []struct {
	is   *bool
	flag byte
} {
	return []struct {
		is   *bool
		flag byte
	}{{&q.Met, flagMet}, {&q.Updated, flagUpdated}, {&q.Requested, flagRequested}, {&q.Quiet, flagQuiet},
		{&q.Update, flagUpdate}, {&q.Request, flagRequest}}
}

// NewAsked makes the message of a question about a connection.
func NewAsked(cookie uint64, q blob.Question) *Message {
	var b byte
	for _, f := range questionFlags(&q) {
		if *f.is {
			b |= f.flag
		}
	}
	return &Message{Type: Asked, Cookie: cookie, Body: []byte{b}}
}

// Question reads the body of Asked.
func (m *Message) Question() (q blob.Question, err error) {
	if m.Body[0] > knownQuestion {
		return q, fmt.Errorf("%w: question with flags %#x", ErrMalformed, m.Body[0])
	}
	for _, f := range questionFlags(&q) {
		*f.is = m.Body[0]&f.flag != 0
	}
	if !q.Valid() {
		return q, fmt.Errorf("%w: a question that contradicts itself, flags %#x", ErrMalformed, m.Body[0])
	}
	return q, nil
}

// NewAnswered makes the message of an answer.
func NewAnswered(cookie uint64, a blob.Answer) *Message {
	var flags byte
	if a.Owed {
		flags |= flagOwed
	}
	if a.Refused {
		flags |= flagRefused
	}
	reason := a.Reason[:min(len(a.Reason), shapes[Answered].body-answerSize)]
	return &Message{Type: Answered, Cookie: cookie, Body: append([]byte{byte(a.Verdict), flags, a.Alert}, reason...)}
}

// Answer reads the body of Answered.
func (m *Message) Answer() (blob.Answer, error) {
	a := blob.Answer{
		Verdict: blob.Verdict(m.Body[0]), Owed: m.Body[1]&flagOwed != 0, Refused: m.Body[1]&flagRefused != 0,
		Alert: m.Body[2], Reason: strings.ToValidUTF8(string(m.Body[answerSize:]), "?"),
	}
	if a.Verdict > blob.Ended || m.Body[1] > flagOwed|flagRefused {
		return a, fmt.Errorf("%w: answer with verdict %d, flags %#x", ErrMalformed, m.Body[0], m.Body[1])
	}
	return a, nil
}

// ErrUnanswered: the daemon went away, or is stuck. Nobody else can follow what the peer
// does with its keys, so the connection is at its end.
var ErrUnanswered = errors.New("the daemon gave no answer about the connection")

// answerTime is how long an answer may take.
const answerTime = 10 * time.Second

// Ask asks the daemon that has the custody of a connection. ktls.Conn does that by itself
// where it must. It waits for the answer, but not for ever: ErrUnanswered. One question
// about one connection may be under way at a time.
func (l *Listener) Ask(s *Socket, q blob.Question) (blob.Answer, error) {
	m, err := l.ask(NewAsked(s.Cookie, q), s, answerTime)
	if errors.Is(err, ErrNoAnswer) {
		err = fmt.Errorf("%w: %w", ErrUnanswered, err)
	}
	if err != nil {
		return blob.Answer{}, err
	}
	return m.Answer()
}

// TLSAsk is [Listener.Ask] of the listener that the connection came from.
func (s *Socket) TLSAsk(q blob.Question) (blob.Answer, error) { return s.listener.Ask(s, q) }
