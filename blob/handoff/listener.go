// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/offloadd/offloadd/blob"
)

// Socket is a connection that was handed to this process: a TCP connection whose
// keys are installed, with the facts of its handshake. Reading and writing it goes
// through the kernel's TLS; ktls.NewConn adds what plain reads and writes lack.
type Socket struct {
	*net.TCPConn
	Facts  *blob.Facts
	Cookie uint64
}

// TLSFacts returns the facts of the handshake.
func (s *Socket) TLSFacts() *blob.Facts { return s.Facts }

// NetConn returns the TCP connection.
func (s *Socket) NetConn() net.Conn { return s.TCPConn }

// Listener is a net.Listener whose connections come from a daemon. Accept may be
// called concurrently with Close.
type Listener struct {
	path string
	log  *slog.Logger
	// closed ends all waiting.
	closed context.Context
	close  context.CancelFunc

	mu   sync.Mutex
	conn *Conn // guarded by mu; nil while there is no channel
	// answers are those who wait for a Taken on conn, by cookie; guarded by mu.
	answers map[uint64]chan *Message
}

// Times of a Listener that has lost its daemon.
const (
	redialFirst = 50 * time.Millisecond
	redialMost  = 2 * time.Second
)

// Listen connects to the daemon's application socket at path. It fails if there is
// no daemon; when one goes away later, Accept waits for the next and says so in
// log, which may be nil.
func Listen(path string, log *slog.Logger) (*Listener, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	closed, cancel := context.WithCancel(context.Background())
	l := &Listener{path: path, log: log, closed: closed, close: cancel, answers: make(map[uint64]chan *Message)}
	if _, err := l.dial(); err != nil {
		cancel()
		return nil, err
	}
	return l, nil
}

// Dial connects to a unix SOCK_SEQPACKET socket.
func Dial(path string) (*Conn, error) {
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("connect to the daemon: %w", err)
	}
	return NewConn(c)
}

func (l *Listener) dial() (*Conn, error) {
	conn, err := Dial(l.path)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed.Err() != nil {
		conn.Close()
		return nil, net.ErrClosed
	}
	// Only the process that listens may send, not one that it gave the channel to.
	conn.Expect(conn.Peer())
	l.conn = conn
	return conn, nil
}

// Accept returns the next connection, a *Socket.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.channel()
		if err != nil {
			return nil, err
		}
		m, file, err := conn.Receive()
		switch {
		case l.closed.Err() != nil:
			if file != nil {
				file.Close()
			}
			l.drop(conn)
			return nil, net.ErrClosed
		case errors.Is(err, syscall.ECONNRESET):
			// The daemon ended with a message of ours unread. What it had said before is
			// still there to be received, and then the end (net/unix/af_unix.c).
			continue
		case err != nil:
			l.log.Warn("lost the daemon", "socket", l.path, "error", err)
			l.drop(conn)
			continue
		case m.Type == Taken:
			l.answered(m)
			continue
		}
		sock, err := newSocket(m, file)
		if err != nil {
			l.log.Warn("refused what the daemon sent", "error", err)
			continue
		}
		return sock, nil
	}
}

func newSocket(m *Message, file *os.File) (*Socket, error) {
	if file == nil {
		return nil, fmt.Errorf("%w: %v, want %v", ErrMalformed, m.Type, Connection)
	}
	defer file.Close()
	if m.Type != Connection {
		return nil, fmt.Errorf("%w: %v, want %v", ErrMalformed, m.Type, Connection)
	}
	c, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrDescriptor, err)
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("%w: a %T", ErrDescriptor, c)
	}
	return &Socket{TCPConn: tcp, Facts: m.Facts, Cookie: m.Cookie}, nil
}

// channel returns the channel to the daemon, and waits for one if there is none.
func (l *Listener) channel() (*Conn, error) {
	for wait := redialFirst; ; wait = min(2*wait, redialMost) {
		l.mu.Lock()
		conn := l.conn
		l.mu.Unlock()
		if conn != nil {
			return conn, nil
		}
		select {
		case <-l.closed.Done():
			return nil, net.ErrClosed
		case <-time.After(wait):
		}
		if _, err := l.dial(); errors.Is(err, net.ErrClosed) {
			return nil, err
		} else if err == nil {
			l.log.Info("found the daemon again", "socket", l.path)
		}
	}
}

func (l *Listener) drop(conn *Conn) {
	conn.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == conn {
		l.conn = nil
		l.unanswered()
	}
}

// Close ends Accept. Connections accepted before stay open.
func (l *Listener) Close() error {
	l.close()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unanswered()
	if l.conn == nil {
		return nil
	}
	return l.conn.Close()
}

// Addr returns the path of the daemon's socket.
func (l *Listener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unixpacket"} }
