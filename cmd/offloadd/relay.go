// SPDX-License-Identifier: Apache-2.0

package main

import (
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
	"github.com/offloadd/offloadd/ktls/userspace"
)

func relayCommand(env *environment) *cobra.Command {
	return &cobra.Command{
		Use:   "relay",
		Short: "Make the records of connections that the kernel cannot have (started by serve, not by people)",
		Long: `The relay role. "offloadd serve" starts it where kernel_tls is "prefer" or "never",
with a channel to the daemon as descriptor 3. It gives up all privilege, takes
connections with their sealed keys, makes their records, and gives the daemon the
end of a unix stream for each, which the application reads and writes.

It ends with its last connection, once the daemon says so or is gone.`,
		Example: "  offloadd serve --config FILE   with kernel_tls = \"prefer\" in it starts one when it is needed",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			r, err := newRelay(env)
			if err != nil {
				return err
			}
			return r.run()
		},
	}
}

// relay is the process that has the user-space record layer.
type relay struct {
	env       *environment
	channel   *handoff.Conn
	daemonPID int
	key       *blob.PrivateKey
	opener    *blob.Opener
	jobs      sync.WaitGroup
}

// newRelay takes the channel and confines the process, before anything is read.
func newRelay(env *environment) (*relay, error) {
	daemonPID := os.Getppid()
	conn, err := takeChannel("relay")
	if err != nil {
		return nil, err
	}
	key, err := blob.GenerateKey()
	if err != nil {
		return nil, err
	}
	if err := relayConfinement().enter(env); err != nil {
		return nil, machineError("relay: cannot be confined: %w", err)
	}
	return &relay{env: env, channel: conn, daemonPID: daemonPID, key: key}, nil
}

// run serves until its last connection has ended, once the daemon says drain or is gone:
// its end is not that of connections that applications have.
func (r *relay) run() error {
	defer r.channel.Close()
	daemon := r.channel.Peer()
	if daemon.PID != r.daemonPID {
		return fmt.Errorf("the channel belongs to %v, but this relay was started by pid %d", daemon, r.daemonPID)
	}
	r.channel.Expect(daemon)
	if err := r.introduce(); err != nil {
		return err
	}
	for {
		m, sock, err := r.channel.Receive()
		switch {
		case errors.Is(err, io.EOF):
			r.jobs.Wait()
			return nil
		case err != nil:
			// What it has goes on.
			r.jobs.Wait()
			return err
		case m.Type == handoff.Drain:
			r.jobs.Wait()
			return nil
		case m.Type == handoff.Moved:
			r.take(m, sock)
		default:
			if sock != nil {
				sock.Close()
			}
			r.jobs.Wait()
			return fmt.Errorf("unexpected %v message", m.Type)
		}
	}
}

// introduce sends our public key, and takes the daemon's sealer (PROTOCOL.md, section 5).
func (r *relay) introduce() error {
	if err := r.channel.Send(&handoff.Message{Type: handoff.Setup, Body: r.key.Public().Bytes()}, nil); err != nil {
		return err
	}
	m, _, err := r.channel.Receive()
	if err != nil {
		return fmt.Errorf("receive the daemon's sealer: %w", err)
	}
	if m.Type != handoff.Ready {
		return fmt.Errorf("unexpected %v message, want %v", m.Type, handoff.Ready)
	}
	r.opener, err = r.key.NewOpener(m.Body)
	return err
}

// take takes over one connection. Whatever fails ends it: nobody else has its keys.
func (r *relay) take(m *handoff.Message, sock *os.File) {
	layer, err := r.open(m, sock)
	if err == nil {
		err = r.begin(m, layer)
	}
	if err == nil {
		return
	}
	why := []byte(err.Error())
	failed := &handoff.Message{Type: handoff.Failed, Cookie: m.Cookie, Body: why[:min(len(why), 1024)]}
	if err := r.channel.Send(failed, nil); err != nil {
		// Without an answer the daemon waits for its timeout, and then ends the connection.
		fmt.Fprintf(r.env.stderr, "offloadd relay: %v\n", err)
	}
}

// open opens both blobs, in the order of their sealing, and makes a connection of them.
func (r *relay) open(m *handoff.Message, sock *os.File) (*userspace.Conn, error) {
	conn, err := net.FileConn(sock)
	sock.Close()
	if err != nil {
		return nil, err
	}
	want := blob.Binding{Cookie: m.Cookie, Role: m.Facts.Role, Direction: blob.Read, Now: time.Now()}
	read, err := r.opener.Open(m.Read, want)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("open the read key: %w", err)
	}
	want.Direction = blob.Write
	write, err := r.opener.Open(m.Write, want)
	if err != nil {
		read.Destroy()
		conn.Close()
		return nil, fmt.Errorf("open the write key: %w", err)
	}
	layer, err := userspace.NewCheckedConn(conn, read, write)
	if err != nil {
		conn.Close()
	}
	return layer, err
}

// begin gives the plain end to the daemon, and carries data from then on.
func (r *relay) begin(m *handoff.Message, layer *userspace.Conn) error {
	near, far, err := userspace.PlainPair()
	if err != nil {
		layer.Close()
		return err
	}
	defer far.Close()
	cookie, err := handoff.Cookie(far)
	if err == nil {
		err = r.channel.Send(handoff.NewRelayed(cookie, m.Cookie, m.Facts), far)
	}
	if err != nil {
		near.Close()
		layer.Close()
		return err
	}
	r.jobs.Go(func() { _ = userspace.Relay(layer, near) }) // the application is told how it ended
	return nil
}
