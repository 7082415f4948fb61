// SPDX-License-Identifier: Apache-2.0

package adversary

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of include/uapi/linux/io_uring.h.
const (
	ringSQPoll       = 1 << 1
	ringOffSQEs      = 0x10000000
	ringGetEvents    = 1 << 0
	ringSQWakeup     = 1 << 1
	registerBuffers  = 0
	registerFiles    = 2
	registerPbufRing = 22
	fixedFile        = 1 << 0
	sqeAsync         = 1 << 4
	bufferSelect     = 1 << 5
	fixedBuffer      = 1 << 2 // of ioprio, IORING_RECVSEND_FIXED_BUF
	sendBundle       = 1 << 4 // of ioprio, IORING_RECVSEND_BUNDLE
	sendVectorized   = 1 << 5 // of ioprio, IORING_SEND_VECTORIZED
)

const (
	opWritev      = 2
	opWriteFixed  = 5
	opSendmsg     = 9
	opOpenat      = 18
	opWrite       = 23
	opSend        = 26
	opSplice      = 30
	opURingCmd    = 46
	opSendZC      = 47
	opSendmsgZC   = 48
	opWritevFixed = 61
)

// ring is an io_uring of one entry at a time.
type ring struct {
	*memory
	fd                   int
	queues, entries      []byte
	sqTail, sqArray      int
	cqHead, cqTail, cqes int
	cqMask               uint32
}

// newRing makes one by a call of either world: that of i386 makes the kernel read structures of i386 from it.
func (m *memory) newRing(flags uintptr, compat bool) (*ring, error) {
	params := m.take(120)
	binary.NativeEndian.PutUint32(params[8:], uint32(flags))
	setup, number := call, uintptr(unix.SYS_IO_URING_SETUP)
	if compat {
		setup = call32
	}
	fd, err := setup(number, 8, address(params)) // the number is the same in both worlds
	if err != nil {
		return nil, err
	}
	at := func(offset int) int { return int(binary.NativeEndian.Uint32(params[offset:])) }
	r := &ring{memory: m, fd: fd, sqTail: at(40 + 4), sqArray: at(40 + 24), cqHead: at(80), cqTail: at(80 + 4), cqes: at(80 + 20)}
	const prot, shared = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	if r.queues, err = unix.Mmap(fd, 0, max(r.sqArray+at(0)*4, r.cqes+at(4)*16), prot, shared); err != nil {
		return nil, err
	}
	r.cqMask = binary.NativeEndian.Uint32(r.queues[at(80+8):])
	r.entries, err = unix.Mmap(fd, ringOffSQEs, at(0)*64, prot, shared)
	return r, err
}

// sqe is struct io_uring_sqe by the names of its parts that are in use here.
type sqe struct {
	op, flags       byte
	ioprio          uint16
	fd              int
	off, addr       uintptr
	length, opFlags uintptr
	buffer          uint16 // buf_index, buf_group
	spliceIn        int    // also optlen
	addr3           uintptr
}

func (s *sqe) bytes() []byte {
	l := layout{s.op, s.flags}.u16(s.ioprio).u32(uintptr(s.fd)).u64(s.off).u64(s.addr).u32(s.length).u32(s.opFlags)
	return l.u64(0).u16(s.buffer).u16(0).u32(uintptr(s.spliceIn)).u64(s.addr3).u64(0)
}

func (r *ring) word(offset int) *uint32 { return (*uint32)(unsafe.Pointer(&r.queues[offset])) }

// do submits one entry and waits for its first completion.
func (r *ring) do(s *sqe) (int, error) {
	tail := atomic.LoadUint32(r.word(r.sqTail))
	copy(r.entries[:64], s.bytes()) // always slot 0: the one before is done
	atomic.StoreUint32(r.word(r.sqArray+int(tail&7)*4), 0)
	atomic.StoreUint32(r.word(r.sqTail), tail+1)
	if _, err := call(unix.SYS_IO_URING_ENTER, uintptr(r.fd), 1, 1, ringGetEvents|ringSQWakeup, 0, 0); err != nil {
		return 0, err
	}
	head := atomic.LoadUint32(r.word(r.cqHead))
	for atomic.LoadUint32(r.word(r.cqTail)) == head { // interrupted by a signal of Go's
		if _, err := call(unix.SYS_IO_URING_ENTER, uintptr(r.fd), 0, 1, ringGetEvents, 0, 0); err != nil && err != unix.EINTR {
			return 0, err
		}
	}
	done := r.queues[r.cqes+int(head&r.cqMask)*16:]
	atomic.StoreUint32(r.word(r.cqHead), head+1)
	return result(int(int32(binary.NativeEndian.Uint32(done[8:]))))
}

func (r *ring) register(what, argument, n uintptr) error {
	_, err := call(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), what, argument, n)
	return err
}
