// SPDX-License-Identifier: Apache-2.0

package adversary

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// sender is a way to send of one system call.
func sender(name string, do func(*target) (int, error)) *Way {
	return &Way{Name: name, Kind: Send, do: func(t *target) error { return t.all(do(t)) }}
}

// lacks adds what kernels answer that do not know the way.
func (w *Way) lacks(errno unix.Errno, series ...string) *Way {
	if w.lacking == nil {
		w.lacking = map[string]unix.Errno{}
	}
	for _, s := range series {
		w.lacking[s] = errno
	}
	return w
}

// x32 marks a call of the third ABI of this machine (arch/x86/include/uapi/asm/unistd.h).
const x32 = 0x40000000

// sendWays are the system calls of a 64-bit program.
func sendWays() []*Way {
	return []*Way{
		sender("write", func(t *target) (int, error) {
			return call(unix.SYS_WRITE, uintptr(t.fd), t.put(t.text), uintptr(len(t.text)))
		}),
		sender("writev", func(t *target) (int, error) {
			return call(unix.SYS_WRITEV, uintptr(t.fd), t.iovec(t.text, false), 1)
		}),
		sender("pwrite64", func(t *target) (int, error) {
			return call(unix.SYS_PWRITE64, uintptr(t.fd), t.put(t.text), uintptr(len(t.text)), 0)
		}).lacks(unix.ESPIPE, ""),
		sender("write of x32", func(t *target) (int, error) {
			return call(x32|unix.SYS_WRITE, uintptr(t.fd), t.put(t.text), uintptr(len(t.text)))
		}).lacks(unix.ENOSYS, ""), // but with syscall.x32=y
		sender("pwritev2", func(t *target) (int, error) {
			return call(unix.SYS_PWRITEV2, uintptr(t.fd), t.iovec(t.text, false), 1, ^uintptr(0), ^uintptr(0), 0)
		}),
		sendFlags("send", 0),
		sendFlags("send MSG_DONTWAIT|MSG_NOSIGNAL", unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL),
		sendFlags("send MSG_OOB", unix.MSG_OOB),
		sendFlags("send MSG_EOR", unix.MSG_EOR),
		sendFlags("send MSG_ZEROCOPY", unix.MSG_ZEROCOPY),
		sendFlags("send MSG_FASTOPEN, connected", unix.MSG_FASTOPEN).lacks(unix.EISCONN, ""),
		{Name: "send MSG_MORE, then uncork", Kind: Send, do: func(t *target) error {
			if err := t.all(t.send(unix.MSG_MORE)); err != nil {
				return err
			}
			return unix.SetsockoptInt(t.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		}},
		sender("sendto with an address", func(t *target) (int, error) {
			to := t.put(layout{}.u16(unix.AF_INET).u16(0x0900).u32(0x0100007f).u64(0))
			return call(unix.SYS_SENDTO, uintptr(t.fd), t.put(t.text), uintptr(len(t.text)), 0, to, 16)
		}),
		sender("sendmsg", func(t *target) (int, error) {
			return call(unix.SYS_SENDMSG, uintptr(t.fd), t.message(t.text, false), 0)
		}),
		sender("sendmmsg", func(t *target) (int, error) {
			n, err := call(unix.SYS_SENDMMSG, uintptr(t.fd), t.message(t.text, false), 1, 0)
			return n * len(t.text), err
		}),
		{Name: "sendto MSG_FASTOPEN", Kind: Send, Fresh: true, do: func(t *target) error {
			_, err := call(unix.SYS_SENDTO, uintptr(t.fd), t.put(t.text), uintptr(len(t.text)), unix.MSG_FASTOPEN,
				t.put(t.peer[:]), 16)
			return err
		}},
		{Name: "connect with TCP_FASTOPEN_CONNECT, then write", Kind: Send, Fresh: true, do: func(t *target) error {
			if err := unix.SetsockoptInt(t.fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1); err != nil {
				return err
			}
			if _, err := call(unix.SYS_CONNECT, uintptr(t.fd), t.put(t.peer[:]), 16); err != nil {
				return err
			}
			return t.all(call(unix.SYS_WRITE, uintptr(t.fd), t.put(t.text), uintptr(len(t.text))))
		}},
		{Name: "connect, then write", Kind: Send, Fresh: true, do: func(t *target) error {
			if _, err := call(unix.SYS_CONNECT, uintptr(t.fd), t.put(t.peer[:]), 16); err != nil {
				return err
			}
			return t.all(call(unix.SYS_WRITE, uintptr(t.fd), t.put(t.text), uintptr(len(t.text))))
		}},
		{Name: "write by /proc/self/fd", Kind: Send, do: func(t *target) error {
			f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", t.fd), os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			return t.all(f.Write(t.text))
		}, lacking: everywhere(unix.ENXIO)},
		{Name: "write by TCP_REPAIR of the send queue", Kind: Send, do: repairedWrite, unprivileged: unix.EPERM},
	}
}

func (t *target) send(flags int) (int, error) {
	return call(unix.SYS_SENDTO, uintptr(t.fd), t.put(t.text), uintptr(len(t.text)), uintptr(flags), 0, 0)
}

func sendFlags(name string, flags int) *Way {
	return sender(name, func(t *target) (int, error) {
		if flags&unix.MSG_ZEROCOPY != 0 {
			if err := unix.SetsockoptInt(t.fd, unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1); err != nil {
				return 0, err
			}
		}
		return t.send(flags)
	})
}

// Of include/uapi/linux/tcp.h.
const tcpSendQueue = 2

// repairedWrite puts bytes into the queue of what was sent and never answered, where a restored connection's are;
// they leave as a retransmission.
func repairedWrite(t *target) error {
	for _, option := range [][2]int{{unix.TCP_REPAIR, 1}, {unix.TCP_REPAIR_QUEUE, tcpSendQueue}} {
		if err := unix.SetsockoptInt(t.fd, unix.IPPROTO_TCP, option[0], option[1]); err != nil {
			return err
		}
	}
	if err := t.all(t.send(0)); err != nil {
		return err
	}
	return unix.SetsockoptInt(t.fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 0)
}
