// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// envLanguages says that compilers and interpreters must be there: the tests are not to
// skip for want of them.
const envLanguages = "OFFLOADD_EXPECT_LANGUAGES"

const (
	examplesDir = "../../blob/handoff/examples"
	preloadDir  = "../../blob/handoff/preload"
)

// A languageServer is an example, or a program that knows nothing of TLS.
type languageServer struct {
	name string
	// command starts it in the directory that it serves; application is the socket, and
	// built where C is compiled to.
	command func(application, built string) []string
	// upload is what a peer sends before the content of the file "up".
	upload string
	get    string // what it sends for the file "down"; none if this serves no files
	stored string // what the program or its starter says when "up" is whole,
	cut    string // and when the peer has gone before,
	failed string // or we have ended the connection; empty if it says the same
}

// inetd is the command line of offloadd inetd.
func inetd(application string, program ...string) []string {
	return append([]string{"/proc/self/exe", "inetd", "--application", application, "--"}, program...)
}

// preloaded is inetd for a program that cannot be changed.
func preloaded(application, built string, program ...string) []string {
	return inetd(application, append([]string{"env", "LD_PRELOAD=" + filepath.Join(built, "plainread.so")}, program...)...)
}

func example(t *testing.T, path string) string {
	t.Helper()
	absolute, err := filepath.Abs(filepath.Join(examplesDir, path))
	if err != nil {
		t.Fatal(err)
	}
	return absolute
}

func languageServers(t *testing.T) []languageServer {
	const put, get = "PUT up\n", "GET down\n"
	return []languageServer{
		{name: "Python", command: func(application, _ string) []string {
			return []string{"python3", example(t, "python/fileserver.py"), application, "."}
		}, upload: put, get: get, stored: "stored up", cut: "refused up"},
		{name: "Node.js", command: func(application, _ string) []string {
			return inetd(application, "node", example(t, "node/fileserver.js"))
		}, upload: put, get: get, stored: "stored up", cut: "refused up"},
		{name: "C", command: func(application, built string) []string {
			return []string{filepath.Join(built, "fileserver"), application, "."}
		}, upload: put, get: get, stored: "stored up", cut: "refused up"},
		{name: "Java", command: func(application, built string) []string {
			return inetd(application, "env", "LC_ALL=C", "java", "-XX:TieredStopAtLevel=1", "-cp", built, "FileServer")
		}, upload: put, get: get, stored: "stored up", cut: "refused:"},
		{name: "cat", command: func(application, built string) []string {
			return preloaded(application, built, "sh", "-c", languagesRoot+"/usr/bin/cat > .part && mv .part up && echo stored >&2")
		}, stored: "stored", cut: "Connection reset by peer", failed: "Software caused connection abort"},
		{name: "Python's standard library", command: func(application, built string) []string {
			return preloaded(application, built, "python3", "-c", `
import shutil, socket, sys, os
with open(".part", "wb") as file, socket.socket(fileno=0).makefile("rb") as peer:
	shutil.copyfileobj(peer, file)
os.rename(".part", "up")
print("stored", file=sys.stderr)`)
		}, stored: "stored", cut: "ConnectionResetError", failed: "ConnectionAbortedError"},
		{name: "a socket of Node.js", command: func(application, built string) []string {
			return preloaded(application, built, "node", "-e", `
const fs = require('fs'), net = require('net');
require('stream').pipeline(new net.Socket({ fd: 0, readable: true }), fs.createWriteStream('.part'), (error) => {
	if (error) { console.error(error.code); process.exit(1); }
	fs.renameSync('.part', 'up');
	console.error('stored');
	process.exit(0);
});`)
		}, stored: "stored", cut: "ECONNRESET", failed: "ECONNABORTED"},
	}
}

// languagesRoot is where the disk is mounted; below /usr, the guest's own programs come
// first.
const languagesRoot = "/languages"

// requireLanguages skips where the disk of vm's --languages is not.
func requireLanguages(t *testing.T) {
	t.Helper()
	requireDaemon(t)
	for _, name := range []string{languagesRoot, examplesDir, preloadDir} {
		if _, err := os.Stat(name); err != nil && os.Getenv(envLanguages) != "" {
			t.Fatal(err)
		} else if err != nil {
			t.Skipf("%v; run: make test-languages", err)
		}
	}
}

// buildExamples compiles what is to be compiled, all of it without a warning.
func buildExamples(t *testing.T) string {
	t.Helper()
	built := openDir(t)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	c := []string{"-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-D_FORTIFY_SOURCE=2", "-o"}
	var compiling sync.WaitGroup
	for _, command := range [][]string{
		append(append([]string{"gcc"}, c...), filepath.Join(built, "fileserver"), example(t, "c/fileserver.c")),
		append(append([]string{"gcc", "-shared", "-fPIC"}, c...), filepath.Join(built, "plainread.so"), filepath.Join(preloadDir, "plainread.c")),
		{"javac", "-J-XX:TieredStopAtLevel=1", "-Xlint:all", "-Werror", "-d", built, example(t, "java/FileServer.java")},
	} {
		compiling.Go(func() {
			if out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput(); err != nil {
				t.Errorf("%v: %v\n%s", command, err, out)
			}
		})
	}
	compiling.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return built
}

// TestProgramsInOtherLanguages: each example serves and fetches a file against OpenSSL,
// follows its KeyUpdates where the kernel can, and tells the end of a file from a cut.
func TestProgramsInOtherLanguages(t *testing.T) {
	requireLanguages(t)
	built := buildExamples(t)
	content := uploadContent()
	daemon := startDaemon(t, sharedIdentity(t), daemonOptions{})
	programs := 0
	for _, s := range languageServers(t) {
		t.Run(s.name, func(t *testing.T) {
			one := *daemon
			one.t = t
			d := &one
			dir := openDir(t)
			p := startProgram(t, dir, s.command(d.socket, built))
			programs++
			d.waitFor("application connected", programs)
			defer d.waitFor("application gone", programs)
			defer p.stop()
			if s.get != "" {
				fetchWithOpenSSL(t, d, dir, s.get)
			}
			uploadWithOpenSSL(t, d, p, &s, dir, content)
			cutUpload(t, d, p, &s, dir, content)
		})
	}
}

// fetchWithOpenSSL gets a file, after two KeyUpdates where the kernel can follow.
func fetchWithOpenSSL(t *testing.T, d *testDaemon, dir, get string) {
	t.Helper()
	file := make([]byte, 300_000)
	rand.Read(file)
	if err := os.WriteFile(filepath.Join(dir, "down"), file, 0o644); err != nil {
		t.Fatal(err)
	}
	o := startClient(t, d)
	if ktlstest.CanRekey() {
		o.update("k")
		o.update("K")
	}
	o.send(get)
	if err := o.wait(); err != nil {
		t.Errorf("openssl: %v\n%s", err, o.stderr.text())
	}
	if text := o.stderr.text(); strings.Contains(text, "unexpected eof") || strings.Contains(text, "error") {
		t.Errorf("openssl was not told the end of the stream: %s", text)
	}
	want := append(fmt.Appendf(nil, "OK %d\n", len(file)), file...)
	if got := o.stdout.bytes(); sha256.Sum256(got) != sha256.Sum256(want) {
		t.Errorf("openssl got %d bytes, want %d, or others", len(got), len(want))
	}
}

// uploadContent is text that s_client takes for no command.
func uploadContent() string {
	b := make([]byte, 60_000)
	rand.Read(b)
	return hex.EncodeToString(b) + "\n"
}

// uploadWithOpenSSL sends a file with a KeyUpdate of each kind in its middle. Where the
// kernel cannot follow, that ends the connection, and a file without one arrives.
func uploadWithOpenSSL(t *testing.T, d *testDaemon, p *runningProgram, s *languageServer, dir, content string) {
	t.Helper()
	o := startClient(t, d)
	o.send(s.upload + content[:50_000] + "\n")
	for _, command := range []string{"k", "K"} {
		o.update(command)
		if !ktlstest.CanRekey() {
			break
		}
		o.send(content[:50_000] + "\n")
	}
	whole := strings.Repeat(content[:50_000]+"\n", 3)
	if !ktlstest.CanRekey() {
		p.wait(cmp.Or(s.failed, s.cut))
		o.stderr.wait(t, "alert internal error")
		if _, err := os.Stat(filepath.Join(dir, "up")); err == nil {
			t.Error("the file was taken for whole behind a KeyUpdate that nobody could follow")
		}
		o = startClient(t, d)
		o.send(s.upload + content)
		whole = content
	}
	o.send("Q\n")
	p.wait(s.stored)
	got, err := os.ReadFile(filepath.Join(dir, "up"))
	if err != nil || sha256.Sum256(got) != sha256.Sum256([]byte(whole)) {
		t.Errorf("stored %d bytes of %d, or others: %v", len(got), len(whole), err)
	}
	if err := os.Remove(filepath.Join(dir, "up")); err != nil {
		t.Error(err)
	}
}

// cutUpload kills the peer in the middle of a file.
func cutUpload(t *testing.T, d *testDaemon, p *runningProgram, s *languageServer, dir, content string) {
	t.Helper()
	o := startClient(t, d)
	o.send(s.upload + content)
	waitSize(t, dir, len(content))
	o.cmd.Process.Kill()
	p.wait(s.cut)
	if _, err := os.Stat(filepath.Join(dir, "up")); err == nil {
		t.Error("a file that was cut off was taken for whole")
	}
}

// waitSize waits until most of a file has come: programs have buffers.
func waitSize(t *testing.T, dir string, size int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		for _, name := range []string{".part", ".up.part"} {
			if info, err := os.Stat(filepath.Join(dir, name)); err == nil && info.Size() > int64(size)/2 {
				return
			}
		}
	}
	t.Fatal("the file does not come")
}

// interactiveClient is an s_client that obeys the commands k, K and Q.
type interactiveClient struct {
	t              *testing.T
	cmd            *exec.Cmd
	stdin          *os.File
	stdout, stderr said
	ended          chan error
}

func startClient(t *testing.T, d *testDaemon) *interactiveClient {
	t.Helper()
	o := &interactiveClient{t: t, ended: make(chan error, 1)}
	o.cmd = exec.CommandContext(testContext(t), "openssl", "s_client", "-connect", d.address, "-servername", "localhost", "-tls1_3",
		"-brief", "-CAfile", d.id.caPath, "-verify_return_error")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	o.stdin = w
	o.cmd.Stdin, o.cmd.Stdout, o.cmd.Stderr = r, &o.stdout, &o.stderr
	if err := o.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { o.ended <- o.cmd.Wait() }()
	t.Cleanup(func() {
		w.Close()
		o.cmd.Process.Kill()
	})
	o.stderr.wait(t, "Verification: OK")
	return o
}

// send gives s_client something to send, or a command, which it knows by the first byte
// of what it reads at once: it waits until all was read.
func (o *interactiveClient) send(text string) {
	o.t.Helper()
	if _, err := io.WriteString(o.stdin, text); err != nil {
		o.t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if n, err := unix.IoctlGetInt(int(o.stdin.Fd()), unix.TIOCINQ); err != nil {
			o.t.Fatal(err)
		} else if n == 0 {
			return
		}
	}
	o.t.Fatalf("openssl reads no more\n%s", o.stderr.text())
}

// update has s_client send a KeyUpdate, by k without a request, by K with one.
func (o *interactiveClient) update(command string) {
	o.t.Helper()
	o.send(command + "\n")
	o.stderr.wait(o.t, "KEYUPDATE")
}

func (o *interactiveClient) wait() error {
	o.t.Helper()
	select {
	case err := <-o.ended:
		return err
	case <-time.After(30 * time.Second):
		o.t.Fatalf("openssl does not end\n%s", o.stderr.text())
		return nil
	}
}
