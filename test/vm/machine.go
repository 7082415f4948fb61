// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Exit codes of ours. All others are the command's.
const (
	exitKernel  = 120 // the kernel panicked, warned or hung
	exitWatch   = 121 // kernel TLS broke a rule, says the watch
	exitTimeout = 124 // as timeout(1)
	exitMachine = 125 // the virtual machine could not be made, or ended without the command's status
)

// A machine is one run of one command in one virtual machine.
type machine struct {
	fetcher *fetcher
	images  *images
	spec    guestSpec
	hw      hardware
	files   *runFiles
	console console

	stdin          io.Reader // nil: none
	stdout, stderr io.Writer

	out     *frameWriter // to the guest
	started time.Time
	release string        // what the guest says it runs
	boot    time.Duration // from QEMU's start to the command's
	exit    *exitMessage
	ended   bool // the guest said that nothing follows
	onStart func()
	booting *time.Timer // ends the machine if it fires
}

// bootAttempts bounds how often a machine is booted that ends before the command has started.
const bootAttempts = 3

var (
	// errNotStarted: an emulated machine with several CPUs sometimes spins before its init runs.
	errNotStarted = errors.New("the command did not start in time")
	// errEmulatorDied: QEMU sometimes aborts while the guest's firmware or kernel places its devices and another CPU
	// reads one ("iotlb_to_section: Assertion").
	errEmulatorDied = errors.New("the emulator died before the command started")
)

// byePatience is how long QEMU may take to end when both sides have said goodbye.
const byePatience = 20 * time.Second

// run boots, runs the command and returns its exit code. An error comes with a code of ours. A machine that ends
// before the command has started, and not by what its kernel did, has done nothing yet, and is booted again.
func (m *machine) run(ctx context.Context) (int, error) {
	for attempt := 1; ; attempt++ {
		code, err := m.runOnce(ctx)
		if !errors.Is(err, errNotStarted) && !errors.Is(err, errEmulatorDied) || attempt == bootAttempts {
			return code, err
		}
		m.fetcher.progress.warn("booting again: %v", err)
		m.console.reset()
	}
}

func (m *machine) runOnce(ctx context.Context) (int, error) {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	initrd, err := m.initrd()
	if err != nil {
		return exitMachine, err
	}
	defer initrd.Close()
	consoleEnd, consoleHost, err := socketPair("console")
	if err != nil {
		return exitMachine, err
	}
	defer consoleHost.Close()
	portEnd, portHost, err := socketPair("port")
	if err != nil {
		return exitMachine, err
	}
	defer portHost.Close()
	command, err := m.fetcher.qemu(ctx, m.images.kernel, m.hw, consoleEnd, portEnd, initrd)
	if err != nil {
		return exitMachine, err
	}
	var said bytes.Buffer
	command.Stdout, command.Stderr = &said, &said
	m.started = time.Now()
	m.booting = time.AfterFunc(m.hw.bootPatience, func() { end(errNotStarted) })
	defer m.booting.Stop()
	err = command.Start()
	consoleEnd.Close()
	portEnd.Close()
	if err != nil && ctx.Err() != nil {
		return m.verdict(context.Cause(ctx), nil, nil, "")
	}
	if err != nil {
		return exitMachine, fmt.Errorf("start QEMU: %w", err)
	}
	talkErr := m.follow(ctx, command, consoleHost, portHost)
	return m.verdict(context.Cause(ctx), talkErr, command.ProcessState, said.String())
}

// follow talks to the guest until QEMU has ended.
func (m *machine) follow(ctx context.Context, command *exec.Cmd, consoleHost, portHost *os.File) error {
	read := make(chan struct{})
	go func() { defer close(read); m.console.read(consoleHost) }()
	m.out = &frameWriter{out: portHost}
	talked := make(chan error, 1)
	go func() {
		err := m.talk(portHost)
		if err != nil || ctx.Err() != nil {
			_ = command.Process.Kill() // it may have ended
		}
		time.AfterFunc(byePatience, func() { _ = command.Process.Kill() })
		talked <- err
	}()
	_ = command.Wait() // the status says it; that of a killed QEMU is of no interest
	<-read
	return <-talked
}

// talk serves the guest's frames until it says that nothing follows.
func (m *machine) talk(port io.Reader) error {
	for {
		kind, payload, err := readFrame(port)
		if err != nil {
			return nil // QEMU has ended; the verdict tells why
		}
		if kind == frameEnd {
			m.ended = true
			if err := m.files.finishGets(); err != nil {
				return errors.Join(err, m.out.write(frameBye, nil))
			}
			return m.out.write(frameBye, nil)
		}
		if err := m.serve(kind, payload); err != nil {
			return err
		}
	}
}

func (m *machine) serve(kind frameKind, payload []byte) error {
	var err error
	switch kind {
	case frameStarted:
		m.booting.Stop()
		m.boot = time.Since(m.started)
		var message startedMessage
		err = json.Unmarshal(payload, &message)
		m.release = message.Release
		if m.onStart != nil {
			m.onStart()
		}
		if m.stdin != nil {
			go m.sendStdin()
		}
	case frameStdout:
		_, err = m.stdout.Write(payload)
	case frameStderr:
		_, err = m.stderr.Write(payload)
	case frameKernel:
		m.console.readLog(string(payload))
	case frameExit:
		m.exit = &exitMessage{}
		err = json.Unmarshal(payload, m.exit)
	case frameArchive:
		err = m.files.receive(payload)
	default:
		err = fmt.Errorf("the guest sent a frame of unknown kind %q", kind)
	}
	return err
}

func (m *machine) sendStdin() {
	// A guest that has ended reads no more, and that is no error of ours.
	_, _ = io.CopyBuffer(m.out.stream(frameStdin), struct{ io.Reader }{m.stdin}, make([]byte, maxFrame/2))
	_ = m.out.write(frameEOF, nil)
}

// signal passes one on to the command in the guest.
func (m *machine) signal(number int) {
	if m.out != nil {
		_ = m.out.writeJSON(frameSignal, signalMessage{Number: number}) // the guest may have ended
	}
}

// verdict maps how things ended to an exit code. Only a machine whose init ended it, after a status, counts as one that
// ran the command.
func (m *machine) verdict(cause, talkErr error, state *os.ProcessState, said string) (int, error) {
	problems, tail := m.console.report()
	var signal *signalError
	switch {
	case errors.As(cause, &signal):
		return 128 + int(signal.signal), cause
	case errors.Is(cause, errNotStarted):
		return exitMachine, fmt.Errorf("%w: %w", errNotStarted, m.trouble("after "+m.hw.bootPatience.String(), problems, tail))
	case errors.Is(cause, context.DeadlineExceeded):
		return exitTimeout, m.trouble("timeout: the virtual machine was ended", problems, tail)
	case cause != nil:
		return exitMachine, cause
	case len(problems) > 0:
		return exitKernel, m.trouble("the kernel is in trouble", problems, tail)
	case talkErr != nil:
		return exitMachine, talkErr
	case m.boot == 0 && aborted(state):
		return exitMachine, fmt.Errorf("%w: %w", errEmulatorDied, m.trouble(fmt.Sprintf("QEMU: %v, %s", state, said), nil, tail))
	case m.exit == nil || !m.ended:
		return exitMachine, m.trouble(fmt.Sprintf("the guest ended without the command's status (QEMU: %v) %s", state, said),
			nil, tail)
	case state.ExitCode() != debugExitStatus && !(m.exit.Locked && state.ExitCode() == 0):
		return exitMachine, m.trouble(fmt.Sprintf("the guest did not end by itself (QEMU: %v) %s", state, said), nil, tail)
	case m.exit.Error != "":
		return m.exit.Code, errors.New(m.exit.Error)
	}
	return m.exit.Code, nil
}

// aborted says whether a process ended by a fault of its own, and not because somebody killed it.
func aborted(state *os.ProcessState) bool {
	status, ok := state.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && (status.Signal() == unix.SIGABRT || status.Signal() == unix.SIGSEGV)
}

// trouble is an error with the end of the console in it.
func (m *machine) trouble(what string, problems, tail []string) error {
	var text strings.Builder
	fmt.Fprintf(&text, "%s on kernel %s", strings.TrimSpace(what), m.images.kernel.Release)
	for _, problem := range problems {
		fmt.Fprintf(&text, "\n\t%s", problem)
	}
	if m.boot == 0 {
		text.WriteString("\n\tthe command had not started")
	}
	if len(tail) > 0 {
		fmt.Fprintf(&text, "\nthe console's end:\n\t%s", strings.Join(tail, "\n\t"))
	}
	return errors.New(text.String())
}

// socketPair returns QEMU's end and ours. Ours is pollable, so that a Close ends a Read.
func socketPair(name string) (theirs, ours *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	if err := unix.SetNonblock(fds[1], true); err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name), nil
}
