// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/offloadd/offloadd/blob"
	"golang.org/x/sys/unix"
)

// The functions here look for known bugs by what they do. A kernel that has one is
// ErrNotSupported.

func bug(format string, args ...any) error {
	return fmt.Errorf("%w: kernel bug: %s", ErrNotSupported, fmt.Sprintf(format, args...))
}

// trySplice splices a record into a pipe that takes only a part of it. Linux 6.12
// drops the rest (tls_sw_splice_read; fixed in 6.1.190 and 7).
func trySplice() error {
	p, err := newKeyedPair(probeSuite13)
	if err != nil {
		return err
	}
	defer p.close()
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return os.NewSyscallError("pipe2", err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	if _, err := unix.FcntlInt(uintptr(pipe[1]), unix.F_SETPIPE_SZ, os.Getpagesize()); err != nil {
		return os.NewSyscallError("fcntl F_SETPIPE_SZ", err)
	}
	// The second record wakes the reader if the rest of the first is gone.
	records := [][]byte{bytes.Repeat([]byte{'a'}, maxRecordContent), []byte("b")}
	for _, r := range records {
		if _, err := p.a.Write(r); err != nil {
			return err
		}
	}
	raw, err := p.b.SyscallConn()
	if err != nil {
		return err
	}
	got := 0
	buffer := make([]byte, 2*maxRecordContent)
	for {
		n, err := (&pipeEnds{pipe[0], pipe[1]}).through(raw, buffer)
		if err != nil {
			return err
		}
		if i := bytes.IndexByte(buffer[:n], 'b'); i >= 0 {
			got += i
			break
		}
		got += n
	}
	if got != maxRecordContent {
		return bug("a splice out of a TLS socket into a full pipe lost %d of %d bytes", maxRecordContent-got, maxRecordContent)
	}
	return nil
}

type pipeEnds struct{ read, write int }

// through moves what one splice moves, and reads all of it.
func (p *pipeEnds) through(raw syscall.RawConn, buffer []byte) (n int, err error) {
	waited := raw.Read(func(fd uintptr) bool {
		_, err = spliceOnce(int(fd), p.write, maxRecordContent)
		return !errors.Is(err, unix.EAGAIN)
	})
	if err := errors.Join(waited, err); err != nil {
		return 0, err
	}
	n, err = unix.Read(p.read, buffer)
	if n == 0 && err == nil {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// tryNoPadRetry reads a padded record where none was expected: it is decrypted
// twice, and what the first time wrote must not count. Linux 6.12 goes on behind it:
// the next record of the same call is misplaced (CVE-2026-74611).
func tryNoPadRetry() error {
	p, err := newProbePair(probeSuite13)
	if err != nil {
		return err
	}
	defer p.close()
	if err := setProbeKey(p.b, optRX, p.ab); err != nil {
		return err
	}
	if err := p.setNumber(optRXExpectNoPad, nativeUint32(1)); err != nil {
		return err
	}
	const want = "firstsecond"
	const padding = 256
	// p.a has no key: the records are made here.
	wire, err := sealPadded(p.ab, []string{"first", "second"}, padding)
	if err != nil {
		return err
	}
	if _, err := p.a.Write(wire); err != nil {
		return err
	}
	if err := waitQueued(p.b, len(wire)); err != nil {
		return err
	}
	const untouched = 0xaa
	buffer := bytes.Repeat([]byte{untouched}, 4096)
	n, err := p.b.Read(buffer)
	if err != nil {
		return err
	}
	// The first time writes the type and the padding too, no further.
	rest := buffer[len(want)+1+padding:]
	if !strings.HasPrefix(want, string(buffer[:n])) || len(bytes.TrimLeft(rest, string([]byte{untouched}))) > 0 {
		return bug("padded records read with TLS_RX_EXPECT_NO_PAD are misplaced")
	}
	if n != len(want) {
		return fmt.Errorf("one read returned %d bytes of two records", n)
	}
	return nil
}

// waitQueued waits until so many bytes lie in the receive queue.
func waitQueued(c *net.TCPConn, n int) error {
	for until := time.Now().Add(probeTimeout); ; {
		queued := 0
		err := control(c, func(fd int) (err error) {
			queued, err = unix.IoctlGetInt(fd, unix.SIOCINQ)
			return os.NewSyscallError("ioctl SIOCINQ", err)
		})
		if err != nil || queued >= n {
			return err
		}
		if time.Now().After(until) {
			return os.ErrDeadlineExceeded
		}
		time.Sleep(time.Millisecond)
	}
}

// sealPadded makes TLS 1.3 AES-GCM records with padding (RFC 8446, Sections 5.2 to
// 5.4).
func sealPadded(s *blob.State, texts []string, padding int) ([]byte, error) {
	block, err := aes.NewCipher(s.Key.Bytes())
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	var wire []byte
	for i, text := range texts {
		inner := append([]byte(text), recordData)
		inner = append(inner, make([]byte, padding)...)
		header := []byte{recordData, 3, 3, 0, 0}
		binary.BigEndian.PutUint16(header[3:], uint16(len(inner)+aead.Overhead()))
		nonce := append([]byte(nil), s.IV.Bytes()...)
		nonce[len(nonce)-1] ^= byte(i)
		wire = append(wire, header...)
		wire = aead.Seal(wire, nonce, inner, header)
	}
	return wire, nil
}

// signalBuffer and signalData are sizes in bytes: the second does not fit into the
// first, twice.
const (
	signalBuffer = 32 << 10
	signalData   = 1 << 20
)

// trySignal interrupts a blocking send by a signal that Go's runtime handles anyway.
// On Linux before 6.1.187 and 6.12.105 that breaks the connection.
func trySignal() error {
	p, err := newKeyedPair(probeSuite13)
	if err != nil {
		return err
	}
	defer p.close()
	// Small buffers, so that the send blocks early.
	if err := errors.Join(p.a.SetWriteBuffer(signalBuffer), p.b.SetReadBuffer(signalBuffer)); err != nil {
		return err
	}
	type started struct {
		pid, tid int
		err      error
	}
	start, done := make(chan started, 1), make(chan error, 1)
	go func() {
		done <- control(p.a, func(fd int) error {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			timeout := unix.NsecToTimeval(int64(probeTimeout))
			err := errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout),
				unix.SetNonblock(fd, false))
			start <- started{unix.Getpid(), unix.Gettid(), err}
			if err != nil {
				return err
			}
			return sendBlocking(fd)
		})
	}()
	s := <-start
	if s.err != nil {
		return errors.Join(s.err, <-done)
	}
	for range 4 {
		time.Sleep(10 * time.Millisecond)
		_ = unix.Tgkill(s.pid, s.tid, unix.SIGURG)
	}
	go io.Copy(io.Discard, p.b)
	err = <-done
	if err == nil || errors.Is(err, unix.EAGAIN) {
		return err
	}
	return bug("a signal in a blocking send breaks the connection (%v)", err)
}

// sendBlocking sends more than fits, and one more record, which fails if the first
// send left an error on the socket.
func sendBlocking(fd int) error {
	for _, p := range [][]byte{make([]byte, signalData), {0}} {
		for len(p) > 0 {
			n, err := sendOnce(fd, p, nil, 0)
			if err != nil {
				return err
			}
			p = p[n:]
		}
	}
	return nil
}
