// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"errors"
	"io"
	"io/fs"
	"math"
	"net"
	"reflect"
	"syscall"

	"github.com/offloadd/offloadd/blob"
)

// errNoSplice: nothing was moved, or what was moved is accounted for; copy the rest.
// It is not errors.ErrUnsupported, as which some errnos count.
var errNoSplice = errors.New("cannot be spliced")

// ReadFrom writes what it reads from r until the end of it. Regular files go by
// sendfile and TCP and unix stream sockets by splice, also below an
// io.LimitedReader; everything else is copied.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) {
	var n int64
	var err error
	source, limit := r, int64(math.MaxInt64)
	limited, ok := r.(*io.LimitedReader)
	if ok {
		source, limit = limited.R, limited.N
	}
	if file, ok := regularFile(source); ok {
		n, err = c.sendFile(file, limit)
	} else if socket, ok := streamSocket(source); ok {
		n, err = c.spliceFrom(socket, limit)
	}
	if limited != nil {
		limited.N -= n
	}
	if errors.Is(err, io.EOF) {
		return n, nil
	}
	if err != nil && !errors.Is(err, errNoSplice) {
		return n, err
	}
	m, err := c.copyRest(r)
	return n + m, err
}

// copyRest copies what is left: all, or what a file got after we looked at its size,
// or what a file of no known size has (/proc). Often it is nothing, hence the small
// buffer first.
func (c *Conn) copyRest(r io.Reader) (int64, error) {
	first := make([]byte, 512)
	defer clear(first)
	n, err := r.Read(first)
	written, werr := c.Write(first[:n])
	switch {
	case werr != nil:
		return int64(written), werr
	case errors.Is(err, io.EOF):
		return int64(written), nil
	case err != nil:
		return int64(written), err
	}
	m, err := copyFrom(c, r)
	return int64(written) + m, err
}

// WriteTo reads application data until close_notify and writes it to w. It is copied by
// large reads, or, if w is a TCP or unix stream socket or another Conn, and the kernel
// copies what it reads anyway ([Settings], NoPad), it goes by splice.
func (c *Conn) WriteTo(w io.Writer) (int64, error) {
	var n int64
	if sink, ok := pipeSinkOf(w); ok && !c.readsInPlace() {
		var err error
		if n, err = c.spliceTo(w, sink); !errors.Is(err, errNoSplice) {
			return n, err
		}
	}
	m, err := c.copyTo(w)
	return n + m, err
}

// readsInPlace says whether the kernel opens records in the buffer of who reads. A
// splice then saves nothing, and takes one record at a time
// (net/tls/tls_sw.c, tls_sw_recvmsg and tls_sw_splice_read).
func (c *Conn) readsInPlace() bool {
	if c.version == blob.TLS12 {
		return true
	}
	var on bool
	err := control(c.tcp, func(fd int) (err error) {
		on, err = expectsNoPad(fd)
		return err
	})
	return err == nil && on
}

// copyTo is WriteTo through a buffer.
func (c *Conn) copyTo(w io.Writer) (int64, error) {
	var l loan
	defer l.giveBack()
	var total int64
	for {
		n, err := c.readLoan(&l)
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		m, err := w.Write(l.buffer[:n])
		total += int64(m)
		if err != nil {
			return total, err
		}
	}
}

// copyFrom is io.Copy with a large buffer and without ReadFrom and WriteTo.
func copyFrom(c *Conn, r io.Reader) (int64, error) {
	var l loan
	defer l.giveBack()
	l.used = copyBuffer
	return io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{r}, l.take())
}

// fileReader is an *os.File, or the type that package os puts around it before it
// calls ReadFrom.
type fileReader interface {
	fs.File
	io.Seeker
	syscall.Conn
}

// regularFile returns r if it is a file that has a size.
func regularFile(r io.Reader) (fileReader, bool) {
	f, ok := r.(fileReader)
	if !ok {
		return nil, false
	}
	info, err := f.Stat()
	return f, err == nil && info.Mode().IsRegular()
}

// streamSocket returns r if it is exactly a TCP or unix stream socket of package
// net. A type that embeds one may have bytes of its own to read first.
func streamSocket(r any) (syscall.Conn, bool) {
	switch v := r.(type) {
	case *net.TCPConn:
		return v, true
	case *net.UnixConn:
		return v, v.LocalAddr().Network() == "unix"
	}
	// (*net.TCPConn).WriteTo, which io.Copy calls first, comes back to us with the
	// connection in this type.
	if t := reflect.TypeOf(r); t != nil && t.PkgPath() == "net" && t.Name() == "tcpConnWithoutWriteTo" {
		v, ok := r.(syscall.Conn)
		return v, ok
	}
	return nil, false
}

// pipeSink takes what is in a pipe. It returns how much it took.
type pipeSink func(p *pipe, n int) (int, error)

func pipeSinkOf(w io.Writer) (pipeSink, bool) {
	if c, ok := w.(*Conn); ok {
		return c.sendPipe, true
	}
	socket, ok := streamSocket(w)
	if !ok {
		return nil, false
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil, false
	}
	return func(p *pipe, n int) (int, error) { return p.moveOut(raw, n) }, true
}
