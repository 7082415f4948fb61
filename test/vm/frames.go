// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"sync"
)

// Host and guest talk over one virtio port. One stream with frames, not a port per channel, so that the exit status
// arrives after all output, without a race.

type frameKind byte

const (
	// Guest to host.
	frameStarted frameKind = 'S' // startedMessage: the command runs
	frameStdout  frameKind = 'o'
	frameStderr  frameKind = 'e'
	frameKernel  frameKind = 'k' // lines of the kernel's log
	frameExit    frameKind = 'x' // exitMessage: the command has ended; all its output was sent before
	frameArchive frameKind = 'a' // a piece of a tar file with what --get asked for
	frameEnd     frameKind = 'z' // nothing follows; the guest waits for frameBye

	// Host to guest.
	frameStdin  frameKind = 'i'
	frameEOF    frameKind = 'c' // stdin is closed
	frameWindow frameKind = 'w' // windowMessage
	frameSignal frameKind = 's' // signalMessage
	frameBye    frameKind = 'b' // the guest may end
)

// maxFrame bounds what a reader allocates.
const maxFrame = 64 << 10

type startedMessage struct {
	Release string // uname -r
}

type exitMessage struct {
	Code  int
	Error string // why the command could not be run; empty if it was
	// Locked: the kernel is locked down, so the machine cannot end by the port and is restarted.
	Locked bool
}

type windowMessage struct{ Rows, Cols uint16 }

type signalMessage struct{ Number int }

// A frameWriter may be used by several goroutines.
type frameWriter struct {
	mu  sync.Mutex
	out io.Writer
}

// write sends one frame, or several if the payload is long.
func (w *frameWriter) write(kind frameKind, payload []byte) error {
	for {
		n := min(len(payload), maxFrame)
		if err := w.writeOne(kind, payload[:n]); err != nil {
			return err
		}
		if payload = payload[n:]; len(payload) == 0 {
			return nil
		}
	}
}

func (w *frameWriter) writeOne(kind frameKind, payload []byte) error {
	frame := make([]byte, 5, 5+len(payload))
	frame[0] = byte(kind)
	binary.BigEndian.PutUint32(frame[1:], uint32(len(payload)))
	frame = append(frame, payload...)
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.out.Write(frame)
	return err
}

func (w *frameWriter) writeJSON(kind frameKind, message any) error {
	payload, err := json.Marshal(message)
	if err != nil {
		return err
	}
	return w.write(kind, payload)
}

// stream is an io.Writer whose bytes become frames of one kind.
func (w *frameWriter) stream(kind frameKind) io.Writer { return frameStream{w, kind} }

type frameStream struct {
	frames *frameWriter
	kind   frameKind
}

func (s frameStream) Write(p []byte) (int, error) {
	if err := s.frames.write(s.kind, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// readFrame returns the next frame, or io.EOF between two frames.
func readFrame(in io.Reader) (frameKind, []byte, error) {
	var header [5]byte
	if _, err := io.ReadFull(in, header[:]); err != nil {
		return 0, nil, err
	}
	size := binary.BigEndian.Uint32(header[1:])
	if size > maxFrame {
		return 0, nil, fmt.Errorf("frame %q of %d bytes, at most %d are allowed", header[0], size, maxFrame)
	}
	payload := make([]byte, size)
	if _, err := io.ReadFull(in, payload); err != nil {
		return 0, nil, fmt.Errorf("frame %q of %d bytes: %w", header[0], size, err)
	}
	return frameKind(header[0]), payload, nil
}
