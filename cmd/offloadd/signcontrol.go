// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/cmd/offloadd/internal/signer"
)

// signMessage goes between the daemon and its signer, as JSON in one packet each. Both
// ends are of one build.
type signMessage struct {
	Event signEvent
	// Keys of signSetup, in the order of their numbers.
	Keys []signKey `json:",omitempty"`
	// Grant numbers a worker's channel, whose descriptor comes with signGrant.
	Grant uint64 `json:",omitempty"`
	// What and Key belong to signTold.
	What  string         `json:",omitempty"`
	Key   uint16         `json:",omitempty"`
	Error string         `json:",omitempty"`
	PIN   bool           `json:",omitempty"` // the error is a refused PIN
	Count *signer.Counts `json:",omitempty"`
}

type signKey struct {
	Reference string
	PIN       int // descriptor of the file that holds it, 0 for none
}

type signEvent string

const (
	signSetup   signEvent = "setup"   // daemon: the first message
	signReady   signEvent = "ready"   // signer: has all keys; or Error
	signGrant   signEvent = "grant"   // daemon: serve this channel
	signGranted signEvent = "granted" // signer: does
	signEnded   signEvent = "ended"   // signer: the channel is closed; with Error the worker broke the protocol
	signTold    signEvent = "told"    // signer: for the log
	signLeaving signEvent = "leaving" // signer: its last message, with Count
)

// mostControl bounds a message in bytes: a setup of all keys is the longest.
const mostControl = 128 << 10

// signControl is one end of the channel between daemon and signer.
type signControl struct {
	conn    *net.UnixConn
	sending sync.Mutex
}

// signControlPair returns the daemon's end, and the other to be inherited.
func signControlPair() (*signControl, *os.File, error) {
	theirs, ours, err := signer.Pair()
	if err != nil {
		return nil, nil, err
	}
	c, err := newSignControl(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return c, theirs, nil
}

// newSignControl takes over f.
func newSignControl(f *os.File) (*signControl, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("signer's channel: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("signer's channel: %T is no unix socket", c)
	}
	return &signControl{conn: u}, nil
}

// send sends m, and with it a duplicate of file if there is one.
func (c *signControl) send(m *signMessage, file *os.File, timeout time.Duration) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(b) > mostControl {
		return fmt.Errorf("%s message of %d bytes, most is %d", m.Event, len(b), mostControl)
	}
	var rights []byte
	if file != nil {
		rights = unix.UnixRights(int(file.Fd()))
	}
	c.sending.Lock()
	defer c.sending.Unlock()
	c.conn.SetWriteDeadline(time.Now().Add(timeout))
	_, _, err = c.conn.WriteMsgUnix(b, rights, nil)
	return err
}

// receive returns the next message, and a descriptor that the caller owns, -1 where
// none came.
func (c *signControl) receive() (*signMessage, int, error) {
	b := make([]byte, mostControl)
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, flags, _, err := c.conn.ReadMsgUnix(b, oob)
	if err != nil {
		return nil, -1, err
	}
	if n == 0 {
		return nil, -1, io.EOF
	}
	fd := -1
	if messages, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(messages) == 1 {
		if fds, err := unix.ParseUnixRights(&messages[0]); err == nil && len(fds) == 1 {
			fd = fds[0]
		}
	}
	m := &signMessage{}
	d := json.NewDecoder(bytes.NewReader(b[:n]))
	d.DisallowUnknownFields()
	err = d.Decode(m)
	switch {
	case err != nil:
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = errors.New("cut off")
	case (m.Event == signGrant) != (fd >= 0):
		err = fmt.Errorf("%s with descriptor %d", m.Event, fd)
	}
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, -1, fmt.Errorf("message between daemon and signer: %w", err)
	}
	return m, fd, nil
}
