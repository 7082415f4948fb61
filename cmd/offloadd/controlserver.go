// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/cmd/offloadd/internal/custody"
)

// maxControlClients bounds the clients at a time; more wait in the backlog.
const maxControlClients = 8

// control serves status and revoke to root.
type control struct {
	daemon  *daemon
	socket  *net.UnixListener
	started time.Time
	slots   chan struct{}

	mu      sync.Mutex
	clients map[*net.UnixConn]bool // guarded by mu; nil after close
}

func listenControl(d *daemon) (*control, error) {
	socket, err := listenUnix(d.config.Control)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return &control{
		daemon: d, socket: socket, started: time.Now(),
		slots: make(chan struct{}, maxControlClients), clients: make(map[*net.UnixConn]bool),
	}, nil
}

// run accepts clients until close.
func (c *control) run() {
	for {
		c.slots <- struct{}{}
		u, err := c.socket.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			<-c.slots
			c.daemon.log.Error("accept a control client", "error", err)
			time.Sleep(acceptPause)
			continue
		}
		go func() {
			defer func() { <-c.slots }()
			c.serve(u)
		}()
	}
}

// close ends the clients too.
func (c *control) close() {
	c.socket.Close() // removes the path as well
	c.mu.Lock()
	defer c.mu.Unlock()
	for u := range c.clients {
		u.Close()
	}
	c.clients = nil
}

// add reports whether u may be served; after close it may not.
func (c *control) add(u *net.UnixConn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.clients == nil {
		return false
	}
	c.clients[u] = true
	return true
}

func (c *control) remove(u *net.UnixConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.clients, u)
	u.Close()
}

// serve answers one client's requests.
func (c *control) serve(u *net.UnixConn) {
	defer c.remove(u)
	if !c.add(u) {
		return
	}
	client, err := peerOf(u)
	if err == nil && client.Uid != 0 {
		// The mode of the socket says so already, but modes change.
		err = fmt.Errorf("uid %d may not control this daemon: only root may", client.Uid)
	}
	if err != nil {
		c.daemon.log.Warn("control client refused", "error", err)
		c.send(u, &controlReply{Error: err.Error()})
		return
	}
	buffer := make([]byte, maxControlMessage)
	for {
		b, err := receiveControl(u, buffer)
		if err == nil {
			err = c.answer(u, b, int(client.Pid))
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
			return
		default:
			c.daemon.log.Warn("control client", "pid", client.Pid, "error", err)
			c.send(u, &controlReply{Error: err.Error()})
			return
		}
	}
}

// peerOf returns the process that connected.
func peerOf(u *net.UnixConn) (cred *unix.Ucred, err error) {
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, err
	}
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return cred, errors.Join(cerr, os.NewSyscallError("getsockopt SO_PEERCRED", err))
}

func (c *control) send(u *net.UnixConn, r *controlReply) error {
	r.Version = controlVersion
	return sendControl(u, r)
}

// answer serves one request.
func (c *control) answer(u *net.UnixConn, b []byte, pid int) error {
	r, err := parseControlRequest(b)
	if err != nil {
		return fmt.Errorf("control request: %w", err)
	}
	sockets, err := c.chosen(r)
	if err != nil {
		return fmt.Errorf("control request: %w", err)
	}
	// One at a time, so that thousands of connections are neither copied nor kept from
	// the handshakes all at once.
	for _, socket := range sockets {
		var reply controlReply
		if r.Command == controlRevoke {
			reply.Revoked = c.revoke(socket, pid)
		} else if e, ok := c.daemon.custody.Get(socket); ok {
			reply.Connection, reply.Traffic = &e, c.daemon.trafficOf(socket)
		} else if reply.Missing = socket; !slices.Contains(r.Sockets, socket) {
			continue // it ended just now
		}
		if err := c.send(u, &reply); err != nil {
			return err
		}
	}
	return c.send(u, &controlReply{Done: c.summary()})
}

// chosen returns the sockets that a request is about. Only live ones can be revoked;
// one that is named is answered whatever it is.
func (c *control) chosen(r *controlRequest) ([]uint64, error) {
	match := func(*custody.Entry) bool { return true }
	if len(r.Sockets) > 0 {
		return slices.Compact(slices.Sorted(slices.Values(r.Sockets))), nil
	}
	if r.Peer != "" {
		var err error
		if match, err = matchPeer(r.Peer); err != nil {
			return nil, err
		}
	}
	return c.daemon.custody.Sockets(func(e *custody.Entry) bool {
		return match(e) && (r.Command != controlRevoke || e.Condition == custody.Live)
	}), nil
}

func (c *control) revoke(socket uint64, pid int) *revokeResult {
	result := &revokeResult{Socket: socket}
	var err error
	if result.Outcome, err = c.daemon.custody.Revoke(socket); err != nil {
		result.Detail = err.Error()
	}
	c.daemon.log.Warn("revocation", "socket", socket, "outcome", string(result.Outcome), "detail", result.Detail, "by_pid", pid)
	return result
}

func (c *control) summary() *controlSummary {
	s := &controlSummary{PID: os.Getpid(), Instance: c.daemon.key.Instance().String(), Started: c.started, Totals: c.daemon.custody.Totals(), Foreign: -1}
	if census, err := custody.NewCensus(); err == nil {
		s.Foreign = c.daemon.custody.Foreign(census)
	}
	return s
}
