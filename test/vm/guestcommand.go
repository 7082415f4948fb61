// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/test/vm/watch"
)

// A guestCommand is the command that a machine was started for.
type guestCommand struct {
	spec *guestSpec
	out  *frameWriter
	bye  chan struct{} // closed when the host has read everything

	pid      int
	stdin    *os.File // our end
	terminal *os.File
	pumps    sync.WaitGroup
}

// Exit codes of shells for commands that cannot be run.
const (
	exitNotExecutable = 126
	exitNotFound      = 127
)

// drainPatience is how long output may keep coming after every process was killed.
const drainPatience = 10 * time.Second

// run returns the command's exit code when its output has been sent.
func (c *guestCommand) run(port io.Reader) (int, error) {
	program, err := c.lookUp()
	if err != nil {
		return exitNotFound, err
	}
	if err := os.MkdirAll(c.spec.Dir, 0o755); err != nil {
		return exitNotExecutable, err
	}
	files, err := c.openFiles()
	if err != nil {
		return exitMachine, err
	}
	process, err := os.StartProcess(program, c.spec.Args, &os.ProcAttr{
		Dir: c.spec.Dir, Env: c.spec.Env, Files: files,
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: c.terminal != nil},
	})
	for _, file := range files {
		file.Close()
	}
	if err != nil {
		return exitNotExecutable, err
	}
	c.pid = process.Pid
	go c.receive(port) // not earlier: what the host sends needs somewhere to go
	code := reapUntil(process.Pid)
	_ = unix.Kill(-1, unix.SIGKILL) // what the command left behind holds its output open; ESRCH if there is nothing
	c.drain()
	return code, nil
}

// runWatched is run with a witness of kernel TLS beside it, if that is wanted. A command that did well has failed if
// the witness says so.
func (c *guestCommand) runWatched(port io.Reader) (int, error) {
	if !c.spec.Watch {
		return c.run(port)
	}
	witness, err := watch.Start()
	if err != nil {
		return exitMachine, err
	}
	code, err := c.run(port)
	report := witness.Finish()
	fmt.Fprintf(c.out.stream(frameStderr), "%s%v\n", watchPrefix, report)
	found := report.Err()
	if code == 0 && found != nil {
		code = exitWatch
	}
	return code, errors.Join(err, found)
}

// lookUp searches the command's PATH, not init's.
func (c *guestCommand) lookUp() (string, error) {
	for _, variable := range c.spec.Env {
		if name, value, _ := strings.Cut(variable, "="); name == "PATH" {
			os.Setenv(name, value)
		}
	}
	program, err := exec.LookPath(c.spec.Args[0])
	if err != nil && !errors.Is(err, exec.ErrDot) {
		return "", fmt.Errorf("%w in the guest (add it with --file, or its package in packages.go)", err)
	}
	return program, nil
}

// openFiles makes the command's three descriptors, and starts copying from them.
func (c *guestCommand) openFiles() ([]*os.File, error) {
	if c.spec.Terminal != nil {
		return c.openTerminal()
	}
	stdin, err := os.Open(os.DevNull)
	if c.spec.Stdin {
		stdin, c.stdin, err = os.Pipe()
	}
	if err != nil {
		return nil, err
	}
	files := []*os.File{stdin}
	for _, kind := range []frameKind{frameStdout, frameStderr} {
		reader, writer, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		files = append(files, writer)
		c.pump(kind, reader)
	}
	return files, nil
}

func (c *guestCommand) openTerminal() ([]*os.File, error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		return nil, fmt.Errorf("open a terminal: %w", err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return nil, fmt.Errorf("unlock a terminal: %w", err)
	}
	slave, err := os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	c.terminal, c.stdin = master, master
	c.resize(*c.spec.Terminal)
	c.pump(frameStdout, master)
	return []*os.File{slave, slave, slave}, nil
}

func (c *guestCommand) pump(kind frameKind, from *os.File) {
	c.pumps.Go(func() {
		// A terminal ends with EIO. If the host does not read any more, there is nobody to tell.
		_, _ = io.CopyBuffer(struct{ io.Writer }{c.out.stream(kind)}, struct{ io.Reader }{from}, make([]byte, maxFrame/2))
	})
}

// drain waits until all output was sent.
func (c *guestCommand) drain() {
	done := make(chan struct{})
	go func() { c.pumps.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(drainPatience):
		writeKernelLog("offloadd-vm init: output still open after all processes were killed")
	}
}

// reapUntil waits for all children, as pid 1 must, until the one with this pid ends.
func reapUntil(pid int) int {
	for {
		var status syscall.WaitStatus
		ended, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err != nil && err != syscall.EINTR:
			return exitMachine // cannot be: our child is not reaped by anyone else
		case ended == pid && status.Signaled():
			return 128 + int(status.Signal())
		case ended == pid && status.Exited():
			return status.ExitStatus()
		}
	}
}

// receive serves what the host sends.
func (c *guestCommand) receive(port io.Reader) {
	for {
		kind, payload, err := readFrame(port)
		if err != nil {
			writeKernelLog("offloadd-vm init: the host's stream broke: " + err.Error())
			return
		}
		if kind == frameBye {
			close(c.bye)
			return
		}
		c.serve(kind, payload)
	}
}

func (c *guestCommand) serve(kind frameKind, payload []byte) {
	var window windowMessage
	var signal signalMessage
	switch {
	case kind == frameStdin && c.stdin != nil:
		_, _ = c.stdin.Write(payload) // the command may have closed it
	case kind == frameEOF && c.terminal != nil:
		_, _ = c.terminal.Write([]byte{4}) // ^D
	case kind == frameEOF && c.stdin != nil:
		_ = c.stdin.Close()
	case kind == frameWindow && json.Unmarshal(payload, &window) == nil && c.terminal != nil:
		c.resize(window)
	case kind == frameSignal && json.Unmarshal(payload, &signal) == nil:
		_ = unix.Kill(c.pid, syscall.Signal(signal.Number)) // it may just have ended
	}
}

func (c *guestCommand) resize(window windowMessage) {
	_ = unix.IoctlSetWinsize(int(c.terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: window.Rows, Col: window.Cols})
}

// sendFiles writes the wanted files and directories as one tar stream, each under its number in the list. What does
// not exist is left out: the host knows whether that is an error.
func sendFiles(out io.Writer, wanted []string) error {
	if len(wanted) == 0 {
		return nil
	}
	archive := tar.NewWriter(out)
	for number, root := range wanted {
		err := filepath.WalkDir(root, func(at string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return sendFile(archive, path.Join(strconv.Itoa(number), strings.TrimPrefix(at, root)), at, entry)
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("send %s: %w", root, err)
		}
	}
	return archive.Close()
}

func sendFile(archive *tar.Writer, name, at string, entry fs.DirEntry) error {
	info, err := entry.Info()
	if err != nil || !(info.IsDir() || info.Mode().IsRegular()) {
		return err
	}
	header, err := tar.FileInfoHeader(info, "")
	if err != nil {
		return err
	}
	header.Name = name
	if err := archive.WriteHeader(header); err != nil || info.IsDir() {
		return err
	}
	file, err := os.Open(at)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.CopyN(archive, file, info.Size())
	return err
}
