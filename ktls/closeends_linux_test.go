// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/handshaker"
	"github.com/offloadd/offloadd/ktls"
)

// ourEnd is what an application has in its hand when a connection ends.
type ourEnd interface {
	// read reads until an error, or until nothing came for a while, which is "waits".
	read() (n int, said string)
	// take reads so many bytes.
	take(n int) error
	write(p []byte) (n int, err error)
	// room waits for room to write a little.
	room(patience time.Duration) bool
	closeWrite() error
	close() error
	// hurry says that there is no use in waiting for the peer.
	hurry()
	// fill writes until nothing more is taken without waiting.
	fill() (n int, err error)
}

// newEnd makes one, over a connection on which the peer shakes hands as a client.
type newEnd func(tcp *net.TCPConn, config *tls.Config) (ourEnd, error)

const (
	// quietTime is after how long without room a socket is said to have none.
	quietTime = 400 * time.Millisecond
	// silenceTime is after how long without a byte a read is said to wait: TCP may have to
	// send it again.
	silenceTime = 2 * time.Second
)

// said names an error.
func said(err error) string {
	var errno syscall.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, io.EOF):
		return "EOF"
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "unexpected EOF"
	case errors.Is(err, ktls.ErrUndelivered),
		strings.Contains(err.Error(), "failed to send closeNotify") && errors.Is(err, os.ErrDeadlineExceeded):
		return "undelivered"
	case errors.Is(err, ktls.ErrClosedWrite), strings.Contains(err.Error(), "protocol is shutdown"):
		return "closed for writing"
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return "reset"
	case errors.Is(err, net.ErrClosed):
		return "closed"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, unix.EAGAIN):
		return "waits"
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// goConn is a ktls.Conn or a tls.Conn.
type goConn interface {
	net.Conn
	CloseWrite() error
}

// goEnd is a Go program.
type goEnd struct {
	goConn
	// deadlines says that a Write which timed out may be continued; crypto/tls can not.
	deadlines bool
	hurried   bool // closeWrite has little time
	tcp       *net.TCPConn
}

func newCryptoEnd(tcp *net.TCPConn, config *tls.Config) (ourEnd, error) {
	c := tls.Server(tcp, config)
	return &goEnd{goConn: c, tcp: tcp}, c.Handshake()
}

func newConnEnd(tcp *net.TCPConn, config *tls.Config) (ourEnd, error) {
	if err := installHandshake(tcp, config); err != nil {
		return nil, err
	}
	c, err := ktls.NewConn(tcp)
	if err != nil {
		return nil, err
	}
	return &goEnd{goConn: c, deadlines: true, tcp: tcp}, nil
}

// installHandshake shakes hands as a server and installs the keys.
func installHandshake(tcp *net.TCPConn, config *tls.Config) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	session, err := handshaker.Server(ctx, tcp, &handshaker.Config{TLS: config})
	if err != nil {
		return err
	}
	cookie, err := ktls.Cookie(tcp)
	if err != nil {
		return err
	}
	session.Read.Cookie, session.Write.Cookie = cookie, cookie
	_, err = ktls.Install(tcp, session.Read, session.Write)
	return err
}

func (e *goEnd) read() (n int, what string) {
	defer e.SetReadDeadline(time.Time{})
	p := make([]byte, 4096)
	for {
		e.SetReadDeadline(time.Now().Add(silenceTime))
		m, err := e.Read(p)
		n += m
		if err != nil {
			return n, said(err)
		}
	}
}

func (e *goEnd) take(n int) error {
	_, err := io.ReadFull(e, make([]byte, n))
	return err
}

func (e *goEnd) write(p []byte) (int, error) { return e.Write(p) }

func (e *goEnd) closeWrite() error {
	if e.hurried { // or it would wait for a dead peer for ever
		e.SetWriteDeadline(time.Now().Add(time.Second))
	}
	err := e.CloseWrite()
	if err == nil {
		e.SetWriteDeadline(time.Time{})
	}
	return err
}

func (e *goEnd) close() error { return e.Close() }

func (e *goEnd) hurry() { e.hurried = true }

func (e *goEnd) fill() (n int, err error) {
	for p := make([]byte, 1000); err == nil && e.room(quietTime); {
		var m int
		m, err = e.Write(p)
		n += m
	}
	if err != nil || !e.deadlines {
		return n, err
	}
	e.SetWriteDeadline(time.Now().Add(quietTime))
	defer e.SetWriteDeadline(time.Time{})
	m, err := e.Write(make([]byte, 1<<20))
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return n, fmt.Errorf("the queue did not fill: %d, %w", n+m, err)
	}
	return n + m, nil
}

func (e *goEnd) room(patience time.Duration) (ready bool) {
	raw, err := e.tcp.SyscallConn()
	if err != nil {
		return true // the write will tell
	}
	if err := raw.Control(func(fd uintptr) { ready = pollOut(int(fd), patience) }); err != nil {
		return true
	}
	return ready
}

func pollOut(fd int, patience time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	n, err := restarted(func() (int, error) { return unix.Poll(fds, int(patience/time.Millisecond)) })
	return n > 0 || err != nil // which the write will tell
}

// plainEnd is a program that knows nothing of TLS: it reads, writes, shuts down and
// closes a blocking socket. Only goodbye needs more.
type plainEnd struct {
	fd int
	// goodbye: it sends close_notify itself before it closes or shuts down.
	goodbye bool
	hurried bool
}

func (e *plainEnd) hurry() { e.hurried = true }

func newPlainEnd(tcp *net.TCPConn, config *tls.Config) (ourEnd, error) {
	return plainEndOf(tcp, config, false)
}

// newGoodbyeEnd is newPlainEnd for a program that sends close_notify itself.
func newGoodbyeEnd(tcp *net.TCPConn, config *tls.Config) (ourEnd, error) {
	return plainEndOf(tcp, config, true)
}

func plainEndOf(tcp *net.TCPConn, config *tls.Config, goodbye bool) (ourEnd, error) {
	if err := installHandshake(tcp, config); err != nil {
		return nil, err
	}
	fd, err := takeDescriptor(tcp)
	if err != nil {
		return nil, err
	}
	timeout := unix.NsecToTimeval(silenceTime.Nanoseconds())
	return &plainEnd{fd: fd, goodbye: goodbye}, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
}

// takeDescriptor takes a socket from package net, as a blocking one.
func takeDescriptor(tcp *net.TCPConn) (fd int, err error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return -1, err
	}
	var duplicated error
	if err := raw.Control(func(old uintptr) { fd, duplicated = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return -1, err
	}
	if duplicated != nil {
		return -1, duplicated
	}
	return fd, errors.Join(tcp.Close(), unix.SetNonblock(fd, false))
}

// restarted repeats a call that one of Go's own signals has interrupted.
func restarted(call func() (int, error)) (n int, err error) {
	for range 1000 {
		if n, err = call(); err != unix.EINTR {
			break
		}
	}
	return max(n, 0), err
}

func (e *plainEnd) read() (n int, what string) {
	for p := make([]byte, 4096); ; {
		m, err := restarted(func() (int, error) { return unix.Read(e.fd, p) })
		n += m
		if err == nil && m == 0 {
			return n, "0"
		}
		if err != nil {
			return n, said(err)
		}
	}
}

func (e *plainEnd) take(n int) error {
	for p := make([]byte, n); len(p) > 0; {
		m, err := restarted(func() (int, error) { return unix.Read(e.fd, p) })
		if err != nil || m == 0 {
			return fmt.Errorf("read: %d, %w", m, err)
		}
		p = p[m:]
	}
	return nil
}

func (e *plainEnd) write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = restarted(func() (int, error) { return unix.Write(e.fd, p[n:]) })
		n += m
	}
	return n, err
}

// sayGoodbye sends close_notify, which takes one control message.
func (e *plainEnd) sayGoodbye() error {
	if !e.goodbye {
		return nil
	}
	e.goodbye = false // once
	if e.hurried {    // or a dead peer would hold it for ever
		if err := unix.SetsockoptTimeval(e.fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 1}); err != nil {
			return err
		}
	}
	oob, err := typeMessage(21)
	if err != nil {
		return err
	}
	_, err = restarted(func() (int, error) {
		return unix.SendmsgN(e.fd, []byte{1, 0}, oob, nil, unix.MSG_NOSIGNAL)
	})
	return err
}

func (e *plainEnd) closeWrite() error {
	return errors.Join(e.sayGoodbye(), unix.Shutdown(e.fd, unix.SHUT_WR))
}

func (e *plainEnd) room(patience time.Duration) bool { return pollOut(e.fd, patience) }

func (e *plainEnd) close() error { return errors.Join(e.sayGoodbye(), unix.Close(e.fd)) }

// fill writes without waiting, as a program with an event loop does.
func (e *plainEnd) fill() (n int, err error) {
	for p := make([]byte, 8000); ; {
		m, err := restarted(func() (int, error) {
			return unix.SendmsgN(e.fd, p, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		})
		n += m
		if errors.Is(err, unix.EAGAIN) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// deafen makes a socket drop every packet that arrives, before TCP sees it: to the other
// end it is as if the cable were cut.
func deafen(tcp syscall.Conn) error {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	drop := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0}
	var attached error
	err = raw.Control(func(fd uintptr) {
		attached = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop})
	})
	return errors.Join(err, attached)
}
