// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Peer is a process, as the kernel names it.
type Peer struct {
	PID      int
	UID, GID uint32
}

func (p Peer) String() string { return fmt.Sprintf("pid %d, uid %d", p.PID, p.UID) }

// Conn carries messages. Send and Receive may be called concurrently with each
// other and with Close; messages of concurrent Sends do not mix.
type Conn struct {
	unix   *net.UnixConn
	peer   Peer
	expect atomic.Pointer[Peer]

	receiving sync.Mutex
	buffer    []byte // guarded by receiving
}

// NewConn makes a Conn of a connected SOCK_SEQPACKET socket, and owns it.
func NewConn(c *net.UnixConn) (*Conn, error) {
	conn := &Conn{unix: c}
	err := control(c, func(fd int) error {
		if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_SEQPACKET {
			return errors.New("not a SOCK_SEQPACKET socket")
		}
		cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			return os.NewSyscallError("getsockopt SO_PEERCRED", err)
		}
		conn.peer = Peer{int(cred.Pid), cred.Uid, cred.Gid}
		return os.NewSyscallError("setsockopt SO_PASSCRED", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1))
	})
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("handoff channel: %w", err)
	}
	return conn, nil
}

// Pair returns the two ends of a new channel: one for this process, one to be
// inherited by a child.
func Pair() (*Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "handoff"), os.NewFile(uintptr(fds[1]), "handoff")
	conn, err := FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn, theirs, nil
}

// FileConn makes a Conn of an inherited descriptor, and closes the file.
func FileConn(f *os.File) (*Conn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("handoff channel: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("handoff channel: %v is no unix socket", c.LocalAddr())
	}
	return NewConn(u)
}

// Peer returns the process that connected or listened (SO_PEERCRED). For a channel
// from Pair it is the one that called Pair.
func (c *Conn) Peer() Peer { return c.peer }

// Expect makes Receive refuse every message that p did not send, with ErrPeer.
func (c *Conn) Expect(p Peer) { c.expect.Store(&p) }

// SetDeadline bounds Send and Receive, those under way as well.
func (c *Conn) SetDeadline(t time.Time) error { return c.unix.SetDeadline(t) }

// SetWriteDeadline bounds Send.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.unix.SetWriteDeadline(t) }

// SetReadDeadline bounds Receive.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.unix.SetReadDeadline(t) }

// Close closes the channel. Messages not received yet are lost, and the descriptors
// in them closed.
func (c *Conn) Close() error { return c.unix.Close() }

// Send sends a message, and with it a duplicate of sock's descriptor where the type
// has one; sock stays open. On error nothing was sent.
func (c *Conn) Send(m *Message, sock syscall.Conn) error {
	b, err := m.encode()
	if err != nil {
		return fmt.Errorf("send: %w", err)
	}
	if shapes[m.Type].descriptor != (sock != nil) {
		return fmt.Errorf("send %v: %w", m.Type, ErrDescriptor)
	}
	send := func(oob []byte) error {
		if _, _, err := c.unix.WriteMsgUnix(b, oob, nil); err != nil {
			return fmt.Errorf("send %v: %w", m.Type, err)
		}
		return nil
	}
	if sock == nil {
		return send(nil)
	}
	raw, err := sock.SyscallConn()
	if err != nil {
		return fmt.Errorf("send %v: %w", m.Type, err)
	}
	// The descriptor must not be closed and reused meanwhile: send from inside Control.
	cerr := raw.Control(func(fd uintptr) {
		if err = checkCookie(int(fd), m.Cookie); err == nil {
			err = send(unix.UnixRights(int(fd)))
		}
	})
	return errors.Join(cerr, err)
}

// Receive returns the next message, and the descriptor that came with it, which the
// caller owns; nil where the type has none. After an error the channel should be
// closed: io.EOF says that the other end is gone.
func (c *Conn) Receive() (*Message, *os.File, error) {
	c.receiving.Lock()
	defer c.receiving.Unlock()
	if c.buffer == nil {
		c.buffer = make([]byte, MaxMessage)
	}
	// Room for more descriptors than are allowed, to see and close them.
	oob := make([]byte, unix.CmsgSpace(unix.SizeofUcred)+unix.CmsgSpace(4*4))
	n, oobn, flags, _, err := c.unix.ReadMsgUnix(c.buffer, oob)
	if err != nil {
		return nil, nil, err
	}
	files, sender, err := parseControl(oob[:oobn])
	keep := false
	defer func() {
		for _, f := range files {
			if !keep {
				f.Close()
			}
		}
	}()
	if err != nil {
		return nil, nil, fmt.Errorf("receive: %w", err)
	}
	if want := c.expect.Load(); want != nil && (sender == nil || *sender != *want) {
		return nil, nil, fmt.Errorf("receive: %w: %v, expected %v", ErrPeer, sender, *want)
	}
	if flags&unix.MSG_TRUNC != 0 {
		return nil, nil, fmt.Errorf("receive: %w: more than %d bytes", ErrTooLarge, MaxMessage)
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return nil, nil, fmt.Errorf("receive: %w: too many, or the limit of open files is reached", ErrDescriptor)
	}
	m, err := decode(append([]byte(nil), c.buffer[:n]...))
	if err != nil {
		return nil, nil, fmt.Errorf("receive: %w", err)
	}
	file, err := oneDescriptor(m, files)
	if err != nil {
		return nil, nil, fmt.Errorf("receive %v: %w", m.Type, err)
	}
	keep = true
	return m, file, nil
}

// oneDescriptor checks that a message came with exactly the descriptor it must have.
func oneDescriptor(m *Message, files []*os.File) (*os.File, error) {
	if !shapes[m.Type].descriptor {
		if len(files) != 0 {
			return nil, fmt.Errorf("%w: %d, want none", ErrDescriptor, len(files))
		}
		return nil, nil
	}
	if len(files) != 1 {
		return nil, fmt.Errorf("%w: %d, want one", ErrDescriptor, len(files))
	}
	return files[0], control(files[0], func(fd int) error { return checkCookie(fd, m.Cookie) })
}

// parseControl takes apart the control data of one message. The files are the
// caller's also beside an error.
func parseControl(oob []byte) (files []*os.File, sender *Peer, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_RIGHTS:
			fds, e := unix.ParseUnixRights(&m)
			if e != nil {
				err = fmt.Errorf("%w: %v", ErrDescriptor, e)
			}
			for _, fd := range fds {
				files = append(files, os.NewFile(uintptr(fd), "handed off"))
			}
		case m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_CREDENTIALS:
			cred, e := unix.ParseUnixCredentials(&m)
			if e != nil {
				err = fmt.Errorf("%w: %v", ErrPeer, e)
				continue
			}
			sender = &Peer{int(cred.Pid), cred.Uid, cred.Gid}
		}
	}
	return files, sender, err
}

// Cookie reads SO_COOKIE: a number of the socket that the kernel does not use again
// within a boot (net/core/sock_diag.c).
func Cookie(sock syscall.Conn) (cookie uint64, err error) {
	err = control(sock, func(fd int) (err error) {
		cookie, err = cookieOf(fd)
		return err
	})
	return cookie, err
}

func cookieOf(fd int) (uint64, error) {
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("%w: %v", ErrDescriptor, os.NewSyscallError("getsockopt SO_COOKIE", err))
	}
	return cookie, nil
}

func checkCookie(fd int, want uint64) error {
	cookie, err := cookieOf(fd)
	if err != nil {
		return err
	}
	if cookie != want {
		return fmt.Errorf("%w: socket %d, the message speaks of %d", ErrCookie, cookie, want)
	}
	return nil
}

// control runs f on the descriptor of c.
func control(c syscall.Conn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) { err = f(int(fd)) })
	if cerr != nil {
		return cerr
	}
	return err
}
