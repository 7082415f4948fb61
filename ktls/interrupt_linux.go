// SPDX-License-Identifier: Apache-2.0

package ktls

import "golang.org/x/sys/unix"

// maxInterrupts bounds how often one system call is repeated after EINTR. A kernel
// that lets a signal break a blocking send (Linux 6.12 before .105) may leave EINTR
// on the socket, where every later send finds it.
const maxInterrupts = 1000

// uninterrupted repeats a system call that a signal interrupted.
func uninterrupted(call func() (int, error)) (n int, err error) {
	for range maxInterrupts {
		if n, err = call(); err != unix.EINTR {
			break
		}
	}
	return max(n, 0), err
}
