// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// TestAWorkerKilledAtAnyStepHarmsNobodyElse: the connection it had ends, without a
// byte in clear; others go on; a new worker takes over; no descriptor is left.
func TestAWorkerKilledAtAnyStepHarmsNobodyElse(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: "workers = 1"})
	d.serveApplication(echo)
	capture := ktlstest.StartCapture(t, d.port())
	bystander := d.mustEcho()
	before := 0
	for i, s := range []step{stepReceived, stepHandshaken, stepSealed, stepSent} {
		t.Run(string(s), func(t *testing.T) {
			d.steps.at(s).order.Store(orderKill)
			c, err := d.dial(d.clientConfig())
			if err == nil {
				err = echoOnce(c)
				c.Close()
			}
			// What was sent before the kill is whole, and may be served.
			if err == nil && s != stepSent {
				t.Error("the connection works without a worker")
			}
			d.waitFor("worker died", i+1)
			d.waitFor("worker ready", i+2)
			d.mustEcho().Close()
			if err := echoOnce(bystander); err != nil {
				t.Errorf("a connection from before: %v", err)
			}
			if n := d.settledDescriptors(); before == 0 {
				before = n
			} else if n != before {
				t.Errorf("the daemon has %d descriptors, %d before", n, before)
			}
		})
	}
	t.Run("with the descriptor in flight", func(t *testing.T) {
		// The daemon is stopped while the worker answers, so that the answer waits in the
		// channel when the worker dies. It is whole: the connection must work.
		for _, s := range []step{stepReceived, stepSent} {
			d.steps.at(s).reached.Store(0)
		}
		c, err := net.Dial("tcp", d.address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(30 * time.Second))
		d.waitStep(stepReceived)
		d.steps.at(stepSent).order.Store(orderKill)
		d.cmd.Process.Signal(unix.SIGSTOP)
		client := tlsClient(d, c)
		if err := client.Handshake(); err != nil {
			t.Fatal(err)
		}
		d.waitStep(stepSent)
		time.Sleep(100 * time.Millisecond) // the kill follows the step
		d.cmd.Process.Signal(unix.SIGCONT)
		if err := echoOnce(client); err != nil {
			t.Errorf("the connection in flight: %v", err)
		}
		d.mustEcho().Close()
	})
	t.Run("before a connection", func(t *testing.T) {
		n := d.log.count("worker died")
		ready := d.log.count("worker ready")
		pid := d.waitFor("worker ready", ready).number("worker_pid")
		unix.Kill(int(pid), unix.SIGKILL)
		d.waitFor("worker died", n+1)
		d.mustEcho().Close()
	})
	t.Run("with half a ClientHello", func(t *testing.T) {
		d.steps.at(stepReceived).reached.Store(0)
		c, err := net.Dial("tcp", d.address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write([]byte{22, 3, 1, 2, 0, 1})
		d.waitStep(stepReceived)
		ready := d.log.count("worker ready")
		unix.Kill(int(d.waitFor("worker ready", ready).number("worker_pid")), unix.SIGKILL)
		c.SetDeadline(time.Now().Add(20 * time.Second))
		if b, err := io.ReadAll(c); len(b) != 0 || isTimeout(err) {
			t.Errorf("got %q, %v; want the end", b, err)
		}
		d.waitFor("worker ready", ready+1)
		d.mustEcho().Close()
	})
	if err := echoOnce(bystander); err != nil {
		t.Errorf("a connection from before: %v", err)
	}
	capture.AssertNoPlaintextFrom(t, d.port(), marker) // half a ClientHello went the other way
}

func isTimeout(err error) bool {
	n, ok := err.(net.Error)
	return ok && n.Timeout()
}

// settledDescriptors counts the daemon's descriptors once their number rests.
func (d *testDaemon) settledDescriptors() int {
	last, same := -1, 0
	for range 500 {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.cmd.Process.Pid))
		if err != nil {
			d.t.Fatal(err)
		}
		if len(entries) == last {
			if same++; same == 20 {
				return last
			}
		} else {
			last, same = len(entries), 0
		}
		time.Sleep(10 * time.Millisecond)
	}
	d.t.Fatal("the daemon's descriptors do not come to rest")
	return 0
}

// TestADaemonKilledAtAnyStepLeavesNothingBehind: its connections end without a
// byte in clear, its workers exit, connections handed over before live on, and the
// next daemon serves.
func TestADaemonKilledAtAnyStepLeavesNothingBehind(t *testing.T) {
	requireDaemon(t)
	for _, s := range []step{stepAccepted, stepAttached, stepOffered, stepOpened, stepEntered, stepInstalled, stepHandedOver} {
		t.Run(string(s), func(t *testing.T) {
			d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: "workers = 2"})
			d.serveApplication(echo)
			capture := ktlstest.StartCapture(t, d.port())
			bystander := d.mustEcho()
			d.waitStep(stepHandedOver) // or the order below may be taken for one to this connection
			workers := []int64{d.waitFor("worker ready", 1).number("worker_pid"), d.waitFor("worker ready", 2).number("worker_pid")}
			d.steps.at(s).order.Store(orderKill)
			c, err := d.dial(d.clientConfig())
			if err == nil {
				if s == stepHandedOver {
					err = echoOnce(c)
				} else {
					err = expectEnd(c)
				}
				if err != nil {
					t.Error(err)
				}
				c.Close()
			}
			<-d.exited
			if err := echoOnce(bystander); err != nil {
				t.Errorf("a connection handed over before: %v", err)
			}
			for _, pid := range workers {
				expectExit(t, int(pid))
			}
			capture.AssertNoPlaintext(t, marker)
		})
	}
}

// expectExit waits until a process that is not our child is gone.
func expectExit(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil || strings.Contains(string(status), "State:\tZ") {
			return
		}
	}
	t.Errorf("process %d is still there", pid)
}

// TestAStrangerIsEnded: what is no TLS gets nothing but TLS back, and an end.
func TestAStrangerIsEnded(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: "handshake_timeout = \"3s\""})
	d.serveApplication(echo)
	capture := ktlstest.StartCapture(t, d.port())
	for name, first := range map[string]string{
		"plain HTTP": "GET / HTTP/1.0\r\n\r\n", "nothing": "", "half a record": "\x16\x03\x01\x02\x00\x01", "noise": "\x00\xff\x00\xff\x00",
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", d.address)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			io.WriteString(c, first)
			c.SetDeadline(time.Now().Add(20 * time.Second))
			b, err := io.ReadAll(c)
			if isTimeout(err) {
				t.Error("the connection hangs")
			}
			if _, err := ktlstest.ParseRecords(b); err != nil {
				t.Errorf("got %q, which is no TLS: %v", b, err)
			}
		})
	}
	t.Run("gone at once", func(t *testing.T) {
		for range 20 {
			c, err := net.Dial("tcp", d.address)
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
		}
	})
	d.mustEcho()
	capture.AssertNoPlaintextFrom(t, d.port(), marker)
}

// TestNoApplicationEndsTheConnectionProperly: nobody takes it, so the peer is told
// by close_notify.
func TestNoApplicationEndsTheConnectionProperly(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: "application_timeout = \"300ms\""})
	c, err := d.dial(d.clientConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("read %d, %v; want EOF by close_notify", n, err)
	}
	d.waitText("connection ended", errNoApplication.Error())
	d.serveApplication(echo)
	d.mustEcho()
}
