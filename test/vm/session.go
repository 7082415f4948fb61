// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// A session connects this process's terminal and signals to the command in the guest.
type session struct {
	machine *machine
	escape  func() // called for ^]

	mu      sync.Mutex
	raw     *term.State // as the terminal was
	signals chan os.Signal
}

// escapeByte is ^], as in telnet: a machine that hangs leaves no other way to a person, as ^C belongs to the guest.
const escapeByte = 0x1d

// attach gives the command a terminal if we have one, and returns what it reads.
func (s *session) attach(input io.Reader) io.Reader {
	if !term.IsTerminal(int(os.Stdin.Fd())) || !term.IsTerminal(int(os.Stdout.Fd())) {
		s.machine.spec.Stdin = input != nil
		return input
	}
	s.machine.spec.Terminal = windowSize()
	return &escapeReader{from: os.Stdin, escape: s.escape}
}

func windowSize() *windowMessage {
	columns, rows, err := term.GetSize(int(os.Stdout.Fd()))
	if err != nil {
		return &windowMessage{Rows: 24, Cols: 80}
	}
	return &windowMessage{Rows: uint16(rows), Cols: uint16(columns)}
}

// start is called when the command runs. Until then ^C ends us, and SIGQUIT shows our own stacks.
func (s *session) start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.signals = make(chan os.Signal, 8)
	// go test sends SIGQUIT to a test binary that is out of time, and wants its stacks.
	signal.Notify(s.signals, syscall.SIGQUIT)
	if s.machine.spec.Terminal != nil {
		signal.Notify(s.signals, syscall.SIGWINCH)
		s.raw, _ = term.MakeRaw(int(os.Stdin.Fd())) // without it, typing is less comfortable and still works
	}
	go s.forward(s.signals)
}

func (s *session) forward(signals <-chan os.Signal) {
	for received := range signals {
		if received == syscall.SIGWINCH {
			_ = s.machine.out.writeJSON(frameWindow, windowSize()) // the guest may have ended
		} else {
			s.machine.signal(int(received.(syscall.Signal)))
		}
	}
}

// end gives the terminal back. It may be called twice.
func (s *session) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.raw != nil {
		_ = term.Restore(int(os.Stdin.Fd()), s.raw) // nothing to be done
		s.raw = nil
	}
	if s.signals != nil {
		signal.Stop(s.signals)
		close(s.signals)
		s.signals = nil
	}
}

// An escapeReader ends the machine at ^].
type escapeReader struct {
	from   io.Reader
	escape func()
}

func (r *escapeReader) Read(p []byte) (int, error) {
	n, err := r.from.Read(p)
	if at := bytes.IndexByte(p[:n], escapeByte); at >= 0 {
		r.escape()
		return at, io.EOF
	}
	return n, err
}

// watchReader calls gone when the other end of a pipe is closed: whoever reads our output has ended.
func watchReader(output *os.File, gone func()) {
	info, err := output.Stat()
	if err != nil || info.Mode()&(os.ModeNamedPipe|os.ModeSocket) == 0 {
		return
	}
	poll := []unix.PollFd{{Fd: int32(output.Fd())}}
	for {
		if _, err := unix.Poll(poll, -1); err == nil {
			gone()
			return
		} else if err != unix.EINTR {
			return
		}
	}
}

// watchParent calls gone when the go command that started us has ended without ending us: it was killed.
func watchParent(ctx context.Context, gone func()) {
	parent := os.Getppid()
	name, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(parent), "comm"))
	if err != nil || strings.TrimSpace(string(name)) != "go" {
		return // a shell may end before its background jobs
	}
	for ticker := time.NewTicker(500 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			ticker.Stop()
			return
		case <-ticker.C:
			if os.Getppid() != parent {
				gone()
			}
		}
	}
}
