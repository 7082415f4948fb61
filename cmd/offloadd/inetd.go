// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os/exec"
	"time"

	"github.com/spf13/cobra"

	"github.com/offloadd/offloadd/blob/handoff"
)

// inetdOptions are the flags of inetd.
type inetdOptions struct {
	application string
	most        int
	drain       time.Duration
}

func inetdCommand(env *environment) *cobra.Command {
	o := inetdOptions{}
	c := &cobra.Command{
		Use:   "inetd --application SOCKET [flags] [--] PROGRAM [ARGUMENT...]",
		Short: "Run a program for each connection, in any language",
		Long: `Starts a program for each connection of a listener, like inetd. The connection is
its standard input and output, which the program reads and writes as if there were
no TLS. When it ends with exit status 0, the peer is told that nothing more comes
(close_notify), and the connection is closed when all that was written is on its way.
With another status it is reset, so that nobody takes a part for the whole.

A read that fails with EIO has met a record that is no data: the peer closes, or
changes its keys. The program writes the line "met" to descriptor 4, while nobody
else uses the connection, and reads a line from descriptor 3:

  go on               read again
  end                 the peer has sent everything
  alert N             the peer has ended the connection by this alert
  ended N: WHY        we have ended it, and the peer was sent this alert, if not 0

A read that returns nothing, where "end" was not told, is a cut. A program that has
lost count writes "end", and is told again how its reading ended, or "cut". Programs
that cannot be changed get all this by the preload library in blob/handoff/preload.
The line "update" changes the key that the program writes under, and "update both"
asks the peer for the same; "refused: WHY" says that it cannot be changed.

The environment has OFFLOADD_PEER, OFFLOADD_LOCAL, OFFLOADD_COOKIE, OFFLOADD_VERSION,
OFFLOADD_SUITE, OFFLOADD_ALPN, OFFLOADD_SERVER_NAME, OFFLOADD_PEER_VERIFIED (1 or 0)
and OFFLOADD_PEER_SHA256, of the peer's certificate.

SIGTERM: connections that still come are given back to the daemon, and programs may
finish.`,
		Example: `  offloadd inetd --application /run/offloadd/web.sock -- node fileserver.js
  offloadd inetd --application /run/offloadd/date.sock -- date
  offloadd inetd --application /run/offloadd/in.sock -- \
      env LD_PRELOAD=/usr/lib/offloadd/plainread.so sh -c 'cat > "in.$$"'`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, program []string) error {
			return o.run(cmd.Context(), env, program)
		},
	}
	flags := c.Flags()
	flags.SetInterspersed(false)
	flags.StringVar(&o.application, "application", "", "the listener's application `socket`")
	flags.IntVar(&o.most, "max", 64, "run so many programs at a time; more connections wait")
	flags.DurationVar(&o.drain, "drain", 30*time.Second, "after SIGTERM, kill what still runs after this `time`")
	return c
}

func (o *inetdOptions) run(ctx context.Context, env *environment, program []string) error {
	switch {
	case o.application == "" || len(program) == 0:
		return usageError(`inetd needs --application and a program; see "offloadd inetd --help"`)
	case o.most < 1 || o.most > 65536:
		return usageError("--max=%d, want 1 to 65536", o.most)
	}
	path, err := exec.LookPath(program[0])
	if err != nil {
		return machineError("inetd: %w", err)
	}
	log := slog.New(slog.NewTextHandler(env.stderr, nil))
	connections, err := handoff.Listen(o.application, log)
	if err != nil {
		return machineError("inetd: %w; is the daemon there, and are you its listener's application_user?", err)
	}
	l := &launcher{path: path, args: program, stderr: env.stderr, log: log, connections: connections,
		slots: make(chan struct{}, o.most)}
	return l.run(ctx, o.drain)
}

// run runs programs until ctx ends, and then until they have ended, for a time.
func (l *launcher) run(ctx context.Context, drain time.Duration) error {
	running, kill := context.WithCancel(context.Background())
	defer kill()
	accepted := make(chan error, 1)
	go func() { accepted <- l.accept(ctx, running) }()
	select {
	case err := <-accepted:
		return err
	case <-ctx.Done():
	}
	l.log.Info("draining", "programs", len(l.slots))
	late := time.AfterFunc(drain, kill)
	defer late.Stop()
	for range cap(l.slots) {
		l.slots <- struct{}{}
	}
	// Not earlier: programs may have had questions.
	l.connections.Close()
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// accept starts a program for each connection until ctx ends, and gives back those that
// come then, until the listener is closed.
func (l *launcher) accept(ctx, running context.Context) error {
	for {
		c, err := l.connections.Accept()
		if err != nil {
			return err
		}
		socket, ok := c.(*handoff.Socket)
		if !ok {
			// A program that fails must be able to end its connection by a reset, and a relay
			// takes each end of the plain stream for a proper one.
			l.log.Error("connection dropped: its records are made by a relay; give inetd a listener with kernel_tls = \"require\"", "peer", c.RemoteAddr())
			c.Close()
			continue
		}
		if ctx.Err() != nil {
			l.giveBack(socket)
			continue
		}
		select {
		case l.slots <- struct{}{}:
			go func() {
				defer func() { <-l.slots }()
				l.serve(running, socket)
			}()
		case <-ctx.Done():
			l.giveBack(socket)
		}
	}
}

// giveBack lets the daemon find another application for a connection that nobody has used.
func (l *launcher) giveBack(s *handoff.Socket) {
	if err := l.connections.Return(s, 0, 0); err != nil {
		l.log.Warn("connection dropped", "socket", s.Cookie, "error", err)
	}
	s.Close()
}
