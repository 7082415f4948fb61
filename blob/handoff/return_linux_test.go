// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// returner is an application with one connection, and its daemon's end of the channel.
type returner struct {
	l      *Listener
	sock   *Socket
	daemon *Conn
}

func newReturner(t *testing.T) *returner {
	t.Helper()
	path := filepath.Join(t.TempDir(), "app.sock")
	_, conns := daemonSocket(t, path)
	l, err := Listen(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	r := &returner{l: l, daemon: <-conns}
	r.daemon.SetDeadline(time.Now().Add(10 * time.Second))
	_, server := tcpPair(t)
	if err := r.daemon.Send(&Message{Type: Connection, Cookie: mustCookie(t, server), Facts: testFacts()}, server); err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	r.sock = c.(*Socket)
	return r
}

// giveBack begins to, and returns what the daemon got.
func (r *returner) giveBack(t *testing.T) (<-chan error, *Message) {
	t.Helper()
	go r.l.Accept()
	given := make(chan error, 1)
	go func() { given <- r.l.Return(r.sock, 1<<40, 7) }()
	m, file, err := r.daemon.Receive()
	if err != nil || m.Type != Returned || m.Cookie != r.sock.Cookie {
		t.Fatal(m, err)
	}
	file.Close()
	if read, written := m.Account(); read != 1<<40 || written != 7 {
		t.Errorf("account %d, %d", read, written)
	}
	return given, m
}

func TestTheDaemonAnswersWhoGivesAConnectionBack(t *testing.T) {
	r := newReturner(t)
	given, m := r.giveBack(t)
	if err := r.l.Return(r.sock, 0, 0); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("a second time meanwhile: %v", err)
	}
	long := &NotTakenError{Reason: strings.Repeat("because ", 1000), Unread: 99}
	if err := r.daemon.Send(NewTaken(m.Cookie, long), nil); err != nil {
		t.Fatal(err)
	}
	var refused *NotTakenError
	if err := <-given; !errors.As(err, &refused) || refused.Unread != 99 || !strings.HasPrefix(refused.Reason, "because because") {
		t.Errorf("refused: %v", err)
	}
	given, m = r.giveBack(t)
	if err := errors.Join(r.daemon.Send(NewTaken(m.Cookie+1, nil), nil), r.daemon.Send(NewTaken(m.Cookie, nil), nil)); err != nil {
		t.Fatal(err)
	}
	if err := <-given; err != nil {
		t.Errorf("taken: %v", err)
	}
}

// TestAnAnswerBeforeTheDaemonsEndCounts: also if the daemon had something unread, which
// makes the kernel reset the channel.
func TestAnAnswerBeforeTheDaemonsEndCounts(t *testing.T) {
	r := newReturner(t)
	given, m := r.giveBack(t)
	if err := r.l.conn.Send(&Message{Type: Drain}, nil); err != nil {
		t.Fatal(err)
	}
	if err := r.daemon.Send(NewTaken(m.Cookie, nil), nil); err != nil {
		t.Fatal(err)
	}
	r.daemon.Close()
	if err := <-given; err != nil {
		t.Errorf("%v, but it was taken", err)
	}
}

func TestWithoutAnAnswerTheConnectionIsNotTaken(t *testing.T) {
	r := newReturner(t)
	given, _ := r.giveBack(t)
	r.daemon.Close()
	if err := <-given; !errors.Is(err, ErrNoAnswer) {
		t.Errorf("%v, want ErrNoAnswer", err)
	}
	r = newReturner(t)
	given, _ = r.giveBack(t)
	r.l.Close()
	if err := <-given; !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if err := r.l.Return(r.sock, 0, 0); !errors.Is(err, net.ErrClosed) {
		t.Errorf("on a closed listener: %v", err)
	}
}

func TestBodiesOfReturnedAndTakenHaveTheirSize(t *testing.T) {
	for _, m := range []*Message{
		{Type: Returned, Cookie: 1, Body: make([]byte, 15)},
		{Type: Returned, Cookie: 1},
		{Type: Taken, Cookie: 1, Body: make([]byte, 4)},
		{Type: Taken, Cookie: 1, Body: []byte{1}},
	} {
		if _, err := m.encode(); !errors.Is(err, ErrMalformed) {
			t.Errorf("%v with %d bytes: %v, want ErrMalformed", m.Type, len(m.Body), err)
		}
	}
}
