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

	listener *Listener
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

	// receiving holds a token while somebody receives: in Accept, or for an answer. More
	// than one may wait, and who receives passes on what is not his.
	receiving chan struct{}
	// arrived tells Accept that there is one more in sockets.
	arrived chan struct{}

	mu   sync.Mutex
	conn *Conn // guarded by mu; nil while there is no channel
	// answers are those who wait for an answer on conn, by cookie; guarded by mu.
	answers map[uint64]chan *Message
	// sockets came while nobody was in Accept; guarded by mu.
	sockets []net.Conn
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
	l := &Listener{path: path, log: log, closed: closed, close: cancel, answers: make(map[uint64]chan *Message),
		receiving: make(chan struct{}, 1), arrived: make(chan struct{}, 1)}
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

// Accept returns the next connection: a *Socket, or a *Plain.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		if s := l.nextSocket(); s != nil {
			return s, nil
		}
		select {
		case <-l.closed.Done():
			return nil, net.ErrClosed
		case <-l.arrived:
			continue
		case l.receiving <- struct{}{}:
		}
		// Who had the token before may have received one.
		s, err := l.nextSocket(), error(nil)
		if s == nil {
			var conn *Conn
			if conn, err = l.channel(); err == nil {
				l.receive(conn)
			}
		}
		<-l.receiving
		if s != nil {
			return s, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// nextSocket returns the one that has waited longest, nil if there is none.
func (l *Listener) nextSocket() net.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.sockets) == 0 || l.closed.Err() != nil {
		return nil
	}
	s := l.sockets[0]
	l.sockets = l.sockets[1:]
	return s
}

// receive receives one message and gives it to whom it is for. The caller has the token.
func (l *Listener) receive(conn *Conn) {
	m, file, err := conn.Receive()
	switch {
	case l.closed.Err() != nil:
		if file != nil {
			file.Close()
		}
		l.drop(conn)
	case errors.Is(err, syscall.ECONNRESET):
		// The daemon ended with a message of ours unread. What it had said before is
		// still there to be received, and then the end (net/unix/af_unix.c).
	case errors.Is(err, os.ErrDeadlineExceeded):
		// Somebody waited for an answer long enough.
	case err != nil:
		l.log.Warn("lost the daemon", "socket", l.path, "error", err)
		l.drop(conn)
	case m.Type == Taken || m.Type == Answered:
		l.answered(m)
	default:
		sock, err := l.newSocket(m, file)
		if err != nil {
			l.log.Warn("refused what the daemon sent", "error", err)
			return
		}
		l.add(sock)
	}
}

// add puts a socket where Accept finds it.
func (l *Listener) add(s net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed.Err() != nil {
		s.Close()
		return
	}
	l.sockets = append(l.sockets, s)
	select {
	case l.arrived <- struct{}{}:
	default:
	}
}

func (l *Listener) newSocket(m *Message, file *os.File) (net.Conn, error) {
	if file == nil {
		return nil, fmt.Errorf("%w: %v, want %v or %v", ErrMalformed, m.Type, Connection, Relayed)
	}
	defer file.Close()
	if m.Type == Relayed {
		return newPlain(m, file)
	}
	if m.Type != Connection {
		return nil, fmt.Errorf("%w: %v, want %v or %v", ErrMalformed, m.Type, Connection, Relayed)
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
	return &Socket{TCPConn: tcp, Facts: m.Facts, Cookie: m.Cookie, listener: l}, nil
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
	for _, s := range l.sockets {
		s.Close()
	}
	l.sockets = nil
	if l.conn == nil {
		return nil
	}
	return l.conn.Close()
}

// Addr returns the path of the daemon's socket.
func (l *Listener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unixpacket"} }
