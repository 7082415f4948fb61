// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/blob/handoff"
	"github.com/offloadd/offloadd/bpf"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// loadGuards loads all programs into a directory of the test's own.
func loadGuards(t *testing.T) (dir string) {
	t.Helper()
	ktlstest.Require(t)
	dir = filepath.Join("/sys/fs/bpf", strings.NewReplacer("/", "-", ".", "-").Replace(t.Name()))
	if _, err := bpf.Load(bpf.Options{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bpf.Unload(dir); err != nil && !errors.Is(err, bpf.ErrNotLoaded) {
			t.Error(err)
		}
	})
	return dir
}

// guardedBy is a daemon's settings.
func guardedBy(dir string) string { return fmt.Sprintf("guard = \"require\"\nbpf_dir = %q", dir) }

// takeSocket takes the one connection that a process holds.
func takeSocket(t *testing.T, pid int, cookie uint64) *net.TCPConn {
	t.Helper()
	var taken *net.TCPConn
	err := eachSocket(pid, func(sock *os.File) {
		if n, err := handoff.Cookie(sock); err == nil && n == cookie && taken == nil {
			c, err := net.FileConn(sock)
			if err != nil {
				t.Fatal(err)
			}
			taken = c.(*net.TCPConn)
		}
	})
	if err != nil || taken == nil {
		t.Fatalf("process %d does not hold socket %d: %v", pid, cookie, err)
	}
	t.Cleanup(func() { taken.Close() })
	return taken
}

// askKeys asks the kernel for both keys, and returns the first error.
func askKeys(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var errs [2]error
	if err := raw.Control(func(fd uintptr) {
		for i, option := range []int{1, 2} /* TLS_TX, TLS_RX */ {
			b := make([]byte, 40)
			size := uint32(len(b))
			if _, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_TLS, uintptr(option),
				uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0); errno != 0 {
				errs[i] = errno
			} else if bytes.Equal(b[12:28], make([]byte, 16)) {
				errs[i] = errors.New("an answer without a key")
			}
		}
	}); err != nil {
		return err
	}
	if (errs[0] == nil) != (errs[1] == nil) {
		return fmt.Errorf("one key only: %v, %v", errs[0], errs[1])
	}
	return errs[0]
}

// TestNobodyButTheDaemonGetsAKey: not root, with the application's own descriptor, nor
// does root reach into the daemon or its workers. Without the guards both succeed.
func TestNobodyButTheDaemonGetsAKey(t *testing.T) {
	requireDaemon(t)
	dir := loadGuards(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: guardedBy(dir) + "\nworkers = 1"})
	application := startEchoApplication(t, d)
	config := d.clientConfig()
	config.MaxVersion, config.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}
	c, err := d.dial(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := echoOnce(c); err != nil {
		t.Fatal(err)
	}
	sock := takeSocket(t, application, uint64(d.wait("installed").number("socket")))
	if err := askKeys(sock); !errors.Is(err, unix.EPERM) {
		t.Errorf("asking for the keys: %v, want EPERM", err)
	}
	waitAnyText(t, d, "what:key_get")
	daemon, worker := d.cmd.Process.Pid, int(d.wait("worker ready").number("worker_pid"))
	for name, pid := range map[string]int{"daemon": daemon, "worker": worker} {
		if err := tryDescriptor(pid); !errors.Is(err, unix.EPERM) {
			t.Errorf("taking a descriptor of the %s: %v, want EPERM", name, err)
		}
	}
	if err := echoOnce(c); err != nil {
		t.Errorf("the connection: %v", err)
	}
	if err := bpf.Unload(dir); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := errors.Join(askKeys(sock), tryDescriptor(daemon), tryDescriptor(worker))
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("without guards: %v", err)
		}
	}
	// The daemon finds out, and refuses what it cannot guard.
	d.wait("keys are not guarded any more; no further connection is accepted")
	if _, err := d.dial(d.clientConfig()); err == nil {
		t.Error("a connection without guards")
	}
	d.waitText("connection refused", errGuardsSilent.Error())
}

// TestWhoLookedBeforeTheShieldSeesNothingOfTheDaemon: its memory was opened when it had
// just started.
func TestWhoLookedBeforeTheShieldSeesNothingOfTheDaemon(t *testing.T) {
	requireDaemon(t)
	dir := loadGuards(t)
	id := sharedIdentity(t)
	run := openDir(t)
	cmd := exec.Command("/proc/self/exe", "serve", "--log", "json", "--listen", "127.0.0.1:0", "--certificate", id.dir+"/ecdsa.pem",
		"--key", id.dir+"/ecdsa.key", "--worker-user", "60601", "--application", run+"/app.sock", "--control", run+"/control.sock",
		"--ledger", run+"/ledger/ledger", "--guard", "require", "--bpf-dir", dir)
	cmd.Env = append(os.Environ(), envRole+"=1")
	pipe, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer endChild(cmd)
	memory := openChildsMemory(t, cmd.Process.Pid)
	defer memory.Close()
	if _, err := newServeLog(pipe).wait(testContext(t), "ready", nil); err != nil {
		t.Fatal(err)
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	read := 0
	for line := range strings.Lines(string(maps)) {
		start, _, _ := strings.Cut(line, "-")
		address, err := strconv.ParseInt(start, 16, 64)
		if err != nil {
			continue // above the half that is a process's
		}
		n, _ := memory.ReadAt(make([]byte, 64), address)
		read += n
	}
	if read != 0 {
		t.Errorf("%d bytes of the daemon's memory", read)
	}
	if f, err := os.Open(fmt.Sprintf("/proc/%d/mem", cmd.Process.Pid)); err == nil {
		f.Close()
		t.Error("its memory can be opened")
	}
}

// ownMark is a number in the memory of this process alone.
var ownMark = uint64(time.Now().UnixNano())

// openChildsMemory opens the memory of a child that has just been started. For a moment that is
// still the memory of its parent.
func openChildsMemory(t *testing.T, pid int) *os.File {
	t.Helper()
	for {
		f, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
		if err != nil {
			t.Fatal(err)
		}
		mark := make([]byte, 8)
		n, _ := f.ReadAt(mark, int64(uintptr(unsafe.Pointer(&ownMark))))
		if n != len(mark) || binary.NativeEndian.Uint64(mark) != ownMark {
			return f
		}
		f.Close()
	}
}

// tryDescriptor takes the first descriptor of a process.
func tryDescriptor(pid int) error {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(process)
	fd, err := unix.PidfdGetfd(process, 2, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// TestServeObeysTheGuardPolicy: where there are no guards.
func TestServeObeysTheGuardPolicy(t *testing.T) {
	requireDaemon(t)
	id := sharedIdentity(t)
	dir := "/sys/fs/bpf/nothing-is-here"
	code, stderr := serveFails(t, "", "--listen", "127.0.0.1:0", "--certificate", id.dir+"/ecdsa.pem", "--key", id.dir+"/ecdsa.key",
		"--worker-user", "60601", "--application", openDir(t)+"/app.sock", "--guard", "require", "--bpf-dir", dir)
	if code != exitMachine || !strings.Contains(stderr, "guard = \"require\"") || !strings.Contains(stderr, "offloadd bpf load") {
		t.Errorf("require: exit %d: %s", code, stderr)
	}
	for _, policy := range []string{"prefer", "off"} {
		d := startDaemon(t, id, daemonOptions{settings: fmt.Sprintf("guard = %q\nbpf_dir = %q", policy, dir)})
		if e := d.wait("keys are not guarded: whoever holds a socket can ask the kernel for them"); e.text("reason") == "" {
			t.Errorf("%s: logged %v", policy, e)
		}
		d.serveApplication(echo)
		d.mustEcho()
	}
}

// TestGuardsThatCanBeOutrunAreNotEnoughWhereTheyAreRequired: in form fmod_ret, on a kernel
// that preempts itself.
func TestGuardsThatCanBeOutrunAreNotEnoughWhereTheyAreRequired(t *testing.T) {
	requireDaemon(t)
	id := sharedIdentity(t)
	dir := loadGuards(t)
	if _, err := bpf.Load(bpf.Options{Dir: dir, Form: bpf.FormModifyReturn}); err != nil {
		t.Fatal(err)
	}
	if bpf.CanBeSkipped() == nil {
		d := startDaemon(t, id, daemonOptions{settings: guardedBy(dir)})
		d.serveApplication(echo)
		d.mustEcho()
		return
	}
	code, stderr := serveFails(t, "", "--listen", "127.0.0.1:0", "--certificate", id.dir+"/ecdsa.pem", "--key", id.dir+"/ecdsa.key",
		"--worker-user", "60601", "--application", openDir(t)+"/app.sock", "--guard", "require", "--bpf-dir", dir)
	if code != exitMachine || !strings.Contains(stderr, bpf.ErrSkippable.Error()) {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

// clearly is what the worker below sends in clear.
var clearly = []byte("PLAINTEXT-OF-A-ROGUE-WORKER")

// TestAWorkerCannotSendInClear: it holds the socket before there is a key, and may send
// on it. (Without the guards its bytes reach the peer, and the watch finds them.)
func TestAWorkerCannotSendInClear(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{rogue: rogueInClear,
		settings: "workers = 1\nhandshake_timeout = \"60s\"\n" + guardedBy(loadGuards(t))})
	c, err := net.Dial("tcp", d.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// The worker sends after the first byte.
	if _, err := c.Write([]byte{22}); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(30 * time.Second))
	if got, err := io.ReadAll(c); len(got) != 0 || !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the peer received %q, %v; want a reset", got, err)
	}
	d.waitText("connection ended", errInClear.Error())
	d.waitFor("worker ready", 2)
}
