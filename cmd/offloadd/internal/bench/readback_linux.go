// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/blob"
)

// Options of level SOL_TLS (include/uapi/linux/tls.h).
const (
	optTX = 1 // TLS_TX
	optRX = 2 // TLS_RX
)

// infoSizes are those of the structs that the kernel tells a key in, which it wants to be
// asked by (include/uapi/linux/tls.h).
var infoSizes = map[blob.AEAD]int{blob.AES128GCM: 40, blob.AES256GCM: 56, blob.ChaCha20Poly1305: 56}

// readBack asks the kernel for both keys, as ktls.Install does to compare them, and returns how
// long that took.
func readBack(tcp *net.TCPConn, aead blob.AEAD) (took time.Duration, err error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0, err
	}
	var info, same [64]byte
	defer clear(info[:])
	controlErr := raw.Control(func(fd uintptr) {
		begin := time.Now()
		for _, option := range []uintptr{optRX, optTX} {
			size := uint32(infoSizes[aead])
			_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_TLS, option,
				uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
			if errno != 0 {
				err = fmt.Errorf("read the keys back: %w", os.NewSyscallError("getsockopt", errno))
			} else if subtle.ConstantTimeCompare(info[:], same[:]) == 1 {
				err = errors.New("read the keys back: the kernel told none")
			}
		}
		took = time.Since(begin)
	})
	return took, errors.Join(err, controlErr)
}
