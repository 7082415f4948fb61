// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A process is a server that runs until it is stopped.
type process struct {
	name   string
	cmd    *exec.Cmd
	input  io.Closer
	ready  chan string // the line that says it is
	ended  chan struct{}
	lock   sync.Mutex
	said   bytes.Buffer
	result error
}

// saidLimit bounds what is kept of a server's log, for the error.
const saidLimit = 16 << 10

// A program is what to start.
type program struct {
	root string // to chroot to, or empty
	path string
	args []string
	env  []string
	dir  string
	// ready begins or is in the line that says that it serves; or empty, for those who say nothing.
	ready string
}

func (p program) command(in *group) *exec.Cmd {
	command := exec.Command(p.path, p.args...)
	command.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp"}, p.env...)
	command.Dir = p.dir
	command.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(in.dir.Fd()), Chroot: p.root,
		Pdeathsig: syscall.SIGKILL}
	if p.root != "" {
		command.Dir = "/"
	}
	return command
}

// start returns when the program is ready.
func (p program) start(in *group) (*process, error) {
	s := &process{name: p.path + " " + strings.Join(p.args, " "), cmd: p.command(in), ready: make(chan string, 1), ended: make(chan struct{})}
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s.cmd.Stdout, s.cmd.Stderr = writer, writer
	if s.input, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	err = s.cmd.Start()
	writer.Close()
	if err != nil {
		reader.Close()
		return nil, fmt.Errorf("start %s: %w", s.name, err)
	}
	read := make(chan struct{})
	go func() { defer close(read); s.follow(reader, p.ready) }()
	go func() { s.result = s.cmd.Wait(); <-read; close(s.ended) }()
	return s, s.waitReady(p.ready)
}

// readyPatience is in the guest's time, of which nothing passes while it works, and much while it waits.
const readyPatience = 5 * time.Minute

func (s *process) waitReady(sign string) error {
	if sign == "" {
		return nil
	}
	select {
	case <-s.ready:
		return nil
	case <-s.ended:
		return s.trouble("ended before it was ready")
	case <-time.After(readyPatience):
		s.stop()
		return s.trouble(fmt.Sprintf("did not say %q", sign))
	}
}

func (s *process) follow(reader *os.File, sign string) {
	defer reader.Close()
	for lines := bufio.NewReader(reader); ; {
		line, err := lines.ReadString('\n')
		s.lock.Lock()
		if s.said.Len() < saidLimit {
			s.said.WriteString(line)
		}
		s.lock.Unlock()
		if sign != "" && strings.Contains(line, sign) {
			select {
			case s.ready <- line:
			default:
			}
		}
		if err != nil {
			return
		}
	}
}

func (s *process) trouble(what string) error {
	s.lock.Lock()
	defer s.lock.Unlock()
	return fmt.Errorf("%s %s: %s", s.name, what, strings.TrimSpace(s.said.String()))
}

// stop ends a server and waits for it.
func (s *process) stop() {
	s.input.Close()
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-s.ended:
	case <-time.After(time.Minute):
		_ = s.cmd.Process.Kill()
		<-s.ended
	}
}

// alive says whether a server still runs.
func (s *process) alive() error {
	select {
	case <-s.ended:
		return s.trouble(fmt.Sprintf("has ended (%v)", s.result))
	default:
		return nil
	}
}

// clientPatience ends a client of which nothing more is to be expected.
const clientPatience = 20 * time.Minute

// finish runs a program to its end and returns what it wrote.
func (p program) finish(in *group) ([]byte, error) {
	command := p.command(in)
	var output, said bytes.Buffer
	command.Stdout, command.Stderr = &output, &said
	if err := command.Start(); err != nil {
		return nil, err
	}
	overdue := time.AfterFunc(clientPatience, func() { _ = command.Process.Kill() })
	defer overdue.Stop()
	if err := command.Wait(); err != nil {
		return nil, fmt.Errorf("%s %s: %w: %.500s", p.path, strings.Join(p.args, " "), err, strings.TrimSpace(said.String()+output.String()))
	}
	return output.Bytes(), nil
}

var errNoPeer = errors.New("not on the disk of this run")
