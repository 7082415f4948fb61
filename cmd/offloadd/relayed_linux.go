// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// isPlainEnd says whether this is a unix stream, as an application gets it for a connection
// that is relayed.
func isPlainEnd(file *os.File) bool {
	raw, err := file.SyscallConn()
	if err != nil {
		return false
	}
	plain := false
	err = raw.Control(func(fd uintptr) {
		domain, derr := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		kind, kerr := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE)
		plain = derr == nil && kerr == nil && domain == unix.AF_UNIX && kind == unix.SOCK_STREAM
	})
	return err == nil && plain
}
