// SPDX-License-Identifier: Apache-2.0

package signer

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Pair returns the two ends of a channel. Both are for other processes.
func Pair() (signers, workers *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(fds[0]), "signer channel"), os.NewFile(uintptr(fds[1]), "signer channel"), nil
}

// open makes an inherited descriptor a file that waits in the poller, on which read
// and write are the only system calls.
func open(fd int) (*os.File, error) {
	if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_SEQPACKET {
		return nil, fmt.Errorf("descriptor %d is no channel between a worker and a signer", fd)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), "signer channel"), nil
}

// receive reads one packet. What is longer than most is cut by the kernel to a byte
// more than any message has, and so no message. No message is empty, so nothing is
// the end.
func receive(f *os.File, most int) ([]byte, error) {
	b := make([]byte, most+1)
	n, err := f.Read(b)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, io.EOF
	}
	return b[:n], nil
}
