// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/blob/handoff"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// envPrisoner holds a prisoner, and the name of its attempt is envAttempt.
const envPrisoner = "OFFLOADD_TEST_PRISONER"

// What is no attempt: a victim that only waits, and the start of a worker.
const (
	victimAttempt  = "wait"
	nothingAttempt = "nothing"
)

func allAttempts() map[string]attempt {
	all := descriptorAttempts()
	maps.Copy(all, processAttempts())
	maps.Copy(all, landlockAttempts(0))
	maps.Copy(all, honestWork())
	return all
}

// prisonerProcess is a worker that makes an attempt instead of handshakes, and writes
// its outcome to standard output.
func prisonerProcess(env *environment, name string) int {
	if name == victimAttempt {
		io.Copy(io.Discard, os.Stdin)
		return 0
	}
	var p prisoner
	err := json.Unmarshal([]byte(os.Getenv(envPrisoner)), &p)
	if err == nil {
		err = p.prepare()
	}
	if err != nil {
		fmt.Fprintln(env.stderr, err)
		return 1
	}
	channel, err := prisonerChannel(env)
	if err != nil {
		fmt.Fprintln(env.stderr, err)
		return 1
	}
	_, sock, err := channel.Receive()
	if err != nil {
		fmt.Fprintln(env.stderr, err)
		return 1
	}
	conn, err := net.FileConn(sock) // as a worker does
	if err != nil {
		fmt.Fprintln(env.stderr, err)
		return 1
	}
	defer conn.Close()
	p.TCP = int(sock.Fd())
	outcome := succeeds
	var errno unix.Errno
	if err := allAttempts()[name].do(&p); errors.As(err, &errno) {
		outcome = unix.ErrnoName(errno)
	} else if err != nil {
		outcome = err.Error()
	}
	fmt.Fprint(env.stdout, outcome)
	return 0
}

// prisonerChannel enters the confinement of the role.
func prisonerChannel(env *environment) (*handoff.Conn, error) {
	if os.Args[1] == "relay" {
		r, err := newRelay(env)
		if err != nil {
			return nil, err
		}
		return r.channel, nil
	}
	w, err := newWorker(env)
	if err != nil {
		return nil, err
	}
	return w.channel, nil
}

// prison starts processes that make attempts.
type prison struct {
	prisoner
	connection *ktlstest.Pair
	environ    []string
	role       string // handshake or relay
}

func newPrison(t testing.TB, daemon int) *prison {
	t.Helper()
	p := &prison{connection: ktlstest.Installed(t, blob.TLS_AES_128_GCM_SHA256), environ: []string{envRole + "=1"}, role: "handshake"}
	p.Daemon, p.Abstract = daemon, fmt.Sprintf("@offloadd-test-%d", os.Getpid())
	abstract, err := net.Listen("unix", p.Abstract)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { abstract.Close() })
	p.Port = ktlstest.Listen(t).Addr().(*net.TCPAddr).Port
	victim := exec.Command("/proc/self/exe", "handshake")
	victim.Env = append(p.environ, envAttempt+"="+victimAttempt)
	hold, err := victim.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := startUnprivileged(victim, 60601, 60601); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		hold.Close()
		victim.Wait()
	})
	p.Victim = victim.Process.Pid
	return p
}

// outcome makes an attempt in a process of its own.
func (p *prison) outcome(t testing.TB, name, leaveOut string) (outcome, stderr string) {
	t.Helper()
	channel, theirs, err := handoff.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer channel.Close()
	about, err := json.Marshal(p.prisoner)
	if err != nil {
		t.Fatal(err)
	}
	var out, words bytes.Buffer
	cmd := exec.CommandContext(testContext(t), "/proc/self/exe", p.role)
	cmd.Env = append(p.environ, envAttempt+"="+name, envLeaveOut+"="+leaveOut, envPrisoner+"="+string(about))
	cmd.Stdout, cmd.Stderr = &out, &words
	cmd.ExtraFiles = []*os.File{theirs}
	err = startUnprivileged(cmd, 60601, 60601)
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	cookie, err := handoff.Cookie(p.connection.Server)
	if err != nil {
		t.Fatal(err)
	}
	sent := channel.Send(&handoff.Message{Type: handoff.Handshake, Cookie: cookie, Body: []byte("test")}, p.connection.Server)
	ended := cmd.Wait()
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case status.Signaled() && status.Signal() == syscall.SIGSYS:
		return killed, words.String()
	case ended != nil:
		return fmt.Sprint(ended), words.String()
	case sent != nil:
		t.Fatalf("%v; %s", sent, words.String())
	}
	return out.String(), words.String()
}

// without is all of the confinement, for envLeaveOut.
const without = partSeccomp + "," + partLandlock

// TestAWorkerThatWasTakenOverCanDoNothingElse: each attempt ends it or gets an errno,
// and without the confinement goes otherwise.
func TestAWorkerThatWasTakenOverCanDoNothingElse(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: "workers = 1"})
	p := newPrison(t, d.cmd.Process.Pid)
	attempts := descriptorAttempts()
	maps.Copy(attempts, processAttempts())
	for name, a := range attempts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got, words := p.outcome(t, name, ""); got != a.confined {
				t.Errorf("confined: %s, want %s\n%s", got, a.confined, words)
			}
			if got, words := p.outcome(t, name, without); got != a.free {
				t.Errorf("without confinement: %s, want %s\n%s", got, a.free, words)
			}
		})
	}
}

// TestARelayThatWasTakenOverCanDoNothingElse: what a worker cannot do, but for a pair of unix
// streams.
func TestARelayThatWasTakenOverCanDoNothingElse(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: "workers = 1"})
	p := newPrison(t, d.cmd.Process.Pid)
	p.role = "relay"
	attempts := descriptorAttempts()
	maps.Copy(attempts, processAttempts())
	for name, a := range attempts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got, words := p.outcome(t, name, ""); got != a.confined {
				t.Errorf("confined: %s, want %s\n%s", got, a.confined, words)
			}
		})
	}
}

// TestLandlockAloneKeepsAWorkerIn: the second fence holds where the first has a hole.
func TestLandlockAloneKeepsAWorkerIn(t *testing.T) {
	requireDaemon(t)
	abi, err := landlockABI()
	if err != nil {
		if ktlstest.InVM() {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	t.Logf("Landlock ABI %d", abi)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: "workers = 1"})
	p := newPrison(t, d.cmd.Process.Pid)
	for name, a := range landlockAttempts(abi) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got, words := p.outcome(t, name, partSeccomp); got != a.confined {
				t.Errorf("with Landlock: %s, want %s\n%s", got, a.confined, words)
			}
			if got, words := p.outcome(t, name, without); got != a.free {
				t.Errorf("without: %s, want %s\n%s", got, a.free, words)
			}
		})
	}
}

// TestAConfinedWorkerCanDoItsWork: what the Go runtime does under load.
func TestAConfinedWorkerCanDoItsWork(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: "workers = 1"})
	p := newPrison(t, d.cmd.Process.Pid)
	for name, a := range honestWork() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, words := p.outcome(t, name, "")
			if got != a.confined || strings.Contains(name, "panic") && !strings.Contains(words, panicWords) {
				t.Errorf("%s, want %s\n%s", got, a.confined, words)
			}
		})
	}
}
