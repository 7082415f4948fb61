// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// said collects what a program writes.
type said struct {
	mu   sync.Mutex
	data bytes.Buffer
	seen int // up to where wait has looked
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.data.Write(p)
}

func (s *said) bytes() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.data.Bytes())
}

func (s *said) text() string { return string(s.bytes()) }

// wait waits for a text behind the one that it waited for before.
func (s *said) wait(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		all := s.text()
		if i := strings.Index(all[s.seen:], text); i >= 0 {
			s.seen += i + len(text)
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %q behind byte %d of:\n%s", text, s.seen, all)
		}
	}
}

// runningProgram is an application that is a process.
type runningProgram struct {
	t   *testing.T
	cmd *exec.Cmd
	out said
}

// startProgram starts an application in a directory, and ends it with the test.
func startProgram(t *testing.T, dir string, command []string) *runningProgram {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	p := &runningProgram{t: t, cmd: cmd}
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &p.out, &p.out
	cmd.Env = append(os.Environ(), envRole+"=1")
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		cmd.Wait()
		if t.Failed() {
			t.Logf("the program said:\n%s", p.out.text())
		}
	})
	return p
}

// stop ends it.
func (p *runningProgram) stop() {
	p.cmd.Process.Signal(unix.SIGTERM)
	p.cmd.Wait() // the tests that look at its status do not stop it
}

func (p *runningProgram) wait(text string) { p.t.Helper(); p.out.wait(p.t, text) }
