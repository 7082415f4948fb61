// SPDX-License-Identifier: Apache-2.0

package adversary

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Of include/uapi/linux/aio_abi.h.
const (
	aioWrite       = 1
	aioWriteVector = 8
)

func aioWays() []*Way {
	return []*Way{
		sender("io_submit IOCB_CMD_PWRITE", func(t *target) (int, error) { return t.aio(aioWrite) }),
		sender("io_submit IOCB_CMD_PWRITEV", func(t *target) (int, error) { return t.aio(aioWriteVector) }),
	}
}

// iocb is struct iocb of a write, the same for both worlds, which differ in the vector only.
func (t *target) iocb(command uint16, compat bool) uintptr {
	buffer, length := t.put(t.text), len(t.text)
	if command == aioWriteVector {
		buffer, length = t.iovec(t.text, compat), 1
	}
	l := layout{}.u64(0).u32(0).u32(0).u16(command).u16(0).u32(uintptr(t.fd)).u64(buffer).u64(uintptr(length))
	return t.put(append(l, make([]byte, 24)...))
}

func (t *target) aio(command uint16) (int, error) {
	context := t.take(8)
	if _, err := call(unix.SYS_IO_SETUP, 1, address(context)); err != nil {
		return 0, err
	}
	id := uintptr(binary.NativeEndian.Uint64(context))
	if _, err := call(unix.SYS_IO_SUBMIT, id, 1, t.put(layout{}.u64(t.iocb(command, false)))); err != nil {
		return 0, err
	}
	return t.aioResult(id)
}

// aioResult waits for the one event: struct io_event of data, obj, res and res2.
func (t *target) aioResult(id uintptr) (int, error) {
	event := t.take(32)
	if _, err := call(unix.SYS_IO_GETEVENTS, id, 1, 1, address(event), 0); err != nil {
		return 0, err
	}
	return result(int(int64(binary.NativeEndian.Uint64(event[16:]))))
}

// result splits what the kernel gives back in one number.
func result(r int) (int, error) {
	if r < 0 {
		return 0, unix.Errno(-r)
	}
	return r, nil
}
