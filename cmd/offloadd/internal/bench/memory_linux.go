// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// memoryFile returns a file that has no place but memory (memfd_create(2)).
func memoryFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// reopen returns another descriptor of a file, with an offset of its own.
func reopen(f *os.File) (*os.File, error) {
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}
