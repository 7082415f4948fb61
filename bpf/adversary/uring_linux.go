// SPDX-License-Identifier: Apache-2.0

package adversary

import "golang.org/x/sys/unix"

// uringWay sends by one entry. prepare may register things and changes what is submitted.
func uringWay(name string, flags uintptr, entry func(t *target, r *ring) (*sqe, error)) *Way {
	return sender("io_uring "+name, func(t *target) (int, error) {
		r, err := t.newRing(flags, false)
		if err != nil {
			return 0, err
		}
		s, err := entry(t, r)
		if err != nil {
			return 0, err
		}
		return r.do(s)
	})
}

func plain(op byte) func(*target, *ring) (*sqe, error) {
	return func(t *target, _ *ring) (*sqe, error) { return t.entry(op, false), nil }
}

// entry is one to send the text, for the operations that take it as bytes, vector or message.
func (t *target) entry(op byte, compat bool) *sqe {
	s := &sqe{op: op, fd: t.fd}
	switch op {
	case opWritev, opWritevFixed:
		s.addr, s.length = t.iovec(t.text, compat), 1
	case opSendmsg, opSendmsgZC:
		s.addr, s.length = t.message(t.text, compat), 1
	default:
		s.addr, s.length = t.put(t.text), uintptr(len(t.text))
	}
	return s
}

// with changes an entry.
func with(op byte, change func(t *target, r *ring, s *sqe) error) func(*target, *ring) (*sqe, error) {
	return func(t *target, r *ring) (*sqe, error) {
		s := t.entry(op, false)
		return s, change(t, r, s)
	}
}

func asynchronous(_ *target, _ *ring, s *sqe) error { s.flags |= sqeAsync; return nil }

func registered(t *target, r *ring, s *sqe) error {
	s.fd, s.flags = 0, s.flags|fixedFile
	return r.register(registerFiles, t.put(layout{}.u32(uintptr(t.fd))), 1)
}

// buffers registers all of the memory as buffer 0.
func buffers(t *target, r *ring, s *sqe) error {
	return r.register(registerBuffers, t.put(layout{}.u64(address(t.bytes)).u64(memorySize)), 1)
}

func fixedSend(t *target, r *ring, s *sqe) error {
	s.ioprio = fixedBuffer
	return buffers(t, r, s)
}

// bundle lets the kernel choose from a ring of provided buffers, which has one: struct io_uring_buf_reg registers it.
func bundle(t *target, r *ring, s *sqe) error {
	page := t.bytes[memorySize-8192 : memorySize-4096] // a ring is of whole pages
	copy(page, layout{}.u64(s.addr).u32(s.length).u16(0).u16(1))
	s.addr, s.length, s.flags, s.ioprio = 0, 0, s.flags|bufferSelect, sendBundle
	return r.register(registerPbufRing, t.put(append(layout{}.u64(address(page)).u32(1).u16(0).u16(0), make([]byte, 24)...)), 1)
}

// vector gives parts instead of bytes.
func vector(t *target, _ *ring, s *sqe) error {
	s.addr, s.length, s.ioprio = t.iovec(t.text, false), 1, sendVectorized
	return nil
}

// spliced moves the text from a pipe.
func spliced(t *target, _ *ring, s *sqe) (err error) {
	s.spliceIn, err = t.pipe(t.vmsplice)
	s.off, s.addr = ^uintptr(0), ^uintptr(0) // neither end has a position
	return err
}

func uringWays() []*Way {
	return []*Way{
		uringWay("WRITE", 0, plain(opWrite)),
		uringWay("WRITEV", 0, plain(opWritev)),
		uringWay("WRITE_FIXED", 0, with(opWriteFixed, buffers)),
		uringWay("WRITEV_FIXED", 0, with(opWritevFixed, buffers)).lacks(unix.EINVAL, "6.1", "6.12"),
		uringWay("SEND", 0, plain(opSend)),
		uringWay("SEND bundle", 0, with(opSend, bundle)).lacks(unix.EOPNOTSUPP, "6.1"),
		uringWay("SEND of a vector", 0, with(opSend, vector)).lacks(unix.EINVAL, "6.1", "6.12"),
		uringWay("SENDMSG", 0, plain(opSendmsg)),
		uringWay("SEND_ZC", 0, plain(opSendZC)),
		uringWay("SEND_ZC from a registered buffer", 0, with(opSendZC, fixedSend)),
		uringWay("SENDMSG_ZC", 0, plain(opSendmsgZC)),
		uringWay("SPLICE", 0, with(opSplice, spliced)), // always by a worker thread
		uringWay("WRITE to a registered file", 0, with(opWrite, registered)),
		uringWay("SEND to a registered file", 0, with(opSend, registered)),
		uringWay("WRITE by a worker thread", 0, with(opWrite, asynchronous)),
		uringWay("SEND by a worker thread", 0, with(opSend, asynchronous)),
		uringWay("SENDMSG_ZC by a worker thread", 0, with(opSendmsgZC, asynchronous)),
		uringWay("WRITE by a polling thread", ringSQPoll, plain(opWrite)),
		uringWay("SEND by a polling thread", ringSQPoll, plain(opSend)),
		uringWay("SPLICE by a polling thread", ringSQPoll, with(opSplice, spliced)),
	}
}
