// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"encoding/binary"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Control messages of level SOL_TLS, one byte each (include/uapi/linux/tls.h).
const (
	cmsgSetRecordType = 1 // TLS_SET_RECORD_TYPE
	cmsgGetRecordType = 2 // TLS_GET_RECORD_TYPE
)

// cmsgRoom is enough for the record type and one more small message.
const cmsgRoom = 64

// recordType finds the type in the control buffer of a recvmsg. Fields of struct
// cmsghdr are a native size_t and two int32.
func recordType(oob []byte) (uint8, bool) {
	level, kind := unix.SizeofCmsghdr-8, unix.SizeofCmsghdr-4
	if len(oob) <= unix.CmsgLen(0) ||
		binary.NativeEndian.Uint32(oob[level:]) != unix.SOL_TLS ||
		binary.NativeEndian.Uint32(oob[kind:]) != cmsgGetRecordType {
		return 0, false
	}
	return oob[unix.CmsgLen(0)], true
}

// setRecordType returns the control message that gives a record its type.
func setRecordType(contentType uint8) []byte {
	h := unix.Cmsghdr{Level: unix.SOL_TLS, Type: cmsgSetRecordType}
	h.SetLen(unix.CmsgLen(1))
	b, err := binary.Append(make([]byte, 0, unix.CmsgSpace(1)), binary.NativeEndian, h)
	if err != nil {
		panic("ktls: struct cmsghdr has no fixed size") // a constant of the build
	}
	b = b[:unix.CmsgSpace(1)]
	b[unix.CmsgLen(0)] = contentType
	return b
}

// receiver returns the function that does in.call. It says MSG_DONTWAIT each time,
// because Close makes the descriptor blocking for a while.
func (in *input) receiver() func(fd uintptr) bool {
	oob := make([]byte, cmsgRoom)
	return func(fd uintptr) bool {
		r := &in.call
		if r.loan != nil {
			r.buffer = r.loan.take()
		}
		r.n, r.contentType, r.whole, r.err = receiveRecord(int(fd), r.buffer, oob)
		again := errors.Is(r.err, unix.EAGAIN)
		if r.loan != nil {
			r.loan.uses(r.n)
			if again {
				r.loan.giveBack()
				r.buffer = nil
			}
		}
		return !again
	}
}

// receiveRecord takes a piece of one record; whole says that it was the last of it.
// Type 0 is the end of the TCP stream: an empty record of whatever type comes with a
// control message.
//
// The kernel ends the call behind a record that is not data, and opens none beyond it
// before all of it was taken (net/tls/tls_sw.c, tls_sw_recvmsg).
func receiveRecord(fd int, p, oob []byte) (n int, contentType uint8, whole bool, err error) {
	var oobn, flags int
	n, err = uninterrupted(func() (n int, err error) {
		n, oobn, flags, _, err = unix.Recvmsg(fd, p, oob, unix.MSG_DONTWAIT)
		return n, err
	})
	if err != nil {
		return 0, 0, false, os.NewSyscallError("recvmsg", err)
	}
	contentType, ok := recordType(oob[:oobn])
	if flags&unix.MSG_CTRUNC != 0 || !ok && n > 0 {
		return 0, 0, false, &ending{errors.New("the kernel returned data without a record type"), alertInternalError}
	}
	return n, contentType, flags&unix.MSG_EOR != 0, nil
}

// send writes data by one system call, as soon as there is room for some of it, or
// returns errUpdateFirst.
func (c *Conn) send(p []byte) (n int, err error) { return sendWaiting(c.waitToWrite, p, nil) }

// sendMessage writes a record of another type.
func (c *Conn) sendMessage(p, oob []byte) (n int, err error) { return sendWaiting(c.raw.Write, p, oob) }

func sendWaiting(wait waiter, p, oob []byte) (n int, err error) {
	waited := wait(func(fd uintptr) bool {
		n, err = sendOnce(int(fd), p, oob, unix.MSG_DONTWAIT)
		return !errors.Is(err, unix.EAGAIN)
	})
	if waited != nil {
		return 0, waited
	}
	return n, err
}

func sendOnce(fd int, p, oob []byte, flags int) (int, error) {
	n, err := uninterrupted(func() (int, error) { return unix.SendmsgN(fd, p, oob, nil, flags|unix.MSG_NOSIGNAL) })
	return n, os.NewSyscallError("sendmsg", err)
}

// sendAlert waits until the kernel has taken an alert.
func (c *Conn) sendAlert(level, description uint8) error {
	_, err := c.sendMessage([]byte{level, description}, setRecordType(recordAlert))
	return err
}

// tryAlert sends an alert if the kernel takes it at once.
func (c *Conn) tryAlert(level, description uint8) {
	_ = c.raw.Control(func(fd uintptr) { tryAlert(int(fd), level, description) })
}

func tryAlert(fd int, level, description uint8) {
	// A record that did not authenticate leaves an error for the next send.
	_, _ = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	_, _ = sendOnce(fd, []byte{level, description}, setRecordType(recordAlert), unix.MSG_DONTWAIT)
}

// nextIsControl looks whether the next record that can be read is one that is no data.
// It takes nothing.
func nextIsControl(fd int, oob []byte) (bool, error) {
	p := make([]byte, 1)
	defer clear(p)
	var oobn int
	_, err := uninterrupted(func() (n int, err error) {
		n, oobn, _, _, err = unix.Recvmsg(fd, p, oob, unix.MSG_DONTWAIT|unix.MSG_PEEK)
		return n, err
	})
	if err != nil {
		return false, os.NewSyscallError("recvmsg", err)
	}
	contentType, ok := recordType(oob[:oobn])
	return ok && contentType != recordData, nil
}

// sendNow sends a message only if the kernel takes it at once.
func (c *Conn) sendNow(p, oob []byte) (n int, err error) {
	closed := c.raw.Control(func(fd uintptr) { n, err = sendOnce(int(fd), p, oob, unix.MSG_DONTWAIT) })
	return n, errors.Join(closed, err)
}

// recordContent returns the content limit of sent records in bytes. Kernels without
// TLS_TX_MAX_PAYLOAD_LEN have the one of RFC 8446.
func recordContent(fd int) int {
	b := make([]byte, 2)
	if n, err := getOption(fd, unix.SOL_TLS, optTXMaxPayloadLen, b); err != nil || n != len(b) {
		return maxRecordContent
	}
	if n := int(binary.NativeEndian.Uint16(b)); n > 0 {
		return n
	}
	return maxRecordContent
}
