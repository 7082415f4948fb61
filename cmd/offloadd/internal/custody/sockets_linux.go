// SPDX-License-Identifier: Apache-2.0

package custody

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Listener is told the end of sockets, from one goroutine.
type Listener interface {
	// Destroyed: the kernel has freed the TCP socket with this cookie, ours or not.
	Destroyed(cookie uint64)
	// Reconciled comes after each census.
	Reconciled(*Census)
}

// Census is the TLS sockets that the kernel had in its tables at one time: those
// whose ULP is attached. It leaves out closed sockets that somebody holds a
// descriptor of.
type Census struct {
	// Began is before the first of them was asked for: what was made later may be missing.
	Began time.Time
	// TLS says of each whether it has a key.
	TLS map[uint64]bool
	// Lost: calls of Destroyed may be missing before this census.
	Lost bool
}

// NewCensus counts now.
func NewCensus() (*Census, error) {
	c := &Census{Began: time.Now(), TLS: make(map[uint64]bool)}
	err := eachTLS(func(f found) { c.TLS[f.cookie] = f.keyed })
	return c, err
}

const (
	// censusInterval is how often what was lost without a sign is found.
	censusInterval = time.Minute
	// destroyBuffer holds some 10,000 sockets that end at once.
	destroyBuffer = 8 << 20
	// retryPause is the wait after an error that may last.
	retryPause = time.Second
)

// Groups of include/uapi/linux/sock_diag.h (enum sknetlink_groups).
const (
	groupTCPDestroy  = 1 // SKNLGRP_INET_TCP_DESTROY
	groupTCP6Destroy = 3 // SKNLGRP_INET6_TCP_DESTROY
)

// sockets listens to the kernel.
type sockets struct {
	file      *os.File
	buffer    []byte
	log       *slog.Logger
	listeners []Listener
}

// WatchSockets tells the listeners of every TCP socket of this network namespace
// that the kernel frees, from its return until ctx ends. The census it returns was
// made after it began to listen. It needs CAP_NET_ADMIN.
func WatchSockets(ctx context.Context, log *slog.Logger, listeners ...Listener) (*Census, error) {
	s := &sockets{log: log, listeners: listeners, buffer: make([]byte, 64<<10)}
	if err := s.subscribe(destroyBuffer); err != nil {
		return nil, fmt.Errorf("custody: listen to the end of sockets: %w", err)
	}
	census, err := NewCensus()
	if err != nil {
		s.file.Close()
		return nil, fmt.Errorf("custody: %w", err)
	}
	context.AfterFunc(ctx, func() { s.file.Close() })
	go s.run(ctx)
	return census, nil
}

func (s *sockets) subscribe(buffer int) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	s.file = os.NewFile(uintptr(fd), "sock_diag")
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer); err != nil {
		s.file.Close()
		return os.NewSyscallError("setsockopt SO_RCVBUFFORCE", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		s.file.Close()
		return os.NewSyscallError("bind", err)
	}
	for _, group := range []int{groupTCPDestroy, groupTCP6Destroy} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group); err != nil {
			s.file.Close()
			return os.NewSyscallError("setsockopt NETLINK_ADD_MEMBERSHIP", err)
		}
	}
	return nil
}

// run receives until ctx ends. A census is made when its time comes, and at once when
// the kernel had no room for a message (ENOBUFS).
func (s *sockets) run(ctx context.Context) {
	next, lost, again := time.Now().Add(censusInterval), false, false
	for ctx.Err() == nil {
		if err := s.file.SetReadDeadline(next); err != nil {
			return // closed
		}
		err := s.receive()
		switch {
		case err == nil:
			continue
		case ctx.Err() != nil:
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
		case errors.Is(err, unix.ENOBUFS):
			// What is lost until the queue is empty again gives no sign of its own
			// (net/netlink/af_netlink.c, NETLINK_S_CONGESTED): there is one more census for it.
			lost, again = true, true
			s.log.Warn("the end of some sockets was not heard; looking for them")
		default:
			// Nothing that is known; whatever it was, the census sees to it.
			lost = true
			s.log.Error("listening to the end of sockets", "error", err)
			if !sleep(ctx, retryPause) {
				return
			}
		}
		if census, err := NewCensus(); err != nil {
			s.log.Warn("cannot compare custody with the kernel's sockets", "error", err)
			next = time.Now().Add(retryPause)
		} else {
			census.Lost = lost
			for _, l := range s.listeners {
				l.Reconciled(census)
			}
			next = time.Now().Add(censusInterval)
			if lost = again; again {
				next, again = time.Now().Add(retryPause), false
			}
		}
	}
}

// receive reads one datagram, which may hold several messages.
func (s *sockets) receive() error {
	raw, err := s.file.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	var from unix.Sockaddr
	var inner error
	err = raw.Read(func(fd uintptr) bool {
		n, from, inner = unix.Recvfrom(int(fd), s.buffer, 0)
		return inner != unix.EAGAIN && inner != unix.EINTR
	})
	if err := errors.Join(err, inner); err != nil {
		return err
	}
	// Another process with CAP_NET_ADMIN could send to us; only the kernel is believed.
	if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
		return nil
	}
	for b := s.buffer[:n]; len(b) >= unix.SizeofNlMsghdr; {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			break
		}
		if f, ok := parseFound(b[unix.SizeofNlMsghdr:size]); ok {
			for _, l := range s.listeners {
				l.Destroyed(f.cookie)
			}
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return nil
}

// sleep waits, and reports whether ctx goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// Keyed counts the sockets that have a key.
func (c *Census) Keyed() (n int) {
	for _, keyed := range c.TLS {
		if keyed {
			n++
		}
	}
	return n
}
