// SPDX-License-Identifier: Apache-2.0

package adversary

import "encoding/binary"

// Of include/uapi/asm/unistd_32.h and net.h.
const (
	writeI386, writevI386, socketcallI386, sendfileI386, pwritev2I386 = 4, 146, 102, 187, 379
	ioSetupI386, ioSubmitI386, spliceI386, sendmmsgI386               = 245, 248, 313, 345
	getsockoptI386, setsockoptI386, sendtoI386, sendmsgI386           = 365, 366, 369, 370

	socketcallSend, socketcallSendto, socketcallGetsockopt, socketcallSetsockopt, socketcallSendmsg, socketcallSendmmsg = 9, 11, 15, 14, 16, 20
)

// socketcall is the one system call for sockets that old i386 programs use.
func (t *target) socketcall(what uintptr, args ...uintptr) (int, error) {
	var l layout
	for _, a := range args {
		l = l.u32(a)
	}
	return call32(socketcallI386, what, t.put(l))
}

// compatWays are calls of i386, which reach the same files by other tables.
func compatWays() []*Way {
	way := func(name string, do func(t *target, fd, text, n uintptr) (int, error)) *Way {
		return sender("i386 "+name, func(t *target) (int, error) {
			return do(t, uintptr(t.fd), t.put(t.text), uintptr(len(t.text)))
		})
	}
	return []*Way{
		way("write", func(t *target, fd, text, n uintptr) (int, error) { return call32(writeI386, fd, text, n) }),
		way("writev", func(t *target, fd, _, _ uintptr) (int, error) {
			return call32(writevI386, fd, t.iovec(t.text, true), 1)
		}),
		way("pwritev2", func(t *target, fd, _, _ uintptr) (int, error) {
			return call32(pwritev2I386, fd, t.iovec(t.text, true), 1, ^uintptr(0), ^uintptr(0), 0)
		}),
		way("sendto", func(t *target, fd, text, n uintptr) (int, error) { return call32(sendtoI386, fd, text, n, 0, 0, 0) }),
		way("sendmsg", func(t *target, fd, _, _ uintptr) (int, error) {
			return call32(sendmsgI386, fd, t.message(t.text, true), 0)
		}),
		way("sendmmsg", func(t *target, fd, _, n uintptr) (int, error) {
			r, err := call32(sendmmsgI386, fd, t.message(t.text, true), 1, 0)
			return r * int(n), err
		}),
		way("socketcall send", func(t *target, fd, text, n uintptr) (int, error) { return t.socketcall(socketcallSend, fd, text, n, 0) }),
		way("socketcall sendto", func(t *target, fd, text, n uintptr) (int, error) {
			return t.socketcall(socketcallSendto, fd, text, n, 0, 0, 0)
		}),
		way("socketcall sendmsg", func(t *target, fd, _, _ uintptr) (int, error) {
			return t.socketcall(socketcallSendmsg, fd, t.message(t.text, true), 0)
		}),
		way("socketcall sendmmsg", func(t *target, fd, _, n uintptr) (int, error) {
			r, err := t.socketcall(socketcallSendmmsg, fd, t.message(t.text, true), 1, 0)
			return r * int(n), err
		}),
		way("sendfile", func(t *target, fd, _, n uintptr) (int, error) {
			file, err := t.file()
			if err != nil {
				return 0, err
			}
			return call32(sendfileI386, fd, uintptr(file), 0, n)
		}),
		way("splice", func(t *target, fd, _, n uintptr) (int, error) {
			pipe, err := t.pipe(t.vmsplice)
			if err != nil {
				return 0, err
			}
			return call32(spliceI386, uintptr(pipe), 0, fd, 0, n, 0)
		}),
		way("io_submit", func(t *target, _, _, _ uintptr) (int, error) {
			context := t.take(8)
			if _, err := call32(ioSetupI386, 1, address(context)); err != nil {
				return 0, err
			}
			id := uintptr(binary.NativeEndian.Uint32(context))
			if _, err := call32(ioSubmitI386, id, 1, t.put(layout{}.u32(t.iocb(aioWriteVector, true)))); err != nil {
				return 0, err
			}
			return t.aioResult(id)
		}),
		way("io_uring SENDMSG", func(t *target, _, _, _ uintptr) (int, error) {
			r, err := t.newRing(0, true)
			if err != nil {
				return 0, err
			}
			return r.do(t.entry(opSendmsg, true))
		}),
		way("io_uring WRITEV", func(t *target, _, _, _ uintptr) (int, error) {
			r, err := t.newRing(0, true)
			if err != nil {
				return 0, err
			}
			return r.do(t.entry(opWritev, true))
		}),
	}
}
