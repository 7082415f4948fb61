// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

const (
	// soakTime is how long each of the two daemons is under load, if the environment does
	// not say something else ("make test-long").
	soakTime = 4 * time.Second
	// soakClients connect again and again, at once.
	soakClients = 6
	// soakKill is how often a worker is killed, on average.
	soakKill = 2 * time.Second
	// soakAftermath is how long after its end a worker may be given connections.
	soakAftermath = time.Second
	// soakMemory bounds in KiB what a daemon may grow by: garbage that waits to be
	// collected, and no more.
	soakMemory = 8 << 10
)

// soakFault is what a client of the soak does to its connection.
type soakFault struct {
	name string
	// harmless: the connection must work but when its worker or daemon is killed.
	harmless bool
	play     func(s *soak, r *rand.Rand, c *net.TCPConn) error
}

// soakFaults come equally often.
var soakFaults = []soakFault{
	{"nothing", true, func(s *soak, _ *rand.Rand, c *net.TCPConn) error { return s.echo(c) }},
	{"short writes and delays", true, func(s *soak, r *rand.Rand, c *net.TCPConn) error {
		return s.echo(&hesitant{Conn: c, r: r})
	}},
	{"KeyUpdates", true, func(s *soak, r *rand.Rand, c *net.TCPConn) error { return s.echoUpdating(r, c) }},
	{"a reset in the handshake", false, func(s *soak, r *rand.Rand, c *net.TCPConn) error {
		c.SetLinger(0)
		return s.echo(&cut{Conn: c, after: r.IntN(600)})
	}},
	{"an end in the handshake", false, func(s *soak, r *rand.Rand, c *net.TCPConn) error {
		return s.echo(&cut{Conn: c, after: r.IntN(600)})
	}},
	{"a reset behind the handshake", false, func(s *soak, r *rand.Rand, c *net.TCPConn) error {
		client := tls.Client(c, s.config)
		if err := client.Handshake(); err != nil {
			return err
		}
		client.Write(make([]byte, r.IntN(40000)))
		time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
		return c.SetLinger(0)
	}},
	{"no close_notify", false, func(s *soak, r *rand.Rand, c *net.TCPConn) error {
		client := tls.Client(c, s.config)
		client.Write(make([]byte, r.IntN(40000)))
		return nil
	}},
	{"no TLS", false, func(_ *soak, r *rand.Rand, c *net.TCPConn) error {
		p := make([]byte, r.IntN(300))
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		_, err := c.Write(p)
		return err
	}},
	{"silence", false, func(_ *soak, r *rand.Rand, _ *net.TCPConn) error {
		time.Sleep(time.Duration(r.IntN(100)) * time.Millisecond)
		return nil
	}},
}

// hesitant writes in small pieces, and waits now and then.
type hesitant struct {
	net.Conn
	r *rand.Rand
}

func (h *hesitant) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = h.Conn.Write(p[n:min(n+1+h.r.IntN(300), len(p))])
		n += m
		if h.r.IntN(4) == 0 {
			time.Sleep(time.Duration(h.r.IntN(5)) * time.Millisecond)
		}
	}
	return n, err
}

func (h *hesitant) Read(p []byte) (int, error) { return h.Conn.Read(p[:min(len(p), 1+h.r.IntN(200))]) }

// cut closes the connection behind some of the bytes it was to write.
type cut struct {
	net.Conn
	after int
}

func (c *cut) Write(p []byte) (int, error) {
	if c.after -= len(p); c.after < 0 {
		n, _ := c.Conn.Write(p[:len(p)+c.after])
		return n, errors.Join(io.ErrClosedPipe, c.Conn.Close())
	}
	return c.Conn.Write(p)
}

// soak is the load on one daemon.
type soak struct {
	d      *testDaemon
	config *tls.Config
	seed   uint64
	time   time.Duration
	// killed is when a worker was killed last, in nanoseconds.
	killed                 atomic.Int64
	dead                   atomic.Bool // so was the daemon
	tried, worked, excused atomic.Int64
}

// echo has the application answer once, and says goodbye.
func (s *soak) echo(c net.Conn) error {
	client := tls.Client(c, s.config)
	if err := echoOnce(client); err != nil {
		return err
	}
	return client.CloseWrite()
}

// echoUpdating is echo with KeyUpdates in between, where the kernel of this client, too,
// can change keys.
func (s *soak) echoUpdating(r *rand.Rand, tcp *net.TCPConn) error {
	custody, err := handshakeKeeping(context.Background(), tcp, s.config.Clone())
	if err != nil {
		return err
	}
	c, err := ktls.NewConnKeeping(tcp, custody)
	if err != nil {
		return err
	}
	defer c.Close()
	for range r.IntN(10) {
		if ktlstest.CanRekey() {
			if err := c.UpdateKey(r.IntN(2) == 0); err != nil {
				return err
			}
		}
		if err := echoOnce(c); err != nil {
			return err
		}
	}
	return c.CloseWrite()
}

// run loads the daemon for a time.
func (s *soak) run(until time.Time) {
	var clients sync.WaitGroup
	for i := range soakClients {
		clients.Go(func() {
			r := rand.New(rand.NewPCG(s.seed, uint64(i)))
			for time.Now().Before(until) {
				s.connect(r)
			}
		})
	}
	clients.Go(func() { s.kill(rand.New(rand.NewPCG(s.seed, 1<<32)), until) })
	clients.Go(func() {
		for time.Now().Before(until) { // the application's system calls are interrupted
			unix.Kill(os.Getpid(), unix.SIGURG)
			time.Sleep(3 * time.Millisecond)
		}
	})
	clients.Wait()
}

func (s *soak) connect(r *rand.Rand) {
	fault := soakFaults[r.IntN(len(soakFaults))]
	began := time.Now()
	s.tried.Add(1)
	c, err := net.DialTimeout("tcp", s.d.address, 20*time.Second)
	if err == nil {
		c.SetDeadline(time.Now().Add(20 * time.Second))
		err = fault.play(s, r, c.(*net.TCPConn))
		c.Close()
	}
	switch {
	case !fault.harmless:
	case err == nil:
		s.worked.Add(1)
	case s.dead.Load() || s.killed.Load() > began.Add(-soakAftermath).UnixNano():
		s.excused.Add(1)
	default:
		s.d.t.Errorf("a connection with %s: %v", fault.name, err)
	}
}

// kill kills the newest worker now and then.
func (s *soak) kill(r *rand.Rand, until time.Time) {
	for time.Now().Before(until) {
		time.Sleep(time.Duration(r.Int64N(int64(2 * soakKill))))
		pid := int(s.d.waitFor("worker ready", s.d.log.count("worker ready")).number("worker_pid"))
		if !s.isWorker(pid) {
			continue
		}
		s.killed.Store(time.Now().UnixNano())
		unix.Kill(pid, unix.SIGKILL)
	}
}

// isWorker says that a process lives, and is the daemon's.
func (s *soak) isWorker(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return err == nil && strings.Contains(string(status), fmt.Sprintf("\nPPid:\t%d\n", s.d.cmd.Process.Pid))
}

// killDaemon kills the daemon in the middle of all that.
func (s *soak) killDaemon() {
	time.AfterFunc(s.time/8, func() {
		s.dead.Store(true)
		s.d.cmd.Process.Kill()
	})
	s.run(time.Now().Add(s.time / 4))
	<-s.d.exited
}

// footprint is what a daemon holds when nothing is under way.
type footprint struct {
	descriptors int
	goroutines  float64
	memory      int // KiB
}

func (s *soak) footprint(t *testing.T, metrics string) footprint {
	t.Helper()
	f := footprint{descriptors: s.d.settledDescriptors()}
	f.goroutines = scrape(t, metrics)["go_goroutines"].GetMetric()[0].GetGauge().GetValue()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.d.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rss, _ := strings.Cut(string(status), "VmRSS:")
	if _, err := fmt.Sscan(rss, &f.memory); err != nil {
		t.Fatal(err)
	}
	return f
}

func soakDuration(t *testing.T) time.Duration {
	text := os.Getenv("OFFLOADD_TEST_SOAK")
	if text == "" {
		return soakTime
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestASoakOfFaultsLeavesNothingBehind: clients that delay, reset and leave, workers and a
// daemon that are killed; in the end nothing is held that was not held before.
func TestASoakOfFaultsLeavesNothingBehind(t *testing.T) {
	requireDaemon(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	dir := openDir(t)
	metrics := filepath.Join(dir, "metrics.sock")
	options := daemonOptions{
		socket: filepath.Join(dir, "app.sock"), ledger: filepath.Join(dir, "run", "ledger"),
		settings: fmt.Sprintf("workers = 2\nworker_connections = 40\nmetrics = %q", metrics),
	}
	goroutines := runtime.NumGoroutine()
	for i := range uint64(2) {
		t.Run(fmt.Sprintf("daemon %d", i+1), func(t *testing.T) {
			d := startDaemon(t, sharedIdentity(t), options)
			options.address = d.address
			d.serveApplication(echo)
			capture := ktlstest.StartCapture(t, d.port())
			config := d.clientConfig()
			config.ClientSessionCache = tls.NewLRUClientSessionCache(soakClients)
			config.CurvePreferences = []tls.CurveID{tls.X25519} // others are slow to emulate
			s := &soak{d: d, config: config, seed: seed + i, time: soakDuration(t)}
			s.run(time.Now().Add(s.time / 4)) // what grows once, grows now
			before := s.footprint(t, metrics)
			s.run(time.Now().Add(s.time))
			after := s.footprint(t, metrics)
			t.Logf("%d connections, %d of them whole, %d excused; before %+v, after %+v",
				s.tried.Load(), s.worked.Load(), s.excused.Load(), before, after)
			if after.descriptors > before.descriptors+2 || after.goroutines > before.goroutines+8 ||
				after.memory > before.memory+soakMemory {
				t.Errorf("the daemon held %+v, and holds %+v", before, after)
			}
			if s.worked.Load() < s.excused.Load() {
				t.Error("most connections failed")
			}
			d.mustEcho().Close()
			capture.AssertNoPlaintextFrom(t, d.port(), marker)
			if i == 0 {
				s.killDaemon()
			}
			waitStat(t, "kernel TLS sockets", func(s ktls.Stats) uint64 { return s.CurrTxSw + s.CurrRxSw })
		})
	}
	for range 500 {
		if runtime.NumGoroutine() <= goroutines+2 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d goroutines of this test are left", runtime.NumGoroutine()-goroutines)
}
