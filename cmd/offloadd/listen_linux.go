// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// listenUnixPrivate makes a SOCK_SEQPACKET socket that only its owner may connect
// to. The mode is set on the descriptor before bind, since a chmod afterwards comes
// too late and the umask belongs to the whole process.
func listenUnixPrivate(path string) (*net.UnixListener, error) {
	c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		cerr := raw.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) })
		if cerr != nil {
			return cerr
		}
		return err
	}}
	l, err := c.Listen(context.Background(), "unixpacket", path)
	if err != nil {
		return nil, err
	}
	return l.(*net.UnixListener), nil
}
