// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/blob/handoff"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/ledger"
	"github.com/offloadd/offloadd/handshaker"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// A rogue worker completes handshakes like an honest one, and then does to the
// result what a worker that was taken over might do.

// crime changes what the worker sends, or sends more. prev is the message of the
// connection before.
type crime struct {
	commit func(r *rogue, m *handoff.Message, prev *handoff.Message) error
	// want is in the daemon's log.
	want string
}

var crimes = map[string]crime{
	"a blob of another socket": {
		func(r *rogue, m, prev *handoff.Message) error { m.Read, m.Write = prev.Read, prev.Write; return nil },
		blob.ErrCookie.Error()},
	"the two blobs swapped": {
		func(r *rogue, m, _ *handoff.Message) error { m.Read, m.Write = m.Write, m.Read; return nil },
		blob.ErrDirection.Error()},
	"one blob twice": {
		func(r *rogue, m, _ *handoff.Message) error { m.Write = m.Read; return nil },
		blob.ErrDirection.Error()},
	"a truncated blob": {
		func(r *rogue, m, _ *handoff.Message) error { m.Read = m.Read[:len(m.Read)-1]; return nil },
		blob.ErrMalformed.Error()},
	"a flipped bit": {
		func(r *rogue, m, _ *handoff.Message) error { m.Write[len(m.Write)-20] ^= 1; return nil },
		blob.ErrSealed.Error()},
	"the keys of another connection": {
		func(r *rogue, m, _ *handoff.Message) error { return r.resealOthers(m) },
		string(ledger.SameKey)},
	"a header that lies about the suite": {
		func(r *rogue, m, _ *handoff.Message) error { m.Read[19]++; return nil },
		blob.ErrSealed.Error()},
	"an expired blob": {
		func(r *rogue, m, _ *handoff.Message) error { r.expiry = -time.Second; return r.reseal(m) },
		blob.ErrExpired.Error()},
	"a blob for another daemon": {
		func(r *rogue, m, _ *handoff.Message) error { return r.resealFor(m, newStranger()) },
		blob.ErrRecipient.Error()},
	"keys of the other role": {
		func(r *rogue, m, _ *handoff.Message) error { r.role = blob.Client; return r.reseal(m) },
		blob.ErrDirection.Error()},
	"the same message twice": {
		func(r *rogue, m, _ *handoff.Message) error { return r.channel.Send(m, r.tcp) },
		"which it does not have"},
	"a message the daemon never wants": {
		func(r *rogue, m, _ *handoff.Message) error {
			return r.channel.Send(&handoff.Message{Type: handoff.Ready, Body: []byte("again")}, nil)
		},
		errProtocol.Error()},
	"nothing at all": {
		func(r *rogue, m, _ *handoff.Message) error { time.Sleep(time.Hour); return nil },
		errWorkerSilent.Error()},
}

// rogue is the worker process of these tests.
type rogue struct {
	*worker
	kind   string
	tcp    *net.TCPConn
	expiry time.Duration
	role   blob.Role
	// The states of this connection, kept as no honest worker keeps them.
	read, write *blob.State
	others      [2]*blob.State // of the connection before
}

// newStranger is the public key of a daemon that is not there.
func newStranger() blob.PublicKey {
	key, err := blob.GenerateKey()
	if err != nil {
		panic(err)
	}
	return key.Public()
}

// rogueWorker is the process of a rogue worker. It sins once: on its second
// connection, if nobody has sinned before. It is confined like an honest one.
func rogueWorker(env *environment, steps testSteps, kind string) int {
	w, err := newWorker(env)
	if err != nil {
		fmt.Fprintln(env.stderr, err)
		return 1
	}
	r := &rogue{worker: w, kind: kind, expiry: time.Minute}
	if err := r.worker.setUp(); err != nil {
		fmt.Fprintln(env.stderr, err)
		return 1
	}
	var prev *handoff.Message
	for {
		m, sock, err := w.channel.Receive()
		if err != nil || m.Type != handoff.Handshake {
			return 0
		}
		if kind == rogueInClear {
			return sendInClear(sock)
		}
		established, err := r.handshakeBadly(m, sock)
		if err != nil {
			fmt.Fprintln(env.stderr, err)
			return 1
		}
		if prev != nil && steps.at(stepSin).order.CompareAndSwap(orderSin, orderNone) {
			if err := crimes[kind].commit(r, established, prev); err != nil {
				fmt.Fprintln(env.stderr, err)
				return 1
			}
		}
		if err := w.channel.Send(established, r.tcp); err != nil {
			return 1
		}
		r.tcp.Close()
		prev = established
	}
}

// rogueInClear is a worker that does not even shake hands.
const rogueInClear = "in clear"

func sendInClear(sock *os.File) int {
	c, err := net.FileConn(sock)
	if err != nil {
		return 1
	}
	io.ReadFull(c, make([]byte, 1))
	c.Write(clearly)
	time.Sleep(time.Minute)
	return 0
}

func (r *rogue) handshakeBadly(m *handoff.Message, sock *os.File) (*handoff.Message, error) {
	c, err := net.FileConn(sock)
	sock.Close()
	if err != nil {
		return nil, err
	}
	r.tcp = c.(*net.TCPConn)
	s, err := handshaker.Server(context.Background(), r.tcp, r.listeners[string(m.Body)])
	if err != nil {
		return nil, err
	}
	r.others = [2]*blob.State{r.read, r.write}
	r.read, r.write, r.role = copyState(s.Read), copyState(s.Write), blob.Server
	out := &handoff.Message{Type: handoff.Established, Cookie: m.Cookie, Facts: &s.Facts}
	return out, r.reseal(out)
}

// reseal seals copies of the states with the worker's own sealer.
func (r *rogue) reseal(m *handoff.Message) error { return r.sealWith(r.sealer, m) }

// resealOthers seals the keys of the connection before for the socket of this one: no
// blob tells that, and the socket has no keys yet.
func (r *rogue) resealOthers(m *handoff.Message) error {
	r.others[0].Cookie, r.others[1].Cookie = m.Cookie, m.Cookie
	r.read, r.write = r.others[0], r.others[1]
	return r.reseal(m)
}

func (r *rogue) resealFor(m *handoff.Message, public blob.PublicKey) error {
	sealer, _, err := blob.NewSealer(public)
	if err != nil {
		return err
	}
	return r.sealWith(sealer, m)
}

func (r *rogue) sealWith(sealer *blob.Sealer, m *handoff.Message) (err error) {
	read, write := copyState(r.read), copyState(r.write)
	read.Role, write.Role = r.role, r.role
	if m.Read, err = sealer.Seal(read, time.Now().Add(r.expiry)); err != nil {
		return err
	}
	m.Write, err = sealer.Seal(write, time.Now().Add(r.expiry))
	return err
}

func copyState(s *blob.State) *blob.State {
	c := *s
	secret := func(s blob.Secret) blob.Secret { return blob.NewSecret(append([]byte(nil), s.Bytes()...)) }
	c.Key, c.IV, c.NextSecret = secret(s.Key), secret(s.IV), secret(s.NextSecret)
	return &c
}

// TestAWorkerThatLiesGetsNowhere: the daemon names the lie, ends the worker and the
// connection, sends nothing in clear, leaves others alone, and goes on with a new
// worker.
func TestAWorkerThatLiesGetsNowhere(t *testing.T) {
	requireDaemon(t)
	for kind, c := range crimes {
		t.Run(kind, func(t *testing.T) {
			d := startDaemon(t, sharedIdentity(t), daemonOptions{rogue: kind, settings: "workers = 1\nhandshake_timeout = \"3s\""})
			d.serveApplication(echo)
			capture := ktlstest.StartCapture(t, d.port())
			bystander := d.mustEcho()
			d.steps.at(stepSin).order.Store(orderSin)
			victim, err := d.dial(d.clientConfig())
			if err == nil {
				// The peer's handshake is complete before the worker sins. What it is told then
				// must be the end, or, where the sin came beside an honest answer, its echo.
				err = echoOnce(victim)
				victim.Close()
			}
			honestAnswer := kind == "the same message twice" || kind == "a message the daemon never wants"
			if err == nil && !honestAnswer {
				t.Error("the connection works")
			}
			if honestAnswer || strings.Contains(kind, "blob") || kind == "a flipped bit" {
				d.waitText("worker died", c.want)
			} else {
				waitAnyText(t, d, c.want)
			}
			d.waitFor("worker ready", 2)
			d.mustEcho()
			if err := echoOnce(bystander); err != nil {
				t.Errorf("a connection from before: %v", err)
			}
			capture.AssertNoPlaintext(t, marker)
		})
	}
}

// waitAnyText waits for an error in any message of the log.
func waitAnyText(t *testing.T, d *testDaemon, text string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if strings.Contains(d.log.dump(), text) {
			return
		}
	}
	t.Errorf("the log does not say %q\n%s", text, d.log.dump())
}

// expectEnd reads until the peer ends the connection; bytes are an error.
func expectEnd(c *tls.Conn) error {
	c.SetDeadline(time.Now().Add(30 * time.Second))
	n, err := io.Copy(io.Discard, c)
	var timeout net.Error
	switch {
	case n != 0:
		return fmt.Errorf("%d bytes of application data", n)
	case errors.As(err, &timeout) && timeout.Timeout():
		return errors.New("the connection hangs")
	}
	return nil
}
