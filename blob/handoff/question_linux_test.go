// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
)

// TestAQuestionArrivesAsItWasAsked: each that makes sense; the others are refused.
func TestAQuestionArrivesAsItWasAsked(t *testing.T) {
	valid := 0
	for flags := range 256 {
		m := &Message{Type: Asked, Cookie: 1, Body: []byte{byte(flags)}}
		q, err := m.Question()
		if err == nil {
			valid++
			if again := NewAsked(1, q); again.Body[0] != byte(flags) {
				t.Errorf("flags %#x become %#x", flags, again.Body[0])
			}
		} else if !errors.Is(err, ErrMalformed) {
			t.Errorf("flags %#x: %v", flags, err)
		}
	}
	// None, Met, Updated, Updated with Requested; each without Quiet, with it, and then
	// with Update, and with Request.
	if valid != 4*4 {
		t.Errorf("%d questions make sense, want 16", valid)
	}
}

func TestAnAnswerArrivesAsItWasGiven(t *testing.T) {
	for _, a := range []blob.Answer{
		{},
		{Owed: true},
		{Refused: true, Reason: "because"},
		{Verdict: blob.EndOfStream, Owed: true},
		{Verdict: blob.Alerted, Alert: 40, Reason: "handshake_failure"},
		{Verdict: blob.Ended, Alert: 255, Reason: strings.Repeat("x", 1021)},
	} {
		b, err := NewAnswered(7, a).encode()
		if err != nil {
			t.Fatal(err)
		}
		m, err := decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := m.Answer(); err != nil || got != a {
			t.Errorf("%+v, %v; want %+v", got, err, a)
		}
	}
	long, err := NewAnswered(7, blob.Answer{Reason: strings.Repeat("x", 5000)}).encode()
	if err != nil || len(long) != headSize+shapes[Answered].body {
		t.Errorf("%d bytes, %v", len(long), err)
	}
	for _, body := range [][]byte{{4, 0, 0}, {0, 4, 0}} {
		m := &Message{Type: Answered, Cookie: 1, Body: body}
		if _, err := m.Answer(); !errors.Is(err, ErrMalformed) {
			t.Errorf("%v: %v, want ErrMalformed", body, err)
		}
	}
	for _, m := range []*Message{{Type: Answered, Cookie: 1, Body: []byte{0, 0}}, {Type: Asked, Cookie: 1}, {Type: Asked, Cookie: 1, Body: []byte{1, 1}}} {
		if _, err := m.encode(); !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTooLarge) {
			t.Errorf("%v with %d bytes: %v, want ErrMalformed", m.Type, len(m.Body), err)
		}
	}
}

// question is what the daemon gets of one.
func (r *returner) question(t *testing.T) blob.Question {
	t.Helper()
	m, file, err := r.daemon.Receive()
	if err != nil || m.Type != Asked || m.Cookie != r.sock.Cookie {
		t.Fatal(m, err)
	}
	file.Close()
	q, err := m.Question()
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// TestAnAnswerComesAlsoWhileNobodyAccepts: and connections that come meanwhile are kept,
// in their order.
func TestAnAnswerComesAlsoWhileNobodyAccepts(t *testing.T) {
	r := newReturner(t)
	want := blob.Answer{Verdict: blob.Alerted, Alert: 42, Reason: "bad"}
	asked := make(chan error, 1)
	go func() {
		got, err := r.sock.TLSAsk(blob.Question{Met: true, Quiet: true})
		if err == nil && got != want {
			err = fmt.Errorf("%+v, want %+v", got, want)
		}
		asked <- err
	}()
	if q := r.question(t); q != (blob.Question{Met: true, Quiet: true}) {
		t.Errorf("%+v", q)
	}
	if _, err := r.sock.TLSAsk(blob.Question{}); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("a second question meanwhile: %v", err)
	}
	var cookies []uint64
	for range 3 {
		_, server := tcpPair(t)
		cookies = append(cookies, mustCookie(t, server))
		if err := r.daemon.Send(&Message{Type: Connection, Cookie: cookies[len(cookies)-1], Facts: testFacts()}, server); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.daemon.Send(NewAnswered(r.sock.Cookie, want), nil); err != nil {
		t.Fatal(err)
	}
	if err := <-asked; err != nil {
		t.Fatal(err)
	}
	for _, cookie := range cookies {
		c, err := r.l.Accept()
		if err != nil || c.(*Socket).Cookie != cookie {
			t.Fatalf("socket %+v, %v; want %d", c, err, cookie)
		}
		c.Close()
	}
}

// TestConnectionsAndAnswersFindTheirWay: several accept, and ask, at once.
func TestConnectionsAndAnswersFindTheirWay(t *testing.T) {
	r := newReturner(t)
	const rounds = 50
	accepted := make(chan net.Conn, rounds)
	for range 3 {
		go func() {
			for {
				c, err := r.l.Accept()
				if err != nil {
					return
				}
				accepted <- c
			}
		}()
	}
	asked := make(chan error, 1)
	go func() {
		for range rounds {
			if _, err := r.sock.TLSAsk(blob.Question{Updated: true}); err != nil {
				asked <- err
				return
			}
		}
		asked <- nil
	}()
	for range rounds {
		_, server := tcpPair(t)
		if err := r.daemon.Send(&Message{Type: Connection, Cookie: mustCookie(t, server), Facts: testFacts()}, server); err != nil {
			t.Fatal(err)
		}
		r.question(t)
		if err := r.daemon.Send(NewAnswered(r.sock.Cookie, blob.Answer{}), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-asked; err != nil {
		t.Error(err)
	}
	for range rounds {
		select {
		case c := <-accepted:
			c.Close()
		case <-time.After(10 * time.Second):
			t.Fatal("a connection was lost")
		}
	}
	r.l.Close()
}

func TestAQuestionWithoutAnAnswerIsAnError(t *testing.T) {
	r := newReturner(t)
	if _, err := r.l.ask(NewAsked(r.sock.Cookie, blob.Question{}), r.sock, 50*time.Millisecond); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("a silent daemon: %v", err)
	}
	r.question(t)
	asked := make(chan error, 1)
	ask := func() {
		_, err := r.sock.TLSAsk(blob.Question{})
		asked <- err
	}
	go ask()
	r.question(t)
	// The answer of a question before, and one of the wrong kind.
	if err := errors.Join(r.daemon.Send(NewTaken(r.sock.Cookie, nil), nil)); err != nil {
		t.Fatal(err)
	}
	if err := <-asked; !errors.Is(err, ErrMalformed) {
		t.Errorf("an answer to something else: %v", err)
	}
	go ask()
	r.question(t)
	r.daemon.Close()
	if err := <-asked; !errors.Is(err, ErrUnanswered) {
		t.Errorf("a daemon that ends: %v", err)
	}
	r = newReturner(t)
	go ask()
	r.question(t)
	r.l.Close()
	if err := <-asked; !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if _, err := r.sock.TLSAsk(blob.Question{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("on a closed listener: %v", err)
	}
}

// TestASocketThatNobodyAcceptedIsClosedWithTheListener.
func TestASocketThatNobodyAcceptedIsClosedWithTheListener(t *testing.T) {
	r := newReturner(t)
	go r.sock.TLSAsk(blob.Question{})
	r.question(t)
	client, server := tcpPair(t)
	if err := r.daemon.Send(&Message{Type: Connection, Cookie: mustCookie(t, server), Facts: testFacts()}, server); err != nil {
		t.Fatal(err)
	}
	server.Close()
	if err := r.daemon.Send(NewAnswered(r.sock.Cookie, blob.Answer{}), nil); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	r.l.Close()
	client.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := client.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("it is still open: %v", err)
	}
}
