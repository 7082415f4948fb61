// SPDX-License-Identifier: Apache-2.0

package userspace_test

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// waitFIN waits until the peer's FIN has arrived.
func waitFIN(t *testing.T, tcp *net.TCPConn) {
	t.Helper()
	const closeWait = 8 // TCP_CLOSE_WAIT, include/net/tcp_states.h
	raw, err := tcp.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		var state uint8
		raw.Control(func(fd uintptr) {
			if info, err := unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO); err == nil {
				state = info.State
			}
		})
		if state == closeWait {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("no FIN arrives")
}
