// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// System calls with arguments that package unix does not let pass.

// series is that of the kernel under the VM runner.
func series() string { return os.Getenv("OFFLOADD_KERNEL_SERIES") }

// rawOption asks for a key with room for size bytes.
func rawOption(fd, option, size int) (string, error) {
	b, n := make([]byte, size), uint32(size)
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_TLS, uintptr(option),
		uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(unsafe.Pointer(&n)), 0)
	if errno != 0 {
		return "", errno
	}
	return string(b[:n]), nil
}

func iovec(p []byte) unix.Iovec {
	v := unix.Iovec{Base: unsafe.SliceData(p)}
	v.SetLen(len(p))
	return v
}

// recvIntoHole receives into good, and behind it into memory that is not there.
func recvIntoHole(fd int, good []byte) (int, error) {
	hole, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(hole)
	vector := []unix.Iovec{iovec(good), iovec(hole[:1])}
	h := unix.Msghdr{Iov: &vector[0]}
	h.SetIovlen(len(vector))
	return restarted(func() (int, error) {
		n, _, errno := unix.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&h)), 0)
		if errno != 0 {
			return 0, errno
		}
		return int(n), nil
	})
}

// disconnect is connect to an address of no family.
func disconnect(fd int) error {
	address := unix.RawSockaddrInet4{Family: unix.AF_UNSPEC}
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&address)), unix.SizeofSockaddrInet4)
	if errno != 0 {
		return errno
	}
	return nil
}
