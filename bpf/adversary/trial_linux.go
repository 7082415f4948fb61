// SPDX-License-Identifier: Apache-2.0

package adversary

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Trial is one way at a connection of its own over loopback.
type Trial struct {
	*Way
	Socket   *os.File // what the attacker gets
	Outcome  string
	Received string // by the peer, until the end of the connection or of Trials.Patience

	text     string
	listener *net.TCPListener
	peer     *net.TCPConn
}

// Trials are made, and then run by one attacker.
type Trials struct {
	All []*Trial
	// Patience is how long a peer waits for the end of its connection.
	Patience time.Duration
	Victim   VictimInfo
}

// NewTrials makes a connection for each way. With installed the ways to send find keys in theirs.
func NewTrials(ways []*Way, installed bool) (*Trials, error) {
	trials := &Trials{Patience: 10 * time.Second}
	for _, w := range ways {
		t := &Trial{Way: w, text: "plaintext by " + w.Name}
		trials.All = append(trials.All, t)
		if w.Kind == Process {
			t.text = Secret
			continue
		}
		if err := t.connect(); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", w.Name, err), trials.Close())
		}
		if err := t.attach(installed); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", w.Name, err), trials.Close())
		}
	}
	return trials, nil
}

func (t *Trial) connect() error {
	var err error
	if t.listener, err = net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	t.Socket = os.NewFile(uintptr(fd), t.Name)
	if t.Fresh {
		return nil
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(t.address().Port()), Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	return t.accept()
}

func (t *Trial) accept() (err error) {
	if err = t.listener.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if t.peer, err = t.listener.AcceptTCP(); err != nil {
		return err
	}
	raw, err := t.peer.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_OOBINLINE, 1) })
	return errors.Join(err, failed)
}

// attach brings the connection into the state that the way needs.
func (t *Trial) attach(installed bool) error {
	switch {
	case t.Kind == Send && !installed, t.Kind == Key && t.Needs == Bare:
		return nil
	case t.Kind == Key && t.Needs == WithULP:
		return Attach(t.Socket, 0)
	}
	if err := errors.Join(Attach(t.Socket, TheKey), Attach(t.peer, TheKey)); err != nil {
		return err
	}
	if t.Kind == Key { // something to receive
		_, err := t.peer.Write([]byte("hello"))
		return err
	}
	return nil
}

// Cookie is the number of the attacked socket.
func (t *Trial) Cookie() (uint64, error) {
	return unix.GetsockoptUint64(int(t.Socket.Fd()), unix.SOL_SOCKET, unix.SO_COOKIE)
}

func (t *Trial) address() netip.AddrPort { return t.listener.Addr().(*net.TCPAddr).AddrPort() }

// Run has all made by one attacker, and looks what their peers received.
func (ts *Trials) Run(ctx context.Context, a Attacker) error {
	var attempts []Attempt
	for _, t := range ts.All {
		attempt := Attempt{Way: t.Name, Text: t.text, Socket: t.Socket, Victim: ts.Victim}
		if t.Fresh {
			attempt.Peer = t.address()
		}
		attempts = append(attempts, attempt)
	}
	outcomes, err := a.Run(ctx, attempts)
	if err != nil {
		return err
	}
	var peers sync.WaitGroup
	for i, t := range ts.All {
		t.Outcome = outcomes[i]
		if t.Kind == Send {
			peers.Go(func() { t.receive(ts.Patience) })
		}
	}
	peers.Wait()
	return nil
}

// receive ends the attacked socket's stream, after all that was sent on it, and reads the other end's.
func (t *Trial) receive(patience time.Duration) {
	// A socket that is not connected has nothing to end.
	_ = unix.Shutdown(int(t.Socket.Fd()), unix.SHUT_WR)
	if t.peer == nil && t.accept() != nil {
		return
	}
	// Nothing but what came counts: a connection may also end by a reset or by our patience.
	_ = t.peer.SetReadDeadline(time.Now().Add(patience))
	received, _ := io.ReadAll(t.peer)
	t.Received = string(received)
}

// Arrived says whether the peer has what the way sends. Anything else but nothing is an error.
func (t *Trial) Arrived() (bool, error) {
	switch t.Received {
	case t.text:
		return true, nil
	case "":
		return false, nil
	}
	return false, fmt.Errorf("%s: the peer received %q", t.Name, t.Received)
}

// Close ends all connections.
func (ts *Trials) Close() error {
	for _, t := range ts.All {
		for _, c := range []io.Closer{t.Socket, t.peer, t.listener} {
			// Whatever is left of a connection here was attacked.
			switch c := c.(type) {
			case *os.File:
				_ = c.Close()
			case *net.TCPConn:
				if c != nil {
					_ = c.SetLinger(0)
					_ = c.Close()
				}
			case *net.TCPListener:
				if c != nil {
					_ = c.Close()
				}
			}
		}
	}
	return nil
}
