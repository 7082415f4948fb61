// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func writeFile(t testing.TB, data []byte) *os.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// readAsync reads everything from c until its end.
func readAsync(c net.Conn) func() ([]byte, error) {
	type result struct {
		data []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		c.SetReadDeadline(time.Now().Add(30 * time.Second))
		data, err := io.ReadAll(c)
		done <- result{data, err}
	}()
	return func() ([]byte, error) { r := <-done; return r.data, r.err }
}

// TestSendfile sends files whole and in part, by io.Copy and io.CopyN.
func TestSendfile(t *testing.T) {
	sizes := []int{0, 1, 16383, 16384, 16385, 65536, 1<<20 + 1, 5<<20 + 7}
	all := randomBytes(sizes[len(sizes)-1])
	for _, c := range []struct {
		name string
		copy func(dst io.Writer, f *os.File, size int) (int64, error)
		want func(data []byte) []byte
	}{
		{"io.Copy", func(dst io.Writer, f *os.File, _ int) (int64, error) { return io.Copy(dst, f) },
			func(data []byte) []byte { return data }},
		{"a limit beyond the end", func(dst io.Writer, f *os.File, size int) (int64, error) {
			return io.Copy(dst, io.LimitReader(f, int64(size)+100000))
		}, func(data []byte) []byte { return data }},
		{"a limit before the end", func(dst io.Writer, f *os.File, size int) (int64, error) {
			return io.Copy(dst, io.LimitReader(f, int64(size)/2))
		}, func(data []byte) []byte { return data[:len(data)/2] }},
		{"from the middle", func(dst io.Writer, f *os.File, size int) (int64, error) {
			f.Seek(int64(size)/3, io.SeekStart)
			return io.Copy(dst, f)
		}, func(data []byte) []byte { return data[len(data)/3:] }},
	} {
		for _, size := range sizes {
			t.Run(fmt.Sprintf("%s, %d bytes", c.name, size), func(t *testing.T) {
				client, server := newConns(t, suite13)
				data := all[:size:size]
				f := writeFile(t, data)
				want := c.want(data)
				result := readAsync(server)
				n, err := c.copy(client, f, size)
				if n != int64(len(want)) || err != nil {
					t.Errorf("sent %d bytes of %d, %v", n, len(want), err)
				}
				if at, _ := f.Seek(0, io.SeekCurrent); size > 0 && c.name == "io.Copy" && at != int64(size) {
					t.Errorf("the file is at %d", at)
				}
				client.Write([]byte("end"))
				client.Close()
				got, err := result()
				if err != nil || !bytes.Equal(got, append(want[:len(want):len(want)], "end"...)) {
					t.Errorf("%d bytes arrived of %d, %v", len(got), len(want)+3, err)
				}
			})
		}
	}
}

// TestTheLastRecordOfAFileLeavesAtOnce: on Linux 6.1 a count beyond the end of the
// file would keep it back.
func TestTheLastRecordOfAFileLeavesAtOnce(t *testing.T) {
	client, server := newConns(t, suite13)
	f := writeFile(t, randomBytes(20000))
	if n, err := io.Copy(client, io.LimitReader(f, 1<<20)); n != 20000 || err != nil {
		t.Fatal(n, err)
	}
	server.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadFull(server, make([]byte, 20000)); err != nil {
		t.Error(err)
	}
}

// TestNoCopyThroughThisProcess measures what sendfile and splice save: the buffer.
func TestNoCopyThroughThisProcess(t *testing.T) {
	const size, limit = 8 << 20, 64 << 10 // and a buffer for what is no data
	allocated := func(f func()) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f()
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	sink := func(r io.Reader) {
		p := make([]byte, 32<<10)
		for {
			if _, err := r.Read(p); err != nil {
				return
			}
		}
	}
	t.Run("sendfile", func(t *testing.T) {
		client, server := newConns(t, suite13)
		go sink(server)
		f := writeFile(t, randomBytes(size))
		if n := allocated(func() { io.Copy(client, f) }); n > limit+32<<10 {
			t.Errorf("allocated %d bytes", n)
		}
	})
	t.Run("splice out", func(t *testing.T) {
		client, server := newConns(t, suite13)
		plain := ktlstest.NewPair(t)
		go sink(plain.Server)
		data := randomBytes(size)
		go func() {
			client.Write(data)
			client.CloseWrite()
		}()
		if n := allocated(func() { io.Copy(plain.Client, server) }); n > limit+320<<10 {
			t.Errorf("allocated %d bytes", n)
		}
	})
}

func TestAFileThatGrowsAndOneOfNoSize(t *testing.T) {
	client, server := newConns(t, suite13)
	f, err := os.Open("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	result := readAsync(server)
	n, err := io.Copy(client, f)
	if n == 0 || err != nil {
		t.Error(n, err)
	}
	client.Close()
	if got, err := result(); int64(len(got)) != n || err != nil || !bytes.Contains(got, []byte("Threads:")) {
		t.Errorf("%d bytes of %d, %v", len(got), n, err)
	}
}

// unixPair returns both ends of a unix stream connection.
func unixPair(t testing.TB) (*net.UnixConn, *net.UnixConn) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a.(*net.UnixConn), b.(*net.UnixConn)
}

type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// plainSockets are what a proxy has on its other side.
var plainSockets = map[string]func(t testing.TB) (near, far halfCloser){
	"TCP": func(t testing.TB) (halfCloser, halfCloser) {
		p := ktlstest.NewPair(t)
		return p.Client, p.Server
	},
	"unix": func(t testing.TB) (halfCloser, halfCloser) { return unixPair(t) },
	"another Conn": func(t testing.TB) (halfCloser, halfCloser) {
		a, b := newConns(t, suite12)
		return a, b
	},
}

// awkward are sizes of records around those of pages and pipes.
var awkward = []int{1, 2, 4095, 4096, 4097, 16379, 1, 16380, 16383, 16384, 16385, 40000, 65535, 7, 100000}

// waysOut are those of WriteTo to a socket: by splice, and by large reads.
var waysOut = []ktls.Settings{{}, {NoPad: true}}

func TestSocketsAreCarriedBothWays(t *testing.T) {
	var data []byte
	for range 4 {
		for _, n := range awkward {
			data = append(data, randomBytes(n)...)
		}
	}
	writeAwkwardly := func(w io.Writer) {
		rest := data
		for i := 0; len(rest) > 0; i++ {
			n := min(awkward[i%len(awkward)], len(rest))
			if _, err := w.Write(rest[:n]); err != nil {
				return
			}
			rest = rest[n:]
		}
	}
	for name, plain := range plainSockets {
		for _, settings := range waysOut {
			t.Run(fmt.Sprintf("out to %s, %+v", name, settings), func(t *testing.T) {
				client, server := newConnsWith(t, settings)
				near, far := plain(t)
				result := readAsync(far)
				go func() {
					writeAwkwardly(client)
					client.CloseWrite()
				}()
				n, err := io.Copy(near, server)
				if n != int64(len(data)) || err != nil {
					t.Errorf("%d bytes of %d, %v", n, len(data), err)
				}
				near.CloseWrite()
				if got, err := result(); !bytes.Equal(got, data) || err != nil {
					t.Errorf("%d bytes of %d arrived, %v", len(got), len(data), err)
				}
			})
		}
		t.Run("in from "+name, func(t *testing.T) {
			client, server := newConns(t, suite13)
			near, far := plain(t)
			result := readAsync(server)
			go func() {
				writeAwkwardly(far)
				far.CloseWrite()
			}()
			n, err := io.Copy(client, near)
			if n != int64(len(data)) || err != nil {
				t.Errorf("%d bytes of %d, %v", n, len(data), err)
			}
			client.Close()
			if got, err := result(); !bytes.Equal(got, data) || err != nil {
				t.Errorf("%d bytes of %d arrived, %v", len(got), len(data), err)
			}
		})
		t.Run("a part in from "+name, func(t *testing.T) {
			client, server := newConns(t, suite13)
			near, far := plain(t)
			go writeAwkwardly(far)
			result := readAsync(server)
			if n, err := io.CopyN(client, near, 50000); n != 50000 || err != nil {
				t.Error(n, err)
			}
			client.Close()
			if got, err := result(); !bytes.Equal(got, data[:50000]) || err != nil {
				t.Errorf("%d bytes arrived, %v", len(got), err)
			}
		})
	}
}

func TestWriteToGoesOnAfterControlRecordsAndPartialReads(t *testing.T) {
	for _, settings := range waysOut {
		t.Run(fmt.Sprintf("%+v", settings), func(t *testing.T) { writeToGoesOn(t, settings) })
	}
}

func writeToGoesOn(t *testing.T, settings ktls.Settings) {
	p, conn := installedWith(t, settings)
	plain := ktlstest.NewPair(t)
	result := readAsync(plain.Server)
	p.Server.Write([]byte("one two "))
	sendRecord(t, p.Server, 22, ticket(100))
	p.Server.Write([]byte("three "))
	sendRecord(t, p.Server, 22, append(ticket(10), ticket(11)...))
	p.Server.Write([]byte("four"))
	sendRecord(t, p.Server, 21, []byte{1, 0})
	if _, err := io.ReadFull(conn, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(plain.Client, conn)
	plain.Client.Close()
	got, rerr := result()
	if string(got) != "two three four" || n != int64(len(got)) || err != nil || rerr != nil {
		t.Errorf("%q, %d, %v, %v", got, n, err, rerr)
	}
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Error(err)
	}
}

func TestWriteToReportsTheEndAsReadDoes(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(t *testing.T, peer *net.TCPConn)
		want error
	}{
		{"a FIN", func(_ *testing.T, peer *net.TCPConn) { peer.CloseWrite() }, io.ErrUnexpectedEOF},
		{"a KeyUpdate", func(t *testing.T, peer *net.TCPConn) { sendRecord(t, peer, 22, keyUpdate) }, ktls.ErrKeyUpdate},
	} {
		for _, settings := range waysOut {
			t.Run(fmt.Sprintf("%s, %+v", c.name, settings), func(t *testing.T) {
				p, conn := installedWith(t, settings)
				plain := ktlstest.NewPair(t)
				p.Server.Write([]byte("text"))
				c.end(t, p.Server)
				if n, err := io.Copy(plain.Client, conn); n != 4 || !errors.Is(err, c.want) {
					t.Error(n, err)
				}
			})
		}
	}
}

// TestTheCountIsWhatTheSinkTook ends the sink early.
func TestTheCountIsWhatTheSinkTook(t *testing.T) {
	for _, settings := range waysOut {
		t.Run(fmt.Sprintf("%+v", settings), func(t *testing.T) { countOfTheSink(t, settings) })
	}
}

func countOfTheSink(t *testing.T, settings ktls.Settings) {
	client, server := newConnsWith(t, settings)
	near, far := unixPair(t)
	go func() {
		p := make([]byte, 1000)
		for client.SetWriteDeadline(time.Now().Add(10*time.Second)) == nil {
			if _, err := client.Write(p); err != nil {
				return
			}
		}
	}()
	go func() {
		io.ReadFull(far, make([]byte, 300000))
		near.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	}()
	n, err := io.Copy(near, server)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(n, err)
	}
	near.Close()
	rest, err := io.Copy(io.Discard, far)
	if n != 300000+rest || err != nil {
		t.Errorf("%d bytes were reported and %d arrived, %v", n, 300000+rest, err)
	}
}
