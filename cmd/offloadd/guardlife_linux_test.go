// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/bpf"
)

// guardedConnections is how many live through what is done to the daemon.
const guardedConnections = 500

// attacker asks for the keys of one of the connections, as root and with a descriptor of
// it, as fast as it can.
type attacker struct {
	sock   *net.TCPConn
	end    context.CancelFunc
	done   sync.WaitGroup
	tries  int
	gotten []error // answers other than EPERM; nil for keys
}

func startAttacker(sock *net.TCPConn) *attacker {
	ctx, cancel := context.WithCancel(context.Background())
	a := &attacker{sock: sock, end: cancel}
	a.done.Go(func() {
		for ctx.Err() == nil {
			if err := askKeys(sock); !errors.Is(err, unix.EPERM) {
				a.gotten = append(a.gotten, err)
			}
			a.tries++
			time.Sleep(100 * time.Microsecond) // the machine has others to serve
		}
	})
	return a
}

// stop reports any success so far.
func (a *attacker) stop(t *testing.T) {
	t.Helper()
	a.end()
	a.done.Wait()
	if len(a.gotten) > 0 || a.tries < 100 {
		t.Errorf("of %d attempts %d were not refused, the first: %v", a.tries, len(a.gotten), a.gotten[:min(1, len(a.gotten))])
	}
}

// TestGuardsOutliveTheDaemon: it is killed, started again, stopped, and the guards are
// loaded anew, also in another form, while 500 connections run. There is no moment in
// which their keys can be had, and none is disturbed.
func TestGuardsOutliveTheDaemon(t *testing.T) {
	requireDaemon(t)
	dir := loadGuards(t)
	id := sharedIdentity(t)
	settings := guardedBy(dir)
	d := startDaemon(t, id, daemonOptions{settings: settings})
	application := startEchoApplication(t, d)
	conns := dialMany(t, d, guardedConnections)
	a := startAttacker(takeSocket(t, application, uint64(d.wait("installed").number("socket"))))
	for _, event := range []struct {
		name string
		do   func() error
	}{
		{"the daemon is killed", func() error {
			err := d.cmd.Process.Kill()
			<-d.exited
			return err
		}},
		{"and is started again", func() error {
			d = startDaemon(t, id, daemonOptions{settings: settings, socket: d.socket})
			d.wait("application connected")
			return echoOnce(d.mustEcho())
		}},
		{"the guards are loaded again", func() error {
			r, err := bpf.Load(bpf.Options{Dir: dir})
			return errors.Join(err, allChanged(r, "same"))
		}},
		{"the guards are replaced", func() error {
			if bpf.CanBeSkipped() != nil {
				return nil // by others that a second attacker could outrun
			}
			_, err := bpf.Load(bpf.Options{Dir: dir, Form: bpf.FormModifyReturn})
			return err
		}},
		{"and replaced once more", func() error {
			_, err := bpf.Load(bpf.Options{Dir: dir})
			return err
		}},
		{"the daemon ends", func() error {
			d.stop()
			return nil
		}},
	} {
		if err := event.do(); err != nil {
			t.Fatalf("%s: %v", event.name, err)
		}
		if len(a.gotten) > 0 {
			t.Errorf("when %s, keys were had", event.name)
		}
		useAll(t, event.name, conns)
	}
	a.stop(t)
	if err := bpf.Unload(dir); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); askKeys(a.sock) != nil; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("without guards the attacker fails as well")
		}
	}
}

// allChanged checks what a load did with each program.
func allChanged(r bpf.Report, want string) error {
	for _, p := range r.Programs {
		if p.Change != want && p.Off == "" {
			return fmt.Errorf("program %s: %s, want %s", p.Name, p.Change, want)
		}
	}
	return nil
}

// dialMany makes connections, a few at a time, resuming after the first.
func dialMany(t *testing.T, d *testDaemon, count int) []*tls.Conn {
	t.Helper()
	config := d.clientConfig()
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	conns := make([]*tls.Conn, count)
	var dialing sync.WaitGroup
	for first := range 8 {
		dialing.Go(func() {
			for i := first; i < count; i += 8 {
				c, err := d.dial(config)
				if err != nil {
					t.Error(err)
					return
				}
				conns[i] = c
				if err := echoOnce(c); err != nil {
					t.Error(err)
				}
			}
		})
	}
	dialing.Wait()
	if t.Failed() {
		t.FailNow()
	}
	t.Cleanup(func() {
		for _, c := range conns {
			c.NetConn().Close()
		}
	})
	return conns
}

func useAll(t *testing.T, when string, conns []*tls.Conn) {
	t.Helper()
	for i, c := range conns {
		if err := echoOnce(c); err != nil {
			t.Fatalf("%s: connection %d: %v", when, i, err)
		}
	}
}
