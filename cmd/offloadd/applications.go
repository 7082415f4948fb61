// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/offloadd/offloadd/blob/handoff"
)

var errNoApplication = errors.New("no application was there to take the connection")

// applications is the unix socket of one listener and the processes connected to
// it. Connections go to them in turn.
type applications struct {
	socket *net.UnixListener
	uid    uint32 // may connect, beside root
	log    *slog.Logger
	// received is called with each connection that one gives back or asks about; it owns
	// the file, and returns when the next may come.
	received func(from *handoff.Conn, m *handoff.Message, file *os.File)

	mu      sync.Mutex
	conns   []*handoff.Conn // guarded by mu; the next one first
	changed chan struct{}   // guarded by mu; closed and replaced when conns grows
}

// listenUnix makes a socket that only root can connect to, and below /run its
// directory. What is left of an earlier one is replaced, unless somebody still listens
// there.
func listenUnix(path string) (*net.UnixListener, error) {
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != fs.ModeSocket {
			return nil, fmt.Errorf("%s exists and is no socket", path)
		}
		if c, err := handoff.Dial(path); err == nil {
			c.Close()
			return nil, fmt.Errorf("%s: another daemon listens there", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	// /run is empty after each boot.
	if dir := filepath.Dir(path); strings.HasPrefix(dir, "/run/") {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	return listenUnixPrivate(path)
}

// listenApplications makes the socket, which uid may connect to beside root.
func listenApplications(path string, uid, gid uint32, log *slog.Logger) (*applications, error) {
	// Until the owner is set, only root can connect.
	socket, err := listenUnix(path)
	if err != nil {
		return nil, fmt.Errorf("application socket: %w", err)
	}
	if err := os.Chown(path, int(uid), int(gid)); err != nil {
		socket.Close()
		return nil, err
	}
	return &applications{socket: socket, uid: uid, log: log, changed: make(chan struct{})}, nil
}

// run accepts applications until close.
func (a *applications) run() {
	for {
		u, err := a.socket.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			a.log.Error("accept an application", "error", err)
			time.Sleep(acceptPause)
			continue
		}
		if err := a.add(u); err != nil {
			a.log.Warn("application refused", "error", err)
		}
	}
}

func (a *applications) add(u *net.UnixConn) error {
	conn, err := handoff.NewConn(u)
	if err != nil {
		return err
	}
	if peer := conn.Peer(); peer.UID != 0 && peer.UID != a.uid {
		conn.Close()
		return fmt.Errorf("%w: %v, want uid %d or 0", handoff.ErrPeer, peer, a.uid)
	}
	a.mu.Lock()
	a.conns = append(a.conns, conn)
	close(a.changed)
	a.changed = make(chan struct{})
	a.mu.Unlock()
	a.log.Info("application connected", "application_pid", conn.Peer().PID, "application_uid", conn.Peer().UID)
	go a.watch(conn)
	return nil
}

// watch takes what the application gives back or asks, until its end.
func (a *applications) watch(conn *handoff.Conn) {
	for {
		m, file, err := conn.Receive()
		if err == nil && m.Type != handoff.Returned && m.Type != handoff.Asked {
			if file != nil {
				file.Close()
			}
			err = fmt.Errorf("unexpected %v message", m.Type)
		}
		if err != nil {
			a.remove(conn, err)
			return
		}
		a.received(conn, m, file)
	}
}

func (a *applications) remove(conn *handoff.Conn, why error) {
	conn.Close()
	a.mu.Lock()
	defer a.mu.Unlock()
	if i := slices.Index(a.conns, conn); i >= 0 {
		a.conns = slices.Delete(a.conns, i, i+1)
		a.log.Info("application gone", "application_pid", conn.Peer().PID, "why", why)
	}
}

// sendTime bounds the wait for room in an application's channel once there is no time
// left.
const sendTime = 100 * time.Millisecond

// deliver sends a connection to the next application, and waits for one until ctx
// ends. The one it is from, if any, gets it only if there is no other by then.
func (a *applications) deliver(ctx context.Context, m *handoff.Message, sock syscall.Conn, from *handoff.Conn) (handoff.Peer, error) {
	for {
		conn, changed := a.next(from)
		if conn == nil {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
			}
			if from == nil {
				return handoff.Peer{}, errNoApplication
			}
			from = nil
			continue
		}
		deadline, _ := ctx.Deadline()
		if soon := time.Now().Add(sendTime); deadline.Before(soon) {
			deadline = soon
		}
		conn.SetWriteDeadline(deadline)
		err := conn.Send(m, sock)
		if err == nil {
			return conn.Peer(), nil
		}
		// On error nothing was sent, so the next application may have it.
		a.remove(conn, err)
	}
}

// next returns whose turn it is, or what is closed when one more is there.
func (a *applications) next(not *handoff.Conn) (*handoff.Conn, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	i := slices.IndexFunc(a.conns, func(c *handoff.Conn) bool { return c != not })
	if i < 0 {
		return nil, a.changed
	}
	chosen := a.conns[i]
	a.conns = append(slices.Delete(a.conns, i, i+1), chosen)
	return chosen, nil
}

func (a *applications) close() {
	a.socket.Close() // removes the path as well
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.conns {
		c.Close()
	}
	a.conns = nil
}
