// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/blob"
)

// envEnter makes the test binary enter keys into the ledger that it names until it is
// killed.
const envEnter = "OFFLOADD_TEST_ENTER"

func TestMain(m *testing.M) {
	if path := os.Getenv(envEnter); path != "" {
		l, err := Open(path, blob.Instance{1}, quiet())
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		l.alive = func() (map[uint64]struct{}, error) { return map[uint64]struct{}{}, nil }
		for n := uint64(1); ; n++ {
			p := testPair(n, 1)
			for i := range 7 {
				p.read.Key.Bytes()[i], p.write.Key.Bytes()[i] = byte(n>>(8*i)), byte(n>>(8*i))
			}
			if _, err := l.Enter(p); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			if n == 100 {
				fmt.Println("busy")
			}
			if n%50 == 0 {
				if err := l.sweep(); err != nil {
					fmt.Println(err)
					os.Exit(1)
				}
			}
		}
	}
	os.Exit(m.Run())
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func testPath(t testing.TB) string { return filepath.Join(t.TempDir(), "run", "ledger") }

func mustOpen(t testing.TB, path string) *Ledger {
	t.Helper()
	l, err := Open(path, blob.Instance{0xcd}, quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// testConnection is a TCP connection of one end in this process, and its cookie.
func testConnection(t *testing.T, network, address string) (net.Conn, uint64) {
	t.Helper()
	listener, err := net.Listen(network, address)
	if err != nil {
		t.Skip(err)
	}
	defer listener.Close()
	c, err := net.Dial(listener.Addr().Network(), listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	peer, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); peer.Close() })
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var cookie uint64
	raw.Control(func(fd uintptr) { cookie, err = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE) })
	if err != nil {
		t.Fatal(err)
	}
	return c, cookie
}

// TestEntriesEndWithTheirSocket: the next daemon knows what was imported into a socket
// that lives, and no more.
func TestEntriesEndWithTheirSocket(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		path := testPath(t)
		c, cookie := testConnection(t, "tcp", address)
		l := mustOpen(t, path)
		if _, err := l.Enter(testPair(cookie, 1)); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Enter(testPair(cookie+1<<32, 3)); err != nil {
			t.Fatal(err)
		}
		l.Close()
		l = mustOpen(t, path)
		if n := l.Stats().Entries; n != 2 {
			t.Errorf("%s: %d entries, want the 2 of the socket that lives", address, n)
		}
		if _, err := l.Enter(testPair(cookie, 1)); !errors.Is(err, ErrReplay) {
			t.Errorf("%s: %v", address, err)
		}
		l.Close()
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
		for range 100 {
			if live, err := liveSockets(); err != nil {
				t.Fatal(err)
			} else if _, ok := live[cookie]; !ok {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if n := mustOpen(t, path).Stats().Entries; n != 0 {
			t.Errorf("%s: %d entries of a socket that is gone", address, n)
		}
	}
}

// TestALedgerIsOpenedOrRefused: what may go on, goes on; what may not says why and
// what to do.
func TestALedgerIsOpenedOrRefused(t *testing.T) {
	rewrite := func(change func(h *header, b []byte) []byte) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			c, err := decode(b)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, change(&c.header, b), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	reencode := func(change func(h *header)) func(*testing.T, string) {
		return rewrite(func(h *header, b []byte) []byte {
			c, _ := decode(b)
			change(h)
			b, _ = encode(*h, c.records)
			return b
		})
	}
	_, cookie := testConnection(t, "tcp", "127.0.0.1:0")
	for _, c := range []struct {
		name    string
		prepare func(t *testing.T, path string)
		err     error
		remedy  string
		entries int
	}{
		{"as it was left", func(*testing.T, string) {}, nil, "", 2},
		{"a new file beside, never renamed", func(t *testing.T, path string) { os.WriteFile(path+".new", []byte("half"), 0o600) }, nil, "", 2},
		{"a torn end", rewrite(func(_ *header, b []byte) []byte { return append(b, b[len(b)-30:]...) }), nil, "", 2},
		{"of another boot", reencode(func(h *header) { h.boot[0] ^= 1 }), nil, "", 0},
		{"of another namespace", reencode(func(h *header) { h.namespace++ }), ErrForeign, "a ledger of its own", 0},
		{"a record changed", rewrite(func(_ *header, b []byte) []byte { b[headerSize+9] ^= 1; return b }), ErrCorrupt, "remove the file", 0},
		{"emptied", rewrite(func(*header, []byte) []byte { return nil }), ErrCorrupt, "remove the file", 0},
		{"something else", rewrite(func(*header, []byte) []byte { return make([]byte, 100) }), ErrCorrupt, "remove the file", 0},
		{"writable by others", func(t *testing.T, path string) { os.Chmod(path, 0o622) }, ErrForeign, "others must not", 0},
		{"in a directory of others", func(t *testing.T, path string) { os.Chmod(filepath.Dir(path), 0o777) }, ErrForeign, "others must not", 0},
		{"a link", func(t *testing.T, path string) { os.Rename(path, path+"2"); os.Symlink(path+"2", path) }, unix.ELOOP, "ledger", 0},
		{"a FIFO", func(t *testing.T, path string) { os.Remove(path); unix.Mkfifo(path, 0o600) }, ErrCorrupt, "remove the file", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := testPath(t)
			l := mustOpen(t, path)
			if _, err := l.Enter(testPair(cookie, 1)); err != nil {
				t.Fatal(err)
			}
			l.Close()
			c.prepare(t, path)
			l, err := Open(path, blob.Instance{2}, quiet())
			if c.err != nil {
				if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.remedy) || !strings.Contains(err.Error(), path) {
					t.Fatalf("got %v, want %v and %q", err, c.err, c.remedy)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if n := l.Stats().Entries; n != c.entries {
				t.Errorf("%d entries, want %d", n, c.entries)
			}
			if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
				t.Errorf("mode %v, %v", info.Mode(), err)
			}
		})
	}
}

// TestOneDaemonAtATime: also while the file is being replaced.
func TestOneDaemonAtATime(t *testing.T) {
	path := testPath(t)
	l := mustOpen(t, path)
	for range 2 {
		if _, err := Open(path, blob.Instance{2}, quiet()); !errors.Is(err, ErrHeld) || !strings.Contains(err.Error(), "--ledger") {
			t.Errorf("a second one: %v", err)
		}
		if err := l.sweep(); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Enter(testPair(11, 1)); err == nil {
		t.Error("a closed ledger enters")
	}
	mustOpen(t, path)
}

// TestAKillLeavesALedgerThatOpens: in the middle of writes and of compaction.
func TestAKillLeavesALedgerThatOpens(t *testing.T) {
	path := testPath(t)
	for round := range 20 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), envEnter+"="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line := make([]byte, 4)
		if _, err := io.ReadFull(out, line); err != nil || string(line) != "busy" {
			t.Errorf("the child says %q, %v", line, err)
		}
		time.Sleep(time.Duration(round) * 317 * time.Microsecond)
		cmd.Process.Kill()
		cmd.Wait()
		l, err := Open(path, blob.Instance{2}, quiet())
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		l.Close()
	}
}

// BenchmarkEnter: one connection, both keys, on a file system in memory.
func BenchmarkEnter(b *testing.B) {
	dir, err := os.MkdirTemp("/dev/shm", "offloadd-test-")
	if err != nil {
		b.Skip(err)
	}
	defer os.RemoveAll(dir)
	l, err := Open(filepath.Join(dir, "ledger"), blob.Instance{1}, quiet())
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	read, write := testKey(1, blob.Read, 0, 0, 1), testKey(1, blob.Write, 0, 0, 2)
	for n := uint64(1); b.Loop(); n++ {
		read.Cookie, write.Cookie = n, n
		for i := range 7 {
			read.Key.Bytes()[i], write.Key.Bytes()[i] = byte(n>>(8*i)), byte(n>>(8*i))
		}
		if _, err := l.Enter(NewPending(read, write)); err != nil {
			b.Fatal(err)
		}
	}
}
