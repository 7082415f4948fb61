// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// ended is the state of a process that ended as this shell script does.
func ended(t *testing.T, script string) *os.ProcessState {
	t.Helper()
	command := exec.Command("sh", "-c", script)
	_ = command.Run() // a code that is not zero is an error
	return command.ProcessState
}

func TestVerdict(t *testing.T) {
	tests := map[string]struct {
		console    string
		exit       *exitMessage
		unfinished bool
		qemu       int
		cause      error
		talk       error
		code       int
		says       string // empty: no error
	}{
		"success":              {exit: &exitMessage{}, qemu: debugExitStatus, code: 0},
		"the command's code":   {exit: &exitMessage{Code: 3}, qemu: debugExitStatus, code: 3},
		"255":                  {exit: &exitMessage{Code: 255}, qemu: debugExitStatus, code: 255},
		"not found":            {exit: &exitMessage{Code: 127, Error: "no such file"}, qemu: debugExitStatus, code: 127, says: "no such file"},
		"panic looks like 0":   {console: "Kernel panic - not syncing: sysrq\n", qemu: 0, code: exitKernel, says: "Kernel panic"},
		"silent death":         {qemu: 0, code: exitMachine, says: "without the command's status"},
		"death after status":   {exit: &exitMessage{}, qemu: 0, code: exitMachine, says: "did not end by itself"},
		"locked down":          {exit: &exitMessage{Locked: true}, qemu: 0, code: 0},
		"locked down and dead": {exit: &exitMessage{Locked: true}, unfinished: true, qemu: 0, code: exitMachine, says: "without"},
		"death before the end": {exit: &exitMessage{}, unfinished: true, qemu: debugExitStatus, code: exitMachine, says: "without"},
		"warning":              {console: "[    1.2] WARNING: CPU: 0\n", exit: &exitMessage{}, qemu: debugExitStatus, code: exitKernel, says: "WARNING: CPU: 0"},
		"timeout":              {cause: context.DeadlineExceeded, qemu: 0, code: exitTimeout, says: "timeout"},
		"hung boot":            {cause: errNotStarted, code: exitMachine, says: "did not start in time"},
		"SIGTERM":              {cause: &signalError{syscall.SIGTERM}, code: 143, says: "terminated"},
		"abandoned":            {cause: errAbandoned, code: exitMachine, says: "nobody"},
		"write error":          {talk: errors.New("disk full"), exit: &exitMessage{}, qemu: debugExitStatus, code: exitMachine, says: "disk full"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			m := &machine{images: &images{kernel: &kernel{Release: "6.0-test"}}, exit: test.exit, ended: test.exit != nil && !test.unfinished}
			m.console.read(strings.NewReader(test.console))
			code, err := m.verdict(test.cause, test.talk, ended(t, "exit "+strconv.Itoa(test.qemu)), "")
			if code != test.code {
				t.Errorf("code %d, want %d", code, test.code)
			}
			if (err == nil) != (test.says == "") || (err != nil && !strings.Contains(err.Error(), test.says)) {
				t.Errorf("error %v, want one that says %q", err, test.says)
			}
		})
	}
}

func TestAnEmulatorThatDiesBeforeTheCommandStartsIsAReasonToBootAgain(t *testing.T) {
	tests := map[string]struct {
		script  string
		console string
		boot    time.Duration
		again   bool
	}{
		"aborted":                         {script: "kill -ABRT $$", again: true},
		"segmentation fault":              {script: "kill -SEGV $$", again: true},
		"aborted while the command ran":   {script: "kill -ABRT $$", boot: time.Second},
		"killed by somebody":              {script: "kill -KILL $$"},
		"ended by itself":                 {script: "exit 1"},
		"aborted when the kernel was ill": {script: "kill -ABRT $$", console: "Kernel panic - not syncing\n"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			m := &machine{images: &images{kernel: &kernel{Release: "6.0-test"}}, boot: test.boot}
			m.console.read(strings.NewReader(test.console))
			code, err := m.verdict(nil, nil, ended(t, test.script), "Assertion failed")
			if code == 0 || err == nil {
				t.Fatalf("code %d, error %v", code, err)
			}
			if errors.Is(err, errEmulatorDied) != test.again {
				t.Errorf("booted again: %v, want %v: %v", !test.again, test.again, err)
			}
		})
	}
}

func TestConsole(t *testing.T) {
	troubled := []string{
		"[    1.000000] BUG: kernel NULL pointer dereference, address: 0000000000000000",
		"[    1.000000] WARNING: CPU: 0 PID: 1 at net/tls/tls_main.c:1 tls_init+0x1",
		"[    1.000000] Oops: 0000 [#1] PREEMPT SMP",
		"[    1.000000] refcount_t: underflow; use-after-free.",
		"[    1.000000] INFO: task ktls.test:99 blocked for more than 120 seconds.",
		"[    1.000000] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
		"[    1.000000] watchdog: BUG: soft lockup - CPU#0 stuck for 22s!",
		"[    1.000000] general protection fault, probably for non-canonical address",
		"Kernel panic - not syncing: Attempted to kill init!",
	}
	for _, line := range troubled {
		c := &console{}
		c.read(strings.NewReader("fine\r\n" + line + "\r\n"))
		if problems, tail := c.report(); len(problems) != 1 || len(tail) != 2 {
			t.Errorf("%q: problems %q, tail %q", line, problems, tail)
		}
	}
	c := &console{ignore: []*regexp.Regexp{regexp.MustCompile("^WARNING: expected")}}
	c.read(strings.NewReader("DEBUG: no\nTLS: warning of nothing\n[ 1.5] WARNING: expected\n[ 2.5] BUG: once\n"))
	c.readLog("BUG: once\nBUG: late\n")
	if problems, _ := c.report(); strings.Join(problems, "|") != "BUG: once|BUG: late" {
		t.Errorf("problems %q", problems)
	}
}

func TestFrames(t *testing.T) {
	var stream bytes.Buffer
	out := &frameWriter{out: &stream}
	long := bytes.Repeat([]byte{0, '\r', '\n', 255}, maxFrame/2)
	if _, err := out.stream(frameStdout).Write(long); err != nil {
		t.Fatal(err)
	}
	if err := out.write(frameEnd, nil); err != nil {
		t.Fatal(err)
	}
	var got []byte
	for {
		kind, payload, err := readFrame(&stream)
		if err != nil {
			t.Fatal(err)
		}
		if kind == frameEnd {
			break
		}
		got = append(got, payload...)
	}
	if !bytes.Equal(got, long) {
		t.Errorf("%d bytes arrived, %d were sent", len(got), len(long))
	}
	if _, _, err := readFrame(&stream); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	if _, _, err := readFrame(strings.NewReader("o\xff\xff\xff\xff")); err == nil {
		t.Error("a frame of 4 GiB is accepted")
	}
	if _, _, err := readFrame(strings.NewReader("o\x00\x00\x00\x02x")); err == nil || err == io.EOF {
		t.Errorf("a short frame gives %v", err)
	}
}

func TestKernelMessage(t *testing.T) {
	record := "6,339,5140900,-;NET: Registered PF_VSOCK; family\n SUBSYSTEM=net\n"
	if got, want := kernelMessage(record), "NET: Registered PF_VSOCK; family"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
