// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// limitedConns returns both ends of a connection, of which the first may write so
// many records. (ktlstest imports this package.)
func limitedConns(t *testing.T, records uint64) (*Conn, *Conn) {
	t.Helper()
	p, err := newKeyedPair(probeSuite13)
	if errors.Is(err, ErrNoTLS) && os.Getenv("OFFLOADD_VM_KERNEL") == "" {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	a, err := NewConn(p.a)
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewConn(p.b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.Close()
		b.Close()
	})
	a.out.counter.limit = records
	return a, b
}

func TestWritingStopsBeforeTheRecordLimit(t *testing.T) {
	const limit = 20
	data := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		write func(c *Conn) (int64, error)
	}{
		{"Write", func(c *Conn) (int64, error) { n, err := c.Write(data); return int64(n), err }},
		{"sendfile", func(c *Conn) (int64, error) {
			f, err := os.Open(name)
			if err != nil {
				return 0, err
			}
			defer f.Close()
			return io.Copy(c, f)
		}},
		{"splice", func(c *Conn) (int64, error) {
			a, b, err := loopback()
			if err != nil {
				return 0, err
			}
			defer a.Close()
			go func() {
				b.Write(data)
				b.Close()
			}()
			return io.Copy(c, a)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, peer := limitedConns(t, limit)
			received := make(chan int64, 1)
			go func() {
				n, _ := io.Copy(io.Discard, struct{ io.Reader }{peer})
				received <- n
			}()
			n, err := c.write(conn)
			if !errors.Is(err, ErrRecordLimit) || n == 0 || n > limit*maxRecordContent {
				t.Errorf("%d bytes, %v", n, err)
			}
			if err := conn.CloseWrite(); err != nil {
				t.Errorf("close_notify: %v", err)
			}
			if got := <-received; got != n {
				t.Errorf("%d bytes arrived of %d", got, n)
			}
			if got := recordsWritten(t, conn); got > limit+1 {
				t.Errorf("the kernel wrote %d records", got)
			}
		})
	}
}

// recordsWritten reads rec_seq, and the key with it, as only a test does.
func recordsWritten(t *testing.T, c *Conn) uint64 {
	t.Helper()
	var n uint64
	err := control(c.tcp, func(fd int) error {
		info, err := readKey(fd, optTX, layouts[probeSuite13.AEAD()].size)
		if err == nil {
			for _, b := range layouts[probeSuite13.AEAD()].seq.of(info) {
				n = n<<8 | uint64(b)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
