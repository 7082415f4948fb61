// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/offloadd/offloadd/bpf/adversary"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// envProcess makes the test binary be another process than the tests: one of processes.
const envProcess = "OFFLOADD_BPF_PROCESS"

// A process prints a line of JSON when it is ready, and ends when its standard input does.
func processes() map[string]func() any {
	return map[string]func() any{
		"attacker": attackerProcess,
		"spinner":  spinnerProcess,
		"victim":   victimProcess,
		"intruder": intruderProcess,
		"executor": executorProcess,
		"loader":   loaderProcess,
		"daemon":   daemonProcess,
	}
}

func TestMain(m *testing.M) {
	adversary.Main()       // in the process of an attacker it does not return
	runtime.LockOSThread() // so that it is the process's first thread that runs the process of a test
	name := os.Getenv(envProcess)
	if name == "" {
		os.Exit(m.Run())
	}
	if err := json.NewEncoder(os.Stdout).Encode(processes()[name]()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// A peer is another process of ours.
type peer struct {
	*exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Reader
	pidfd int
}

// start starts a process with arguments and files (as descriptors 3 and on) as a user. It is killed with the test.
func start(t *testing.T, name string, uid uint32, files []*os.File, arguments ...string) *peer {
	t.Helper()
	p := &peer{Cmd: exec.Command("/proc/self/exe", arguments...), pidfd: -1}
	p.Env = append(os.Environ(), envProcess+"="+name)
	p.Stderr = os.Stderr
	p.ExtraFiles = files
	p.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, PidFD: &p.pidfd, Pdeathsig: syscall.SIGKILL}
	var err error
	if p.stdin, err = p.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.lines = bufio.NewReader(stdout)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.kill()
		syscall.Close(p.pidfd)
	})
	return p
}

// read waits for the process's next line.
func (p *peer) read(t *testing.T, into any) {
	t.Helper()
	line, err := p.lines.ReadBytes('\n')
	if err != nil {
		t.Fatalf("%v: %v", p.Args, err)
	}
	if err := json.Unmarshal(line, into); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
}

func (p *peer) kill() {
	_ = p.Process.Kill()
	_ = p.Wait()
}

// require skips a test where BPF programs cannot be loaded, which fails under the VM runner.
func require(t *testing.T) {
	t.Helper()
	if !ktlstest.InVM() {
		t.Skip("this loads BPF programs into the kernel: run it with test/vm")
	}
}

// formsHere are those that act on this kernel.
func formsHere() []Form {
	if lsmActive() {
		return []Form{FormLSM, FormModifyReturn}
	}
	return []Form{FormModifyReturn}
}

// load loads everything, and unloads it with the test.
func load(t *testing.T, form Form) *Guard {
	t.Helper()
	if _, err := Load(Options{Form: form}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Unload(""); err != nil {
			t.Error(err)
		}
	})
	g, err := OpenGuard("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	if form != "" && g.Form() != form {
		t.Errorf("the guard says its form is %s", g.Form())
	}
	return g
}
