// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/blob/handoff"
	"github.com/offloadd/offloadd/handshaker"
)

// channelFD is the descriptor number of a worker's channel to its daemon.
const channelFD = 3

// blobLifetime is how long a worker's blobs may wait for the daemon.
const blobLifetime = 30 * time.Second

func handshakeCommand(env *environment) *cobra.Command {
	return &cobra.Command{
		Use:   "handshake",
		Short: "Complete handshakes for the daemon (started by serve, not by people)",
		Long: `The worker role. "offloadd serve" starts it with a channel to the daemon as
descriptor 3; it gives up all privilege, completes TLS handshakes, seals the keys,
and exits when the daemon says so or goes away.`,
		Example: "  offloadd serve --workers 4 ...   starts four of these",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			w, err := newWorker(env)
			if err != nil {
				return err
			}
			return w.run()
		},
	}
}

// worker is the handshaker process.
type worker struct {
	env       *environment
	channel   *handoff.Conn
	daemonPID int
	timeout   time.Duration
	listeners map[string]*handshaker.Config
	jobs      sync.WaitGroup

	// sealing keeps the order of blobs on the channel the order of the ratchet.
	sealing sync.Mutex
	sealer  *blob.Sealer // guarded by sealing
}

// newWorker takes the channel and confines the process, before anything is read. With
// the channel the runtime's poller is made, which needs descriptors of its own.
func newWorker(env *environment) (*worker, error) {
	daemonPID := os.Getppid()
	conn, err := takeChannel("handshake")
	if err != nil {
		return nil, err
	}
	if err := workerConfinement().enter(env); err != nil {
		return nil, machineError("handshake: cannot be confined: %w", err)
	}
	return &worker{env: env, channel: conn, daemonPID: daemonPID}, nil
}

// takeChannel takes the channel that a role was started with, if it was started as it should.
func takeChannel(role string) (*handoff.Conn, error) {
	roomyHeap()
	if err := checkUnprivileged(); err != nil {
		return nil, machineError("%s: %w", role, err)
	}
	if isSocket(channelFD) != nil {
		return nil, usageError("%s is started by \"offloadd serve\": descriptor %d is no channel to a daemon", role, channelFD)
	}
	return handoff.FileConn(os.NewFile(channelFD, "channel"))
}

// run serves until the daemon says drain, or is gone.
func (w *worker) run() error {
	defer w.channel.Close()
	// The channel was made by the daemon, with the daemon's credentials.
	daemon := w.channel.Peer()
	if daemon.PID != w.daemonPID {
		return fmt.Errorf("the channel belongs to %v, but this worker was started by pid %d", daemon, w.daemonPID)
	}
	w.channel.Expect(daemon)
	if err := w.setUp(); err != nil {
		return err
	}
	w.env.reached(stepWorkerReady)
	for {
		m, sock, err := w.channel.Receive()
		switch {
		case errors.Is(err, io.EOF):
			// The daemon is gone, and with it everybody who could use a result. Exit ends
			// the handshakes under way: their sockets carry no application data yet.
			return errors.New("the daemon is gone")
		case err != nil:
			return err
		case m.Type == handoff.Drain:
			w.jobs.Wait()
			return nil
		case m.Type == handoff.Handshake:
			w.jobs.Go(func() { w.handle(m, sock) })
		default:
			if sock != nil {
				sock.Close()
			}
			return fmt.Errorf("unexpected %v message", m.Type)
		}
	}
}

// setUp receives the setup and introduces this worker's sealer.
func (w *worker) setUp() error {
	m, _, err := w.channel.Receive()
	if err != nil {
		return fmt.Errorf("receive setup: %w", err)
	}
	if m.Type != handoff.Setup {
		return fmt.Errorf("unexpected %v message, want %v", m.Type, handoff.Setup)
	}
	s, err := parseSetup(m.Body)
	clear(m.Body) // session ticket keys
	if err != nil {
		return err
	}
	w.timeout = time.Duration(s.HandshakeTimeout)
	if w.listeners, err = s.handshakerConfigs(); err != nil {
		return err
	}
	public, err := blob.ParsePublicKey(s.PublicKey)
	if err != nil {
		return err
	}
	sealer, setup, err := blob.NewSealer(public)
	if err != nil {
		return err
	}
	w.sealer = sealer
	return w.channel.Send(&handoff.Message{Type: handoff.Ready, Body: setup}, nil)
}

// handle completes one connection. The daemon learns of every failure; the socket
// is the daemon's to shut down.
func (w *worker) handle(m *handoff.Message, sock *os.File) {
	w.env.reached(stepReceived)
	err := w.handshake(m, sock)
	if err == nil {
		return
	}
	why := []byte(err.Error())
	failed := &handoff.Message{Type: handoff.Failed, Cookie: m.Cookie, Body: why[:min(len(why), 1024)]}
	if err := w.channel.Send(failed, nil); err != nil {
		// Without an answer the daemon would wait for its timeout. It sees our end instead.
		fmt.Fprintf(w.env.stderr, "offloadd handshake: %v\n", err)
		os.Exit(exitFailed)
	}
}

func (w *worker) handshake(m *handoff.Message, sock *os.File) error {
	conn, err := net.FileConn(sock)
	sock.Close()
	if err != nil {
		return err
	}
	defer conn.Close()
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return fmt.Errorf("%w: a %T", handoff.ErrDescriptor, conn)
	}
	config := w.listeners[string(m.Body)]
	if config == nil {
		return fmt.Errorf("no listener %q", m.Body)
	}
	ctx, cancel := context.WithTimeout(context.Background(), w.timeout)
	defer cancel()
	session, err := handshaker.Server(ctx, tcp, config)
	if err != nil {
		return err
	}
	w.env.reached(stepHandshaken)
	return w.export(session, tcp)
}

// export seals both states, which destroys them, and sends them with the socket.
func (w *worker) export(session *handshaker.Session, tcp *net.TCPConn) error {
	defer session.Destroy()
	w.sealing.Lock()
	defer w.sealing.Unlock()
	cookie := session.Read.Cookie
	expiry := time.Now().Add(blobLifetime)
	read, err := w.sealer.Seal(session.Read, expiry)
	if err != nil {
		return fmt.Errorf("seal the read key: %w", err)
	}
	write, err := w.sealer.Seal(session.Write, expiry)
	if err != nil {
		return fmt.Errorf("seal the write key: %w", err)
	}
	w.env.reached(stepSealed)
	err = w.channel.Send(&handoff.Message{
		Type: handoff.Established, Cookie: cookie, Read: read, Write: write, Facts: &session.Facts,
	}, tcp)
	if err != nil {
		return err
	}
	w.env.reached(stepSent)
	return nil
}
