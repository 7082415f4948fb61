// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// bareConn is the least that a program can do with a socket that has its keys: plain
// system calls. It is what ktls.Conn is compared with, so it takes no lock, counts no
// records, and answers no KeyUpdate. A control record is the end of reading.
type bareConn struct {
	*net.TCPConn
	raw syscall.RawConn
}

func newBareConn(tcp *net.TCPConn) (net.Conn, error) {
	raw, err := tcp.SyscallConn()
	return &bareConn{tcp, raw}, err
}

func (c *bareConn) Read(p []byte) (n int, err error) {
	waited := c.raw.Read(func(fd uintptr) bool {
		n, err = unix.Read(int(fd), p)
		return err != unix.EAGAIN && err != unix.EINTR
	})
	switch {
	case waited != nil:
		return 0, waited
	case err == unix.EIO: // a record that is no data (tls.rst): here close_notify
		return 0, io.EOF
	case err != nil:
		return 0, os.NewSyscallError("read", err)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

func (c *bareConn) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		n, err := c.call("write", func(fd int) (int, error) { return unix.Write(fd, p[written:]) })
		if err != nil {
			return written, err
		}
		written += n
	}
	return written, nil
}

// ReadFrom sends a part of a file, and nothing else, by sendfile.
func (c *bareConn) ReadFrom(r io.Reader) (int64, error) {
	part, ok := r.(*io.LimitedReader)
	if !ok {
		return 0, errors.New("no part of a file")
	}
	file, ok := part.R.(*os.File)
	if !ok {
		return 0, errors.New("no file")
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return 0, err
	}
	sent := int64(0)
	for part.N > 0 {
		var n int
		var inner error
		err := raw.Control(func(from uintptr) {
			n, inner = c.call("sendfile", func(fd int) (int, error) {
				return unix.Sendfile(fd, int(from), nil, int(min(part.N, 1<<30)))
			})
		})
		if err = errors.Join(err, inner); err != nil {
			return sent, err
		}
		if n == 0 {
			return sent, io.ErrUnexpectedEOF
		}
		sent += int64(n)
		part.N -= int64(n)
	}
	return sent, nil
}

// call makes a system call that writes, and waits while there is no room.
func (c *bareConn) call(name string, f func(fd int) (int, error)) (n int, err error) {
	waited := c.raw.Write(func(fd uintptr) bool {
		n, err = f(int(fd))
		return err != unix.EAGAIN && err != unix.EINTR
	})
	if waited != nil {
		return 0, waited
	}
	return n, os.NewSyscallError(name, err)
}
