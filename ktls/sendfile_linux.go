// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"errors"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxSendfile bounds in bytes what is sent under one hold of the write lock.
const maxSendfile = 4 << 20

// sendFile sends up to limit bytes of the file from its current offset. The error is
// nil at the end of the file, io.EOF when limit is reached, and errNoSplice if
// this kind of file cannot be sent so.
func (c *Conn) sendFile(f fileReader, limit int64) (int64, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, errNoSplice
	}
	var sent int64
	for sent < limit {
		var n int
		var inner error
		err := raw.Control(func(fd uintptr) { n, inner = c.sendFilePart(int(fd), limit-sent) })
		sent += int64(n)
		if err = errors.Join(err, inner); err != nil {
			return sent, err
		}
		if n == 0 {
			return sent, nil
		}
	}
	return sent, io.EOF
}

// sendFilePart sends a part of the file; 0 bytes mean that there is none.
func (c *Conn) sendFilePart(file int, limit int64) (int, error) {
	c.out.Lock()
	defer c.out.Unlock()
	n, err := c.mayWrite(int(min(limit, maxSendfile)), 0)
	if err != nil {
		return 0, err
	}
	// A count beyond the end of the file would leave the last record open on Linux 6.1
	// (MSG_SENDPAGE_NOTLAST): it would be sent with the next write, or never.
	left, err := fileLeft(file)
	if err != nil {
		return 0, err
	}
	n = int(min(int64(n), left))
	sent := 0
	for sent < n {
		m, err := c.sendFileOnce(file, n-sent)
		c.out.counter.add(m, 0)
		sent += m
		switch {
		case errors.Is(err, errUpdateFirst):
			if _, err := c.mayWrite(n-sent, 0); err != nil {
				return sent, err
			}
		case errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOSYS) || errors.Is(err, syscall.EOPNOTSUPP):
			return sent, errNoSplice
		case err != nil:
			return sent, c.writeError(err)
		case m == 0: // the file was cut meanwhile
			return sent, nil
		}
	}
	return sent, nil
}

func (c *Conn) sendFileOnce(file, count int) (n int, err error) {
	waited := c.waitToWrite(func(fd uintptr) bool {
		n, err = uninterrupted(func() (int, error) { return unix.Sendfile(int(fd), file, nil, count) })
		return err != unix.EAGAIN
	})
	if waited != nil {
		return 0, waited
	}
	return n, os.NewSyscallError("sendfile", err)
}

// fileLeft returns how many bytes lie between the file's offset and its end.
func fileLeft(fd int) (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, os.NewSyscallError("fstat", err)
	}
	at, err := unix.Seek(fd, 0, unix.SEEK_CUR)
	if err != nil {
		return 0, os.NewSyscallError("lseek", err)
	}
	return max(st.Size-at, 0), nil
}
