// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strconv"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// controlClient is a command's connection to the daemon.
type controlClient struct {
	unix   *net.UnixConn
	path   string
	buffer []byte
}

// addControlFlag adds the flag that names the daemon.
func addControlFlag(f *pflag.FlagSet) *string {
	return f.String("control", defaultControl, "control `socket` of the daemon")
}

// dialControl connects to the daemon's control socket.
func dialControl(path string) (*controlClient, error) {
	d := net.Dialer{Timeout: controlTimeout}
	c, err := d.Dial("unixpacket", path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return nil, machineError("no daemon listens at %s: start \"offloadd serve\", or say with --control where its control socket is", path)
	case errors.Is(err, fs.ErrPermission):
		return nil, machineError("%s: only root may ask the daemon", path)
	case err != nil:
		return nil, machineError("control socket: %w", err)
	}
	return &controlClient{c.(*net.UnixConn), path, make([]byte, maxControlMessage)}, nil
}

func (c *controlClient) close() { c.unix.Close() }

// ask sends a request and calls each with every reply but the last, which it returns.
func (c *controlClient) ask(r *controlRequest, each func(*controlReply) error) (*controlSummary, error) {
	r.Version = controlVersion
	if err := sendControl(c.unix, r); err != nil {
		// It may have refused us before it read, and said why.
		if !errors.Is(err, unix.EPIPE) {
			return nil, fmt.Errorf("ask the daemon: %w", err)
		}
	}
	for {
		b, err := receiveControl(c.unix, c.buffer)
		if errors.Is(err, unix.ECONNRESET) {
			// It closed without reading our request. The kernel tells that first, and what
			// it had said before is still there (net/unix/af_unix.c, unix_release_sock).
			b, err = receiveControl(c.unix, c.buffer)
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil, errors.New("the daemon ended before it had answered")
		case err != nil:
			return nil, fmt.Errorf("the daemon at %s does not answer: %w", c.path, err)
		}
		reply := &controlReply{}
		if err := decodeStrictly(b, reply); err != nil {
			return nil, fmt.Errorf("the daemon's answer (is it another version of offloadd?): %w", err)
		}
		switch {
		case reply.Version != controlVersion:
			return nil, fmt.Errorf("the daemon speaks version %d of the control protocol, this offloadd version %d", reply.Version, controlVersion)
		case reply.Error != "":
			return nil, fmt.Errorf("the daemon refuses: %s", reply.Error)
		case reply.Done != nil:
			return reply.Done, nil
		}
		if err := each(reply); err != nil {
			return nil, err
		}
	}
}

// parseSockets reads the numbers that status and the log show.
func parseSockets(args []string) ([]uint64, error) {
	var sockets []uint64
	for _, a := range args {
		n, err := strconv.ParseUint(a, 10, 64)
		if err != nil || n == 0 {
			return nil, usageError("%q is no socket; \"offloadd status\" shows their numbers", a)
		}
		sockets = append(sockets, n)
	}
	return sockets, nil
}

// age is how long ago, in at most two units.
func age(t time.Time) string {
	d := time.Since(t).Round(time.Second)
	switch {
	case d >= 24*time.Hour:
		return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	}
	return fmt.Sprintf("%ds", max(d, 0)/time.Second)
}
