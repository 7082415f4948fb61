// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/cmd/offloadd/internal/ledger"
	"github.com/offloadd/offloadd/ktls"
)

// keysInTheKernel counts the write keys that were ever installed here.
func keysInTheKernel(t *testing.T) uint64 {
	t.Helper()
	stats, err := ktls.ReadStats()
	if err != nil {
		t.Fatal(err)
	}
	values := stats.Values()
	if _, ok := values["TlsTxSw"]; !ok {
		t.Fatalf("no TlsTxSw in %v", values)
	}
	return values["TlsTxSw"]
}

func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// TestAKeyIsEnteredBeforeItIsInstalled: the daemon is stopped between the two. The file
// has the entry then, and the kernel no key.
func TestAKeyIsEnteredBeforeItIsInstalled(t *testing.T) {
	requireDaemon(t)
	path := filepath.Join(openDir(t), "run", "ledger")
	d := startDaemon(t, sharedIdentity(t), daemonOptions{ledger: path})
	d.serveApplication(echo)
	size, keys := fileSize(t, path), keysInTheKernel(t)
	d.steps.at(stepEntered).order.Store(orderStop)
	tcp, err := net.Dial("tcp", d.address)
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	tcp.SetDeadline(time.Now().Add(30 * time.Second))
	client := tls.Client(tcp, d.clientConfig())
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	d.waitStep(stepEntered)
	time.Sleep(100 * time.Millisecond) // the stop follows the step
	entered := fileSize(t, path)
	if entered <= size {
		t.Errorf("the file has %d bytes, %d before", entered, size)
	}
	if n := keysInTheKernel(t); n != keys {
		t.Errorf("the kernel has %d keys, %d before", n, keys)
	}
	d.cmd.Process.Signal(unix.SIGCONT)
	if err := echoOnce(client); err != nil {
		t.Fatal(err)
	}
	if n := keysInTheKernel(t); n != keys+1 {
		t.Errorf("the kernel has %d keys, %d before", n, keys)
	}
	if n := fileSize(t, path); n != entered {
		t.Errorf("the file has %d bytes, %d before the install", n, entered)
	}
}

// TestTheNextDaemonRemembers: the keys of the connections that outlive a daemon, and
// only those. Two daemons do not share a ledger.
func TestTheNextDaemonRemembers(t *testing.T) {
	requireDaemon(t)
	path := filepath.Join(openDir(t), "run", "ledger")
	first := startDaemon(t, sharedIdentity(t), daemonOptions{ledger: path})
	first.serveApplication(echo)
	bystander := first.mustEcho()
	if code, stderr := serveFails(t, "", "--ledger", path, "--listen", "127.0.0.1:0", "--certificate", "c", "--key", "k",
		"--application", path+".sock", "--worker-user", "60601"); code != exitFailed || !strings.Contains(stderr, ledger.ErrHeld.Error()) {
		t.Errorf("a second daemon: exit %d: %s", code, stderr)
	}
	first.steps.at(stepEntered).order.Store(orderKill)
	if c, err := first.dial(first.clientConfig()); err == nil {
		c.Close()
	}
	<-first.exited
	second := startDaemon(t, sharedIdentity(t), daemonOptions{ledger: path})
	if n := second.wait("ready").number("ledger_entries"); n != 2 {
		t.Errorf("the next daemon knows %d keys, want the 2 of the connection that lives", n)
	}
	if err := echoOnce(bystander); err != nil {
		t.Error(err)
	}
	// Once the application has closed its end, this end's close ends the socket.
	if err := bystander.CloseWrite(); err != nil {
		t.Error(err)
	}
	if err := expectEnd(bystander); err != nil {
		t.Error(err)
	}
	bystander.Close()
	second.stop()
	third := startDaemon(t, sharedIdentity(t), daemonOptions{ledger: path})
	if n := third.wait("ready").number("ledger_entries"); n != 0 {
		t.Errorf("the third daemon knows %d keys of sockets that are gone", n)
	}
}
