// SPDX-License-Identifier: Apache-2.0

package userspace_test

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
	"github.com/offloadd/offloadd/ktls/userspace"
)

// open opens the client's end of a new pair, whose other end is a peer.
func open(t *testing.T, c *userspace.Chooser, suite blob.CipherSuite) (*userspace.Choice, *peer, *pair, error) {
	t.Helper()
	p := newStates(t, suite)
	choice, err := c.Open(p.Client, p.client.Read, p.client.Write)
	if err == nil {
		t.Cleanup(func() {
			choice.SetWriteDeadline(time.Now())
			choice.Close()
		})
	}
	return choice, &peer{Conn: p.Server, read: p.server.Read, write: p.server.Write}, p, err
}

// exchange carries data both ways and ends the connection.
func exchange(t *testing.T, c *userspace.Choice, theirs *peer) {
	t.Helper()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	theirs.send(t, 23, []byte("down"))
	got := make([]byte, 4)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "down" {
		t.Errorf("%s: %q, %v", c.Path(), got, err)
	}
	if _, err := c.Write([]byte("up")); err != nil {
		t.Errorf("%s: %v", c.Path(), err)
	}
	theirs.receiveData(t, 2)
	if err := c.CloseWrite(); err != nil {
		t.Errorf("%s: %v", c.Path(), err)
	}
	if kind, content, err := theirs.receive(); kind != 21 || string(content) != "\x01\x00" || err != nil {
		t.Errorf("%s: type %d, %x, %v", c.Path(), kind, content, err)
	}
}

// refused expects an error, destroyed states, and a socket that sends nothing more.
func refused(t *testing.T, p *pair, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%v, want %v", err, want)
	}
	for _, s := range []*blob.State{p.client.Read, p.client.Write} {
		if s.Validate() == nil {
			t.Error("a state is left")
		}
	}
	p.Client.Write([]byte("in clear"))
	if b, err := io.ReadAll(p.Server); len(b) > 0 || err != nil {
		t.Errorf("the peer got %q, %v", b, err)
	}
}

func TestNeverIsUserSpace(t *testing.T) {
	for _, suite := range aeadSuites {
		c, theirs, _, err := open(t, &userspace.Chooser{Policy: userspace.Never}, suite)
		if err != nil {
			t.Fatal(err)
		}
		if !errors.Is(c.Reason, userspace.ErrPolicy) || !strings.HasPrefix(c.Path(), "user space (the policy") {
			t.Errorf("%s", c.Path())
		}
		exchange(t, c, theirs)
	}
}

// TestTheKernelHasWhatItCan: by both other policies, and the second time without a trial.
func TestTheKernelHasWhatItCan(t *testing.T) {
	ktlstest.Require(t)
	for _, policy := range []userspace.Policy{userspace.Require, userspace.Prefer} {
		chooser := &userspace.Chooser{Policy: policy}
		for _, suite := range append(aeadSuites, aeadSuites...) {
			c, theirs, _, err := open(t, chooser, suite)
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := c.Layer.(*ktls.Conn); !ok || c.Reason != nil || !strings.HasPrefix(c.Path(), "kernel, sending sw, receiving sw (") {
				t.Errorf("%v, %v: %s", policy, suite, c.Path())
			}
			exchange(t, c, theirs)
		}
	}
}

// TestWithoutKernelTLS needs a kernel that has none.
func TestWithoutKernelTLS(t *testing.T) {
	if ktls.TrySuite(suite13) == nil {
		if os.Getenv("OFFLOADD_EXPECT_NO_TLS") != "" {
			t.Fatal("this kernel has TLS")
		}
		t.Skip("this kernel has TLS")
	}
	c, theirs, _, err := open(t, &userspace.Chooser{Policy: userspace.Prefer}, suite13)
	if err != nil {
		t.Fatal(err)
	}
	if !errors.Is(c.Reason, ktls.ErrNoTLS) {
		t.Error(c.Reason)
	}
	exchange(t, c, theirs)
	_, _, p, err := open(t, &userspace.Chooser{}, suite13)
	refused(t, p, err, ktls.ErrNoTLS)
}

// TestASuiteThatTheKernelLacks takes the cipher's module out of the kernel, and puts it
// back: what did not work is tried again.
func TestASuiteThatTheKernelLacks(t *testing.T) {
	ktlstest.Require(t)
	const suite = blob.TLS_CHACHA20_POLY1305_SHA256
	if err := ktls.TrySuite(suite); err != nil { // which loads the module
		t.Fatal(err)
	}
	prefer := &userspace.Chooser{Policy: userspace.Prefer}
	t.Run("without", func(t *testing.T) {
		ktlstest.TakeModule(t, "chacha20poly1305")
		for range 2 {
			c, theirs, _, err := open(t, prefer, suite)
			if err != nil {
				t.Fatal(err)
			}
			if !errors.Is(c.Reason, ktls.ErrSuite) {
				t.Error(c.Reason)
			}
			exchange(t, c, theirs)
		}
		_, _, p, err := open(t, &userspace.Chooser{Policy: userspace.Require}, suite)
		refused(t, p, err, ktls.ErrSuite)
		if c, _, _, err := open(t, prefer, suite13); err != nil || c.Reason != nil {
			t.Errorf("a suite that the kernel has: %v", err)
		}
	})
	if c, _, _, err := open(t, prefer, suite); err != nil || c.Reason != nil {
		t.Errorf("with the module again: %v", err)
	}
}

// TestFollowingKeyUpdatesIsAReason: where the kernel changes no key, a connection of
// TLS 1.3 goes to user space, and one of TLS 1.2 does not.
func TestFollowingKeyUpdatesIsAReason(t *testing.T) {
	ktlstest.Require(t)
	prefer := &userspace.Chooser{Policy: userspace.Prefer, FollowKeyUpdates: true}
	c, theirs, _, err := open(t, prefer, suite13)
	if err != nil {
		t.Fatal(err)
	}
	if _, inKernel := c.Layer.(*ktls.Conn); inKernel != ktlstest.CanRekey() {
		t.Errorf("%s", c.Path())
	}
	if !ktlstest.CanRekey() && !errors.Is(c.Reason, ktls.ErrNotSupported) {
		t.Error(c.Reason)
	}
	theirs.sendUpdate(t, 1)
	theirs.send(t, 23, []byte("new key"))
	got := make([]byte, 7)
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "new key" {
		t.Errorf("%s: %q, %v", c.Path(), got, err)
	}
	c.Write([]byte("answer"))
	if theirs.receiveData(t, 6); theirs.read.Epoch != 1 {
		t.Errorf("%s: epoch %d", c.Path(), theirs.read.Epoch)
	}
	if c, _, _, err := open(t, prefer, suite12); err != nil || c.Reason != nil {
		t.Errorf("TLS 1.2: %v", err)
	}
	if !ktlstest.CanRekey() {
		_, _, p, err := open(t, &userspace.Chooser{FollowKeyUpdates: true}, suite13)
		refused(t, p, err, ktls.ErrNotSupported)
	}
}

// TestAPeerThatClosedItsHalf: the kernel takes no ULP behind a FIN, user space does.
func TestAPeerThatClosedItsHalf(t *testing.T) {
	ktlstest.Require(t)
	p := newStates(t, suite13)
	theirs := &peer{Conn: p.Server, read: p.server.Read, write: p.server.Write}
	theirs.send(t, 23, []byte("request"))
	theirs.send(t, 21, []byte{1, 0})
	p.Server.CloseWrite()
	waitFIN(t, p.Client)
	c, err := (&userspace.Chooser{Policy: userspace.Prefer}).Open(p.Client, p.client.Read, p.client.Write)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if !errors.Is(c.Reason, ktls.ErrPeerClosed) {
		t.Error(c.Reason)
	}
	if got, err := io.ReadAll(c); string(got) != "request" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	c.Write([]byte("response"))
	theirs.receiveData(t, 8)
}

func TestAChooserRefusesStatesOfAnotherSocket(t *testing.T) {
	for _, policy := range []userspace.Policy{userspace.Require, userspace.Prefer, userspace.Never} {
		p := newStates(t, suite13)
		p.client.Read.Cookie++
		_, err := (&userspace.Chooser{Policy: policy}).Open(p.Client, p.client.Read, p.client.Write)
		refused(t, p, err, blob.ErrCookie)
	}
}
