// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/ktls"
)

// Users of the demo's processes: numbers that no distribution gives away
// (systemd.io/UIDS-GIDS: 60578 to 61183 is unused).
const (
	demoWorkerUID      = 60601
	demoApplicationUID = 60602
)

// demoTimeout bounds the demo as a whole.
const demoTimeout = 3 * time.Minute

func demoCommand(env *environment) *cobra.Command {
	var directory string
	var mebibytes int
	var asJSON bool
	c := &cobra.Command{
		Use:   "demo",
		Short: "Serve a directory to curl and openssl, and tell what happened",
		Long: `Starts a daemon with its worker and an application, an ordinary Go http.Server
that serves a directory. curl and openssl s_client fetch the largest file. The demo
compares SHA-256 sums and tells who did what, and which path the bytes took.

Needs root, a kernel with TLS, and curl and openssl. "make demo" starts it in a
virtual machine where the kernel here cannot.`,
		Example: `  offloadd demo
  offloadd demo --directory /usr/share --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), demoTimeout)
			defer cancel()
			d := &demo{env: env, directory: directory, size: int64(mebibytes) << 20, progress: newProgress(env.stderr)}
			report, err := d.run(ctx)
			d.progress.done()
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(env.stdout, report)
			}
			return report.print(env.stdout)
		},
	}
	c.Flags().StringVar(&directory, "directory", "", "serve this `directory` instead of a random one")
	c.Flags().IntVar(&mebibytes, "size", 256, "size of the random file in `MiB`")
	c.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON")
	return c
}

// demo is one run: three processes of ours and two clients.
type demo struct {
	env       *environment
	directory string
	size      int64
	progress  *progress

	temporary string
	address   string // of the listener
	file      demoFile
	log       *serveLog
}

func (d *demo) run(ctx context.Context) (*demoReport, error) {
	if err := demoReady(); err != nil {
		return nil, err
	}
	var err error
	if d.temporary, err = os.MkdirTemp("", "offloadd-demo-"); err != nil {
		return nil, err
	}
	defer os.RemoveAll(d.temporary)
	if err := os.Chmod(d.temporary, 0o755); err != nil { // the application is another user
		return nil, err
	}
	if err := d.prepareFiles(); err != nil {
		return nil, err
	}
	report := &demoReport{Kernel: kernelRelease()}
	stop, err := d.start(ctx, report)
	if err != nil {
		return nil, err
	}
	defer stop()
	// Not earlier: the start tries every suite, and the kernel counts that.
	before, err := ktls.ReadStats()
	if err != nil {
		return nil, err
	}
	report.Before = before.Values()
	for _, client := range []demoClient{curlClient, opensslClient} {
		t, err := d.fetch(ctx, client)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", client.name, err)
		}
		report.Transfers = append(report.Transfers, *t)
	}
	after, err := ktls.ReadStats()
	if err != nil {
		return nil, err
	}
	report.After = after.Values()
	return report, nil
}

func demoReady() error {
	if os.Geteuid() != 0 {
		return machineError("demo needs root, as serve does")
	}
	for _, program := range []string{"curl", "openssl"} {
		if _, err := exec.LookPath(program); err != nil {
			return machineError("demo: %w; install the package %q", err, program)
		}
	}
	if err := kernelReady(); err != nil {
		return machineError("demo: %w; \"make demo\" brings a virtual machine", err)
	}
	return nil
}

// start starts the daemon and the application, and returns what ends them.
func (d *demo) start(ctx context.Context, report *demoReport) (stop func(), err error) {
	socket := filepath.Join(d.temporary, "application.sock")
	guards, unload := d.loadGuards(report)
	serve := d.command(append(append([]string{"serve"}, guards...), "--log", "json", "--ledger", d.path("ledger"), "--listen", "127.0.0.1:0", "--workers", "1",
		"--certificate", d.path("certificate.pem"), "--key", d.path("key.pem"), "--alpn", "http/1.1",
		"--application", socket, "--application-user", fmt.Sprint(demoApplicationUID),
		"--control", filepath.Join(d.temporary, "control.sock"), "--worker-user", fmt.Sprint(demoWorkerUID))...)
	pipe, err := serve.StderrPipe()
	if err == nil {
		err = serve.Start()
	}
	if err != nil {
		unload()
		return nil, err
	}
	d.log = newServeLog(pipe)
	stopServe := func() {
		endChild(serve)
		unload()
	}
	listening, err := d.log.wait(ctx, "listening", nil)
	if err != nil {
		stopServe()
		return nil, err
	}
	d.address = listening.text("address")
	ready, err := d.log.wait(ctx, "ready", nil)
	if err != nil {
		stopServe()
		return nil, err
	}
	worker, err := d.log.wait(ctx, "worker ready", nil)
	if err != nil {
		stopServe()
		return nil, err
	}

	application := d.command("demo-application", "--socket", socket, "--directory", d.directory)
	application.Stderr = d.env.stderr
	if err := startUnprivileged(application, demoApplicationUID, demoApplicationUID); err != nil {
		stopServe()
		return nil, err
	}
	stop = func() {
		endChild(application)
		stopServe()
	}
	if _, err := d.log.wait(ctx, "application connected", nil); err != nil {
		stop()
		return nil, err
	}
	report.Processes = []demoProcess{
		{"daemon", ready.number("pid"), ready.number("uid"), "listener, blob opening key; installs keys"},
		{"worker", worker.number("worker_pid"), worker.number("worker_uid"), "certificate key; completes handshakes"},
		{"application", int64(application.Process.Pid), demoApplicationUID, "sockets and files; no key"},
	}
	return stop, nil
}

func (d *demo) command(args ...string) *exec.Cmd {
	c := exec.Command("/proc/self/exe", args...)
	c.Args[0] = "offloadd"
	c.Env = append(os.Environ(), d.env.workerEnv...)
	return c
}

func (d *demo) path(name string) string { return filepath.Join(d.temporary, name) }

// endChild asks a child to end, and kills it if it does not.
func endChild(c *exec.Cmd) {
	c.Process.Signal(unix.SIGTERM)
	kill := time.AfterFunc(drainTime+time.Second, func() { c.Process.Kill() })
	defer kill.Stop()
	c.Wait()
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// serveLog collects the JSON log of a serve child.
type serveLog struct {
	mu      sync.Mutex
	entries []logEntry // guarded by mu
	other   []string   // guarded by mu: lines that are no JSON
	ended   bool       // guarded by mu
	changed chan struct{}
}

// logEntry is one line of the log.
type logEntry map[string]any

func (e logEntry) text(key string) string { s, _ := e[key].(string); return s }

func (e logEntry) number(key string) int64 {
	n, _ := e[key].(json.Number)
	i, _ := n.Int64()
	return i
}

func newServeLog(r io.Reader) *serveLog {
	l := &serveLog{changed: make(chan struct{}, 1)}
	go func() {
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			l.add(lines.Text())
		}
		l.mu.Lock()
		l.ended = true
		l.mu.Unlock()
		l.notify()
	}()
	return l
}

func (l *serveLog) add(line string) {
	d := json.NewDecoder(strings.NewReader(line))
	d.UseNumber()
	var e logEntry
	err := d.Decode(&e)
	l.mu.Lock()
	if err == nil {
		l.entries = append(l.entries, e)
	} else {
		l.other = append(l.other, line)
	}
	l.mu.Unlock()
	l.notify()
}

func (l *serveLog) notify() {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// wait returns the first entry with this message that matches.
func (l *serveLog) wait(ctx context.Context, message string, matches func(logEntry) bool) (logEntry, error) {
	for {
		e, err := l.find(message, matches)
		if e != nil || err != nil {
			return e, err
		}
		select {
		case <-l.changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the daemon to say %q: %w", message, context.Cause(ctx))
		}
	}
}

func (l *serveLog) find(message string, matches func(logEntry) bool) (logEntry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.entries {
		if e.text("msg") == message && (matches == nil || matches(e)) {
			return e, nil
		}
	}
	if l.ended {
		return nil, errors.New("the daemon ended:\n" + strings.Join(l.other, "\n"))
	}
	return nil, nil
}

// portOf returns the port of an address.
func portOf(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}
