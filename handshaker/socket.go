// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"crypto/tls"
	"fmt"
	"net"
	"syscall"
)

// socket is the TCP socket under a connection; the zero value is none.
type socket struct {
	raw    syscall.RawConn
	cookie uint64
}

// findSocket looks for the socket that conn is or wraps.
func findSocket(conn net.Conn) (socket, error) {
	for range 16 { // a wrapper that wraps itself must not hang us
		if _, ok := conn.(*tls.Conn); ok {
			return socket{}, fmt.Errorf("%w: conn is a TLS connection: the kernel has one TLS layer per socket", ErrConfig)
		}
		if sc, ok := conn.(syscall.Conn); ok {
			raw, err := sc.SyscallConn()
			if err != nil {
				return socket{}, fmt.Errorf("%w: reach the socket: %w", ErrLocal, err)
			}
			return openSocket(raw)
		}
		wrapper, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			return socket{}, nil
		}
		if conn = wrapper.NetConn(); conn == nil {
			return socket{}, nil
		}
	}
	return socket{}, nil
}
