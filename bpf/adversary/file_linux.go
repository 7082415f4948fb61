// SPDX-License-Identifier: Apache-2.0

package adversary

import (
	"golang.org/x/sys/unix"
)

// fileWays send what is in a file or a pipe. On Linux 6.1 the last step of them reaches TCP without passing
// sock_sendmsg (sendpage, net/socket.c), where security modules are asked.
func fileWays() []*Way {
	return []*Way{
		sender("sendfile", func(t *target) (int, error) {
			file, err := t.file()
			if err != nil {
				return 0, err
			}
			return unix.Sendfile(t.fd, file, nil, len(t.text))
		}),
		sender("splice", func(t *target) (int, error) {
			return t.spliceFrom(t.pipe(func(pipe int) (int, error) { return unix.Write(pipe, t.text) }))
		}),
		sender("sendfile into a pipe, then splice", func(t *target) (int, error) {
			file, err := t.file()
			if err != nil {
				return 0, err
			}
			return t.spliceFrom(t.pipe(func(pipe int) (int, error) { return unix.Sendfile(pipe, file, nil, len(t.text)) }))
		}),
		sender("vmsplice, then splice", func(t *target) (int, error) { return t.spliceFrom(t.pipe(t.vmsplice)) }),
		sender("vmsplice SPLICE_F_GIFT, then splice SPLICE_F_MOVE", func(t *target) (int, error) {
			pipe, err := t.pipe(func(pipe int) (int, error) {
				page := memorySize - 4096 // a gift is of whole pages
				copy(t.bytes[page:], t.text)
				iov := t.put(layout{}.u64(address(t.bytes[page:])).u64(uintptr(len(t.text))))
				return call(unix.SYS_VMSPLICE, uintptr(pipe), iov, 1, unix.SPLICE_F_GIFT)
			})
			if err != nil {
				return 0, err
			}
			n, err := unix.Splice(pipe, nil, t.fd, nil, len(t.text), unix.SPLICE_F_MOVE)
			return int(n), err
		}),
		sender("tee, then splice", func(t *target) (int, error) {
			first, err := t.pipe(func(pipe int) (int, error) { return unix.Write(pipe, t.text) })
			if err != nil {
				return 0, err
			}
			return t.spliceFrom(t.pipe(func(pipe int) (int, error) {
				n, err := unix.Tee(first, pipe, len(t.text), 0)
				return int(n), err
			}))
		}),
		sender("copy_file_range", func(t *target) (int, error) {
			file, err := t.file()
			if err != nil {
				return 0, err
			}
			return unix.CopyFileRange(file, nil, t.fd, nil, len(t.text), 0)
		}).lacks(unix.EINVAL, ""),
	}
}

// file is one in memory with the text.
func (t *target) file() (int, error) {
	fd, err := unix.MemfdCreate("text", 0)
	if err != nil {
		return 0, err
	}
	_, err = unix.Pwrite(fd, t.text, 0)
	return fd, err
}

// pipe returns the reading end of a pipe that was filled.
func (t *target) pipe(fill func(pipe int) (int, error)) (int, error) {
	var p [2]int
	if err := unix.Pipe(p[:]); err != nil {
		return 0, err
	}
	return p[0], t.all(fill(p[1]))
}

func (t *target) vmsplice(pipe int) (int, error) {
	return call(unix.SYS_VMSPLICE, uintptr(pipe), t.iovec(t.text, false), 1, 0)
}

func (t *target) spliceFrom(pipe int, err error) (int, error) {
	if err != nil {
		return 0, err
	}
	n, err := unix.Splice(pipe, nil, t.fd, nil, len(t.text), 0)
	return int(n), err
}
