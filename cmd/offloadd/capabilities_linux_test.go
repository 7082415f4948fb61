// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// statusOf reads /proc/PID/status of each thread.
func statusOf(t *testing.T, pid int) (threads []map[string]string) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(files) == 0 {
		t.Fatalf("no threads of %d: %v", pid, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if os.IsNotExist(err) {
			continue // it has just ended
		}
		if err != nil {
			t.Fatal(err)
		}
		status := map[string]string{}
		for line := range strings.Lines(string(b)) {
			name, value, _ := strings.Cut(line, ":")
			status[name] = strings.Join(strings.Fields(value), " ")
		}
		threads = append(threads, status)
	}
	return threads
}

// TestProcessesHaveNothingThatTheyDoNotNeed: what the kernel says of each thread of
// the daemon and of a worker.
func TestProcessesHaveNothingThatTheyDoNotNeed(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: "workers = 1"})
	d.serveApplication(echo)
	d.mustEcho()
	var table uint64
	for _, c := range daemonCapabilities() {
		table |= 1 << c.value
		if c.reason == "" {
			t.Errorf("%v has no reason", c.value)
		}
	}
	kept, none := fmt.Sprintf("%016x", table), fmt.Sprintf("%016x", 0)
	worker := int(d.wait("worker ready").number("worker_pid"))
	for _, c := range []struct {
		name string
		pid  int
		want map[string]string
	}{
		{"daemon", d.cmd.Process.Pid, map[string]string{
			"CapInh": none, "CapPrm": kept, "CapEff": kept, "CapBnd": kept, "CapAmb": none, "NoNewPrivs": "1"}},
		{"worker", worker, map[string]string{
			"CapInh": none, "CapPrm": none, "CapEff": none, "CapBnd": kept, "CapAmb": none, "NoNewPrivs": "1",
			"Seccomp": "2", "Seccomp_filters": "1", "Groups": "",
			"Uid": "60601 60601 60601 60601", "Gid": "60601 60601 60601 60601"}},
	} {
		for i, status := range statusOf(t, c.pid) {
			for name, want := range c.want {
				if status[name] != want {
					t.Errorf("%s, thread %d: %s is %q, want %q", c.name, i, name, status[name], want)
				}
			}
			locked, _, _ := strings.Cut(status["VmLck"], " ")
			if kB, err := strconv.Atoi(locked); err != nil || kB == 0 {
				t.Errorf("%s: locked memory is %q", c.name, status["VmLck"])
			}
		}
		// The files of a process that is not dumpable belong to root (proc(5)).
		info, err := os.Stat(fmt.Sprintf("/proc/%d/mem", c.pid))
		if err != nil || info.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Errorf("%s is dumpable (%v)", c.name, err)
		}
		limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", c.pid))
		if err != nil || !strings.Contains(strings.Join(strings.Fields(string(limits)), " "), "Max core file size 0 0 bytes") {
			t.Errorf("%s may dump core (%v):\n%s", c.name, err, limits)
		}
	}
}

// TestEachCapabilityOfTheDaemonIsNeeded: without one of them something stops working.
func TestEachCapabilityOfTheDaemonIsNeeded(t *testing.T) {
	requireDaemon(t)
	id := sharedIdentity(t)
	noWorker := func(want string) func(*testing.T, string) {
		return func(t *testing.T, name string) {
			code, stderr := serveFails(t, envLeaveOut+"="+name, "--listen", "127.0.0.1:0", "--certificate", id.dir+"/ecdsa.pem", "--key", id.dir+"/ecdsa.key",
				"--application", filepath.Join(openDir(t), "app.sock"), "--worker-user", "60601")
			if code != exitFailed || !strings.Contains(stderr, want) {
				t.Errorf("exit %d, %s; want %q", code, stderr, want)
			}
		}
	}
	needs := map[cap.Value]func(t *testing.T, name string){
		cap.SETUID:    noWorker("start \"offloadd handshake\" as uid 60601: fork/exec /proc/self/exe: operation not permitted"),
		cap.SETGID:    noWorker("start \"offloadd handshake\" as uid 60601: fork/exec /proc/self/exe: operation not permitted"),
		cap.KILL:      func(t *testing.T, name string) { workersThatHangLive(t, id, name) },
		cap.NET_ADMIN: func(t *testing.T, name string) { pathIsUnknown(t, id, name) },
	}
	for _, c := range daemonCapabilities() {
		t.Run(c.value.String(), func(t *testing.T) {
			if check := needs[c.value]; check != nil {
				check(t, c.value.String())
			} else {
				t.Error("nothing shows that the daemon needs it")
			}
		})
	}
}

// workersThatHangLive: two daemons have a worker that hangs, and only the one with all
// capabilities gets rid of it.
func workersThatHangLive(t *testing.T, id *identity, name string) {
	settings := "workers = 1\nhandshake_timeout = \"100ms\"\nworker_lifetime = \"1s\""
	able := startDaemon(t, id, daemonOptions{settings: settings})
	unable := startDaemon(t, id, daemonOptions{settings: settings, leaveOut: name})
	stopped := map[*testDaemon]int{}
	for _, d := range []*testDaemon{able, unable} {
		// The first workers may be gone by now.
		d.waitFor("worker ready", d.log.count("worker ready")+1)
		ready := d.waitFor("worker ready", d.log.count("worker ready"))
		stopped[d] = int(ready.number("worker_pid"))
		if err := unix.Kill(stopped[d], unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	expectExit(t, stopped[able])
	time.Sleep(2 * time.Second) // both were stopped within one
	if err := unix.Kill(stopped[unable], 0); err != nil {
		t.Errorf("the worker is gone: %v", err)
	}
	unix.Kill(stopped[unable], unix.SIGKILL) // or its daemon does not end
}

// pathIsUnknown: the log cannot say which path a connection is on, and with all
// capabilities it can. Linux 7 tells anybody.
func pathIsUnknown(t *testing.T, id *identity, name string) {
	secret := os.Getenv("OFFLOADD_KERNEL_SERIES") != "7"
	for leaveOut, want := range map[string]bool{"": false, name: secret} {
		d := startDaemon(t, id, daemonOptions{settings: "workers = 1", leaveOut: leaveOut})
		d.serveApplication(echo)
		d.mustEcho()
		if e := d.wait("installed"); (e.text("tx") == "unknown") != want || (e.text("rx") == "unknown") != want {
			t.Errorf("without %q: the path is tx %q, rx %q (%s)", leaveOut, e.text("tx"), e.text("rx"), e.text("path_reason"))
		}
	}
}

// TestTheApplicationSocketGoesWithTheDaemon: root can remove it from its directories
// without a capability, and not from somebody else's, which is said.
func TestTheApplicationSocketGoesWithTheDaemon(t *testing.T) {
	requireDaemon(t)
	run := fmt.Sprintf("/run/offloadd-test-%d", os.Getpid())
	t.Cleanup(func() { os.RemoveAll(run) })
	other := openDir(t)
	if err := errors.Join(os.Chmod(other, 0o755), os.Chown(other, 60777, 60777)); err != nil {
		t.Fatal(err)
	}
	for dir, stays := range map[string]bool{run: false, other: true} {
		d := startDaemon(t, sharedIdentity(t), daemonOptions{socket: filepath.Join(dir, "app.sock")})
		if _, err := os.Stat(d.socket); err != nil {
			t.Fatal(err)
		}
		warned := d.log.count("the application socket cannot be removed at the end, only replaced at the next start") == 1
		d.stop()
		_, err := os.Stat(d.socket)
		if (err == nil) != stays || warned != stays {
			t.Errorf("%s: stat says %v, and there was a warning: %v", d.socket, err, warned)
		}
	}
}
