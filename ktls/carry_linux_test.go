// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// pipesHeld counts the ends of pipes that this process has.
func pipesHeld(t *testing.T) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		// A descriptor may be closed by now.
		if name, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(name, "pipe:") {
			n++
		}
	}
	return n
}

// TestAnIdleConnectionHoldsNoPipe carries a little over one connection after the other,
// both ways, and leaves them idle.
func TestAnIdleConnectionHoldsNoPipe(t *testing.T) {
	const connections = 40
	before := pipesHeld(t)
	for range connections {
		client, server := newConns(t, suite13)
		plain := ktlstest.NewPair(t)
		go io.Copy(plain.Client, server)
		go io.Copy(server, plain.Client)
		for _, d := range []struct {
			to   io.Writer
			from io.Reader
		}{{client, plain.Server}, {plain.Server, client}} {
			if _, err := d.to.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(d.from, make([]byte, 5)); err != nil {
				t.Fatal(err)
			}
		}
	}
	held := pipesHeld(t) - before
	for until := time.Now().Add(5 * time.Second); held >= connections && time.Now().Before(until); held = pipesHeld(t) - before {
		time.Sleep(10 * time.Millisecond)
	}
	if held >= connections {
		t.Errorf("%d ends of pipes for %d idle connections", held, connections)
	}
}

func TestNoPadNeedsNoCopyInTheKernelAndIsToldApart(t *testing.T) {
	ktlstest.Require(t)
	if err := ktls.TryNoPad(); err != nil {
		if ktlstest.InVM() {
			t.Fatal("the newest kernel of each series does it right: ", err)
		}
		t.Skip("this kernel does it wrong: ", err)
	}
	before, err := ktls.ReadStats()
	if err != nil {
		t.Fatal(err)
	}
	client, server := newConnsWith(t, ktls.Settings{NoPad: true})
	data := randomBytes(100_000)
	go client.Write(data)
	got := make([]byte, len(data))
	if _, err := io.ReadFull(server, got); err != nil || string(got) != string(data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	// A record that is no data is opened twice, and that is counted.
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, err := server.Read(got); n != 0 || err != io.EOF {
		t.Fatal(n, err)
	}
	after, err := ktls.ReadStats()
	if err != nil {
		t.Fatal(err)
	}
	if after.DecryptRetry == before.DecryptRetry {
		t.Error("no record was opened twice: the setting does nothing")
	}
}

func TestNoPadIsForTLS13(t *testing.T) {
	ktlstest.Require(t)
	p := ktlstest.NewPair(t)
	client, server := ktlstest.NewStates(t, suite12, p)
	server.Destroy()
	custody, info, err := ktls.Settings{NoPad: true}.InstallKeeping(p.Client, client.Read, client.Write)
	if err != nil || info.NoPad {
		t.Error(fmt.Sprint(info), err)
	}
	custody.Destroy()
}

// TestAPipeWithDataIsNotUsedAgain: what one connection leaves in a pipe, because its sink
// ended, must not reach another.
func TestAPipeWithDataIsNotUsedAgain(t *testing.T) {
	for i := range 4 {
		client, server := newConns(t, suite13)
		plain := ktlstest.NewPair(t)
		if err := errors.Join(plain.Client.SetWriteBuffer(4<<10), plain.Server.SetReadBuffer(4<<10)); err != nil {
			t.Fatal(err)
		}
		go client.Write(randomBytes(1 << 20))
		plain.Client.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		if n, err := io.Copy(plain.Client, server); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(n, err) // all fitted, or it failed otherwise
		}
		other, theirs := newConns(t, suite13)
		sink := ktlstest.NewPair(t)
		result := readAsync(sink.Server)
		go func() {
			other.Write([]byte("only this"))
			other.CloseWrite()
		}()
		_, err := io.Copy(sink.Client, theirs)
		sink.Client.CloseWrite()
		if got, rerr := result(); string(got) != "only this" || err != nil || rerr != nil {
			t.Fatalf("%d: %d bytes, %.20q, %v, %v", i, len(got), got, err, rerr)
		}
	}
}
