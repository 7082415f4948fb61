// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A trial is a connection over loopback on which one end writes under a key that the
// other reads with.
type trial struct {
	writer, reader *net.TCPConn
	ports          ports // of the writer
}

const trialPatience = 20 * time.Second

func newTrial() (*trial, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	writer, err := net.DialTimeout("tcp", l.Addr().String(), trialPatience)
	if err != nil {
		return nil, err
	}
	reader, err := l.Accept()
	if err != nil {
		writer.Close()
		return nil, err
	}
	c := &trial{writer: writer.(*net.TCPConn), reader: reader.(*net.TCPConn)}
	c.ports = ports{uint16(c.writer.LocalAddr().(*net.TCPAddr).Port), uint16(l.Addr().(*net.TCPAddr).Port)}
	deadline := time.Now().Add(trialPatience)
	if err := errors.Join(c.writer.SetDeadline(deadline), c.reader.SetDeadline(deadline)); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *trial) close() {
	c.writer.Close()
	c.reader.Close()
}

// talk installs a key and sends a record.
func (c *trial) talk() error {
	key := randomKey(version13, 0)
	if err := errors.Join(attachTLS(c.writer), attachTLS(c.reader), setKey(c.reader, optionRX, key),
		setKey(c.writer, optionTX, key)); err != nil {
		return err
	}
	if _, err := c.writer.Write([]byte("?")); err != nil {
		return err
	}
	_, err := io.ReadFull(c.reader, make([]byte, 1))
	return err
}

// randomKey is a struct tls12_crypto_info_aes_gcm_128.
func randomKey(version uint16, seq uint64) []byte {
	b := make([]byte, 40)
	rand.Read(b[4:32]) // never fails
	binary.NativeEndian.PutUint16(b, version)
	binary.NativeEndian.PutUint16(b[2:], 51)
	binary.BigEndian.PutUint64(b[32:], seq)
	return b
}

func attachTLS(c syscall.Conn) error {
	return setOption(c, unix.SOL_TCP, unix.TCP_ULP, "tls")
}

func setKey(c syscall.Conn, option int, value []byte) error {
	return setOption(c, levelTLS, option, string(value))
}

func setOption(c syscall.Conn, level, option int, value string) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = unix.SetsockoptString(int(fd), level, option, value) })
	if set != nil {
		set = fmt.Errorf("option %d of level %d: %w", option, level, os.NewSyscallError("setsockopt", set))
	}
	return errors.Join(err, set)
}
