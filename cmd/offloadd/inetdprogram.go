// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/blob/handoff"
	"github.com/offloadd/offloadd/ktls"
)

// launcher runs a program for each connection.
type launcher struct {
	path        string
	args        []string
	stderr      io.Writer
	log         *slog.Logger
	connections *handoff.Listener
	slots       chan struct{} // one for each program that runs
}

// serve runs the program for one connection, and ends the connection as the program did.
func (l *launcher) serve(running context.Context, s *handoff.Socket) {
	log := l.log.With("socket", s.Cookie, "peer", s.RemoteAddr())
	began := time.Now()
	q := &questioned{socket: s, log: log}
	err := l.runProgram(running, s, q)
	end := resetConnection
	switch {
	case q.over.Load():
		end = (*handoff.Socket).Close // the peer knows already
	case err == nil:
		end = closeConnection
	}
	args := []any{"seconds", time.Since(began).Seconds()}
	if err != nil {
		args = append(args, "error", err)
	}
	if err := end(s); err != nil {
		args = append(args, "close", err)
	}
	log.Info("program ended", args...)
}

// runProgram returns nil if the program ended with status 0.
func (l *launcher) runProgram(running context.Context, s *handoff.Socket, q *questioned) error {
	file, err := s.File()
	if err != nil {
		return err
	}
	defer file.Close()
	pipes, err := openQuestionPipes()
	if err != nil {
		return err
	}
	defer pipes.close()
	cmd := exec.CommandContext(running, l.path)
	cmd.Args, cmd.Env = l.args, append(append(os.Environ(), connectionEnvironment(s)...), pipes.environment())
	// Of these files exec makes the descriptors blocking, as programs expect them.
	cmd.Stdin, cmd.Stdout, cmd.Stderr = file, file, l.stderr
	cmd.ExtraFiles = []*os.File{pipes.answers, pipes.questions}
	// A group of its own: a ^C at the terminal is for us, and a kill for all of the group.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second // for a stderr that is no file
	if err := cmd.Start(); err != nil {
		return err
	}
	answered := make(chan struct{})
	go func() { defer close(answered); q.serve(pipes.fromProgram, pipes.toProgram) }()
	err = cmd.Wait()
	pipes.close() // what the program left behind may hold its ends
	<-answered
	return errors.Join(err, nonblocking(s))
}

// nonblocking undoes what exec did to the description that we share with the program.
func nonblocking(s *handoff.Socket) (err error) {
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) { err = unix.SetNonblock(int(fd), true) })
	return errors.Join(cerr, err)
}

// closeConnection says that nothing more comes, and loses nothing.
func closeConnection(s *handoff.Socket) error {
	c, err := ktls.NewConn(s)
	if err != nil {
		return errors.Join(err, resetConnection(s))
	}
	return c.Close()
}

func resetConnection(s *handoff.Socket) error { return errors.Join(s.SetLinger(0), s.Close()) }

// connectionEnvironment tells a program what was agreed.
func connectionEnvironment(s *handoff.Socket) []string {
	f := s.Facts
	verified, peer := "0", ""
	if f.PeerVerified {
		verified = "1"
	}
	if len(f.PeerCertificates) > 0 {
		peer = fingerprint(f.PeerCertificates[0])
	}
	return []string{
		"OFFLOADD_PEER=" + s.RemoteAddr().String(),
		"OFFLOADD_LOCAL=" + s.LocalAddr().String(),
		fmt.Sprintf("OFFLOADD_COOKIE=%d", s.Cookie),
		fmt.Sprintf("OFFLOADD_VERSION=%v", f.Version),
		fmt.Sprintf("OFFLOADD_SUITE=%v", f.Suite),
		"OFFLOADD_ALPN=" + f.ALPN,
		"OFFLOADD_SERVER_NAME=" + f.ServerName,
		"OFFLOADD_PEER_VERIFIED=" + verified,
		"OFFLOADD_PEER_SHA256=" + peer,
	}
}

func fingerprint(certificate []byte) string {
	sum := sha256.Sum256(certificate)
	return hex.EncodeToString(sum[:])
}
