// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Options of level SOL_TLS (include/uapi/linux/tls.h).
const (
	optTX              = 1 // TLS_TX
	optRX              = 2 // TLS_RX
	optRXExpectNoPad   = 4 // TLS_RX_EXPECT_NO_PAD
	optTXMaxPayloadLen = 5 // TLS_TX_MAX_PAYLOAD_LEN
)

// ulpNameSize is TCP_ULP_NAME_MAX of include/net/tcp.h.
const ulpNameSize = 16

// control runs f with c's descriptor. It returns f's error, or why f could not run.
func control(c syscall.Conn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// setOption is setsockopt with a value that is not copied on the way: the value
// may be a key, and unix.SetsockoptString would leave a copy behind.
func setOption(fd, level, name int, value []byte) error {
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(unsafe.SliceData(value))), uintptr(len(value)), 0)
	if errno != 0 {
		return os.NewSyscallError("setsockopt", errno)
	}
	return nil
}

// getOption fills value by getsockopt and returns how many bytes the kernel wrote.
func getOption(fd, level, name int, value []byte) (int, error) {
	size := uint32(len(value))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(unsafe.SliceData(value))), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0, os.NewSyscallError("getsockopt", errno)
	}
	return int(size), nil
}

// attachULP sets TCP_ULP. It returns EEXIST as nil if "tls" is what exists.
func attachULP(fd int) error {
	err := setOption(fd, unix.SOL_TCP, unix.TCP_ULP, []byte("tls"))
	if errors.Is(err, unix.EEXIST) && ulpName(fd) == "tls" {
		return nil
	}
	return err
}

// ulpName returns the name of the attached ULP, "" if there is none.
func ulpName(fd int) string {
	b := make([]byte, ulpNameSize)
	n, err := getOption(fd, unix.SOL_TCP, unix.TCP_ULP, b)
	if err != nil {
		return ""
	}
	name, _, _ := strings.Cut(string(b[:n]), "\x00")
	return name
}

// keyHeader asks for version and cipher of one direction, and for no key.
func keyHeader(fd, option int) ([]byte, error) {
	b := make([]byte, infoHeaderSize)
	_, err := getOption(fd, unix.SOL_TLS, option, b)
	return b, err
}

// expectNoPad sets TLS_RX_EXPECT_NO_PAD.
func expectNoPad(fd int) error { return setOption(fd, unix.SOL_TLS, optRXExpectNoPad, nativeUint32(1)) }

// expectsNoPad asks for TLS_RX_EXPECT_NO_PAD. For TLS 1.2 the answer is EINVAL
// (net/tls/tls_main.c, do_tls_getsockopt_no_pad).
func expectsNoPad(fd int) (bool, error) {
	b := make([]byte, 4)
	_, err := getOption(fd, unix.SOL_TLS, optRXExpectNoPad, b)
	return b[0] != 0, err
}

func setKey(fd, option int, info []byte) error { return setOption(fd, unix.SOL_TLS, option, info) }

// readKey returns the whole crypto_info, key included; the caller wipes it.
func readKey(fd, option, size int) ([]byte, error) {
	b := make([]byte, size)
	n, err := getOption(fd, unix.SOL_TLS, option, b)
	if err != nil {
		clear(b)
		return nil, err
	}
	return b[:n], nil
}

// cookie returns SO_COOKIE.
func cookie(fd int) (uint64, error) {
	n, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	return n, os.NewSyscallError("getsockopt SO_COOKIE", err)
}

// checkTCP returns ErrNotTCP or ErrMPTCP for anything but a TCP socket.
func checkTCP(fd int) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if errors.Is(err, unix.ENOTSOCK) {
		return ErrNotTCP
	} else if err != nil {
		return os.NewSyscallError("getsockopt SO_DOMAIN", err)
	}
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	switch {
	case err != nil:
		return os.NewSyscallError("getsockopt SO_PROTOCOL", err)
	case domain != unix.AF_INET && domain != unix.AF_INET6:
		return ErrNotTCP
	case protocol == unix.IPPROTO_MPTCP:
		return ErrMPTCP
	case protocol != unix.IPPROTO_TCP:
		return ErrNotTCP
	}
	return nil
}

// tcpState returns the state of the connection.
func tcpState(fd int) (tcpStateCode, error) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, os.NewSyscallError("getsockopt TCP_INFO", err)
	}
	return tcpStateCode(info.State), nil
}

func shutdownBoth(fd int) error {
	err := unix.Shutdown(fd, unix.SHUT_RDWR)
	if errors.Is(err, unix.ENOTCONN) {
		return nil
	}
	return os.NewSyscallError("shutdown", err)
}
