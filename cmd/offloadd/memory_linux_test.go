// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls/ktlstest"
	"github.com/offloadd/offloadd/ktls/userspace"
)

// TestNoKeyStaysInAnyProcess: after the worker has exited, no process of ours
// holds a traffic secret, key or IV of a connection that is alive and in use: not
// the daemon, and never the application. What the daemon has, where keys can change, are
// the secrets of the keys that have not been in use.
func TestNoKeyStaysInAnyProcess(t *testing.T) {
	requireDaemon(t)
	for _, c := range []struct {
		name    string
		version uint16
		policy  userspace.Policy
	}{
		{"TLS 1.3", tls.VersionTLS13, userspace.Require},
		{"TLS 1.2", tls.VersionTLS12, userspace.Require},
		{"relayed", tls.VersionTLS13, userspace.Never},
	} {
		t.Run(c.name, func(t *testing.T) {
			version := c.version
			d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: "guard = \"off\"\nworkers = 1\nworker_connections = 3",
				listener: fmt.Sprintf("kernel_tls = %q", c.policy)})
			application := startEchoApplication(t, d)
			var secrets []needle
			var conns []*tls.Conn
			for range 3 {
				var keyLog bytes.Buffer
				config := d.clientConfig()
				config.MinVersion, config.MaxVersion, config.KeyLogWriter = version, version, &keyLog
				tcp, err := net.Dial("tcp", d.address)
				if err != nil {
					t.Fatal(err)
				}
				wire := &firstBytes{Conn: tcp}
				c := tls.Client(wire, config)
				defer c.Close()
				if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
					t.Fatal(err)
				}
				if _, err := c.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(c, make([]byte, len(marker)+1)); err != nil {
					t.Fatalf("%v\n%s", err, d.log.dump())
				}
				conns = append(conns, c)
				secrets = append(secrets, needlesOf(t, c, keyLog.String(), wire.read)...)
			}
			first := d.waitFor("worker ready", 1).number("worker_pid")
			expectExit(t, int(first))

			if found := scanMemory(t, os.Getpid(), secrets); len(found) != len(secrets) {
				t.Fatalf("the scan finds only %v of the %d secrets in this process, which has them all", found, len(secrets))
			}
			for name, pid := range map[string]int{"daemon": d.cmd.Process.Pid, "application": application} {
				next, other := 0, []string(nil)
				for _, found := range scanMemory(t, pid, secrets) {
					if strings.Contains(found, "next secret") {
						next++
					} else {
						other = append(other, found)
					}
				}
				want := 0
				if name == "daemon" && version == tls.VersionTLS13 && c.policy == userspace.Require && ktlstest.CanRekey() {
					want = 2 * len(conns)
				}
				if next != want || len(other) != 0 {
					t.Errorf("the %s holds %d secrets of next keys, want %d, and %v", name, next, want, other)
				}
			}
			for _, c := range conns {
				if err := echoOnce(c); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// needle is a secret to look for.
type needle struct {
	name  string
	bytes []byte
}

// firstBytes keeps the beginning of what is read: the ServerHello.
type firstBytes struct {
	net.Conn
	read []byte
}

func (f *firstBytes) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	f.read = append(f.read, p[:min(n, max(0, 64-len(f.read)))]...)
	return n, err
}

// needlesOf derives everything secret of a client's connection from its key log,
// and from the ServerHello where TLS 1.2 needs it.
func needlesOf(t *testing.T, c *tls.Conn, keyLog string, serverHello []byte) []needle {
	t.Helper()
	suite := blob.CipherSuite(c.ConnectionState().CipherSuite)
	var out []needle
	state := func(name string, s *blob.State) {
		out = append(out, needle{name + " key", bytes.Clone(s.Key.Bytes())})
		if s.NextSecret.Len() > 0 {
			out = append(out, needle{name + " IV", bytes.Clone(s.IV.Bytes())}, needle{name + " next secret", bytes.Clone(s.NextSecret.Bytes())})
		}
	}
	for line := range strings.Lines(keyLog) {
		f := strings.Fields(line)
		secret, err := hex.DecodeString(f[2])
		if err != nil {
			t.Fatal(err)
		}
		switch f[0] {
		case "CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0":
			out = append(out, needle{f[0], bytes.Clone(secret)})
			s, err := blob.NewState13(suite, blob.Client, blob.Write, blob.NewSecret(secret))
			if err != nil {
				t.Fatal(err)
			}
			state(f[0], s)
		case "CLIENT_RANDOM":
			clientRandom, err := hex.DecodeString(f[1])
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, needle{"master secret", bytes.Clone(secret)})
			// RFC 8446, Section 5.1 and RFC 5246, Section 7.4.1.3: record and message headers
			// and the version come before the random.
			serverRandom := serverHello[11:43]
			read, write, err := blob.NewStates12(suite, blob.Client, blob.NewSecret(secret), clientRandom, serverRandom)
			if err != nil {
				t.Fatal(err)
			}
			state("server", read)
			state("client", write)
		}
	}
	if len(out) == 0 {
		t.Fatalf("no secrets in the key log %q", keyLog)
	}
	return out
}

// scanMemory returns the names of the needles found in a process's memory.
func scanMemory(t *testing.T, pid int, needles []needle) []string {
	t.Helper()
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	found := map[string]bool{}
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var start, end int64
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &start, &end, &mode); err != nil || !strings.HasPrefix(mode, "rw") {
			continue
		}
		scanRange(mem, start, end, needles, found)
	}
	var names []string
	for n := range found {
		names = append(names, n)
	}
	return names
}

func scanRange(mem io.ReaderAt, start, end int64, needles []needle, found map[string]bool) {
	const chunk, overlap = 1 << 20, 64
	buf := make([]byte, chunk+overlap)
	defer clear(buf) // or the next scan of this process finds what this one copied
	for at := start; at < end; at += chunk {
		n, err := mem.ReadAt(buf[:min(chunk+overlap, end-at)], at)
		if n == 0 && err != nil && !errors.Is(err, io.EOF) {
			continue // not backed by memory
		}
		for i, d := range needles {
			if bytes.Contains(buf[:n], d.bytes) {
				found[fmt.Sprintf("%s (%d)", d.name, i)] = true
			}
		}
	}
}

// startEchoApplication runs echo in a process of its own, and returns its pid.
func startEchoApplication(t *testing.T, d *testDaemon) int {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestEchoApplicationProcess$")
	cmd.Env = append(os.Environ(), "OFFLOADD_TEST_ECHO="+d.socket)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	d.wait("application connected")
	return cmd.Process.Pid
}

// TestEchoApplicationProcess is the process that startEchoApplication starts.
func TestEchoApplicationProcess(t *testing.T) {
	socket := os.Getenv("OFFLOADD_TEST_ECHO")
	if socket == "" {
		return
	}
	d := &testDaemon{t: t, socket: socket}
	d.serveApplication(echo)
	time.Sleep(5 * time.Minute) // it is killed before
}
