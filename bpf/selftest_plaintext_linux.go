// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// plaintextAttempts are refused before the kernel looks whether the socket is connected.
var plaintextAttempts = []keyAttempt{
	{"send", func(fd int) error { return unix.Sendto(fd, []byte{0}, unix.MSG_NOSIGNAL, &unix.SockaddrInet4{}) }},
	{"sendfile", sendfileNothing},
}

// sendfileNothing reaches the socket by the other way of older kernels.
func sendfileNothing(fd int) error {
	file, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = unix.Sendfile(fd, int(file.Fd()), nil, 1)
	return err
}

// testPlaintextGuard tries to send on a socket of its own, and lets a byte go as far as the backstop.
func testPlaintextGuard(sockets *ebpf.Map) error {
	if err := tryKeyGuard(sockets, plaintextAttempts); err != nil {
		return fmt.Errorf("self-test of the plaintext guard: %w", err)
	}
	if err := tryBackstop(sockets); err != nil {
		return fmt.Errorf("self-test of the plaintext guard's backstop: %w", err)
	}
	return nil
}

// tryBackstop writes a byte that TCP holds back, makes the socket managed, and has TCP send it. That happens within the
// call, so whether the byte left can be asked at once.
func tryBackstop(sockets *ebpf.Map) error {
	fd, peer, err := connectLoopback()
	if err != nil {
		return err
	}
	defer unix.Close(peer)
	defer unix.Close(fd)
	// What is queued goes with the descriptor.
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return err
	}
	if err := unix.Sendto(fd, []byte{0}, unix.MSG_MORE, nil); err != nil {
		return err
	}
	if n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQNSD); n != 1 || err != nil {
		return fmt.Errorf("%d bytes are held back, want 1: %w", n, err)
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return err
	}
	if err := sockets.Put(cookie, managed{Phase: pending, Flags: flagProbe}); err != nil {
		return fmt.Errorf("make a socket managed: %w", err)
	}
	defer func() { _ = sockets.Delete(cookie) }() // the socket outlives its descriptor for the byte's sake
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return err
	}
	switch n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQNSD); {
	case err != nil:
		return err
	case n != 1:
		return fmt.Errorf("a byte in clear left a managed socket: %w", ErrSilent)
	}
	return nil
}

// connectLoopback returns both ends of a connection.
func connectLoopback() (fd, peer int, err error) {
	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(listener)
	loopback := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	if err := errors.Join(unix.Bind(listener, loopback), unix.Listen(listener, 1)); err != nil {
		return 0, 0, fmt.Errorf("listen on loopback: %w; is lo up?", err)
	}
	name, err := unix.Getsockname(listener)
	if err != nil {
		return 0, 0, err
	}
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return 0, 0, err
	}
	if err := unix.Connect(fd, name); err != nil {
		unix.Close(fd)
		return 0, 0, fmt.Errorf("connect over loopback: %w; is lo up?", err)
	}
	if peer, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC); err != nil {
		unix.Close(fd)
	}
	return fd, peer, err
}
