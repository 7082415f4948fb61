// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/offloadd/offloadd/ktls"
)

// handshakeTimeout bounds a handshake.
const handshakeTimeout = 30 * time.Second

// small is up to which size a body leaves in one write with its head, on every path.
const small = 16 << 10

// Server answers requests over one path.
type Server struct {
	Path Path
	// TLS is for paths that shake hands.
	TLS *tls.Config
	// WriteSize is how much a path that writes gives to one write, in bytes.
	WriteSize int
	Log       *slog.Logger

	pattern *pattern
	file    *patternFile // nil where bodies are written
	usage   *usageOf
	connections
}

// connections are those that a server or proxy has open.
type connections struct {
	mu       sync.Mutex
	open     map[net.Conn]struct{} // guarded by mu; nil when all were closed
	handling sync.WaitGroup
	accepted atomic.Int64
	failed   atomic.Int64

	probed sync.Once
	noPad  bool
}

// settings are those that the daemon has.
func (c *connections) settings() ktls.Settings {
	c.probed.Do(func() { c.noPad = ktls.TryNoPad() == nil })
	return ktls.Settings{NoPad: c.noPad}
}

// NewServer makes what the server serves.
func NewServer(path Path, config *tls.Config, writeSize int, log *slog.Logger) (*Server, error) {
	s := &Server{Path: path, TLS: config, WriteSize: writeSize, Log: log, pattern: newPattern(writeSize), usage: newUsageOf()}
	if path.files() {
		var err error
		if s.file, err = s.pattern.newFile(math.MaxInt64); err != nil {
			return nil, fmt.Errorf("make the file to serve: %w", err)
		}
	}
	return s, nil
}

// Serve answers until ctx ends, and then closes all connections.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	defer s.usage.close()
	if s.file != nil {
		defer s.file.Close()
	}
	return s.serve(ctx, l, s.Log, func(accepted net.Conn) error { return s.handle(ctx, accepted) })
}

// Listen listens without Multipath TCP, which kernel TLS does not go with.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	config := net.ListenConfig{}
	config.SetMultipathTCP(false)
	return config.Listen(ctx, "tcp", address)
}

// serve runs handle for each connection, and closes the listener and all connections when
// ctx ends.
func (c *connections) serve(ctx context.Context, l net.Listener, log *slog.Logger, handle func(net.Conn) error) error {
	c.open = make(map[net.Conn]struct{})
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	defer c.handling.Wait()
	defer c.closeAll()
	for {
		accepted, err := l.Accept()
		var temporary interface{ Temporary() bool }
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &temporary) && temporary.Temporary():
			c.failed.Add(1)
			log.Warn("accept", "error", err)
			time.Sleep(time.Millisecond) // out of descriptors, say
			continue
		case err != nil:
			return err
		}
		c.accepted.Add(1)
		if !c.add(accepted) {
			accepted.Close()
			continue
		}
		go func() {
			defer c.remove(accepted)
			if err := handle(accepted); err != nil && ctx.Err() == nil {
				c.failed.Add(1)
				log.Warn("connection failed", "peer", accepted.RemoteAddr().String(), "error", err)
			}
		}()
	}
}

func (c *connections) add(accepted net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		return false
	}
	c.open[accepted] = struct{}{}
	c.handling.Add(1)
	return true
}

func (c *connections) remove(accepted net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, accepted)
	c.handling.Done()
}

// closeAll ends all connections at once, whatever is under way: by their deadlines, since
// some paths close politely.
func (c *connections) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for accepted := range c.open {
		accepted.SetDeadline(time.Unix(1, 0))
	}
	c.open = nil
}

func (c *connections) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.open)
}

// handle serves one connection.
func (s *Server) handle(ctx context.Context, accepted net.Conn) error {
	conn, err := s.shake(ctx, accepted)
	if err != nil {
		accepted.Close()
		return err
	}
	defer conn.Close()
	x := exchange{server: s, reader: reader{conn: conn}}
	defer x.close()
	for {
		err := x.next()
		switch {
		case errors.Is(err, errLast), errors.Is(err, io.EOF), isGone(err):
			return nil
		case err != nil:
			return err
		}
	}
}

func (s *Server) shake(ctx context.Context, accepted net.Conn) (net.Conn, error) {
	if s.Path.plain() || s.Path == Handed {
		return accepted, nil
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	return s.Path.open(ctx, accepted, s.TLS, s.settings)
}

// errLast: the peer or we wanted no further request on the connection.
var errLast = errors.New("last request")

// exchange is a connection at work.
type exchange struct {
	server *Server
	reader
	file *patternFile // with an offset of its own; nil until the first body
}

func (x *exchange) close() {
	if x.large != nil {
		x.start = x.end
		x.rest()
	}
	if x.file != nil {
		x.file.Close()
	}
}

// next serves one request.
func (x *exchange) next() error {
	h, err := x.head()
	if errors.Is(err, errHead) {
		return x.refuse(400, err.Error())
	}
	if err != nil {
		return err
	}
	method, path, ok := h.target()
	if !ok {
		return x.refuse(400, "no HTTP/1 request")
	}
	last := h.close
	switch string(method) + " " + string(path) { // does not allocate
	case "POST /echo":
		err = x.echo(h)
	case "PUT /":
		err = x.put(h, false)
	case "PUT /sha256":
		err = x.put(h, true)
	case "GET /usage":
		err = x.text(200, jsonOf(x.server.Usage()), h.close)
	default:
		n, perr := strconv.ParseInt(string(path[min(1, len(path)):]), 10, 64)
		if string(method) != "GET" || perr != nil || n < 0 || path[0] != '/' {
			return x.refuse(404, `there is GET /N, GET /usage, PUT /, PUT /sha256 and POST /echo`)
		}
		err = x.get(n, h.close)
		x.rest() // before the connection is idle
	}
	if err == nil && last {
		return errLast
	}
	return err
}

// appendHead appends the head of an answer; it has at most headRoom bytes.
func appendHead(b []byte, status int, length int64, last bool) []byte {
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, " .\r\nContent-Length: "...)
	b = strconv.AppendInt(b, length, 10)
	if last {
		b = append(b, "\r\nConnection: close"...)
	}
	return append(b, "\r\n\r\n"...)
}

// answer writes a head and a body that lies in the reader's buffer, or nowhere, in one write.
func (x *exchange) answer(body []byte, last bool) error {
	var room [headRoom]byte
	h := appendHead(room[:0], 200, int64(len(body)), last)
	end := x.start // behind the body, which was consumed
	from := end - len(body) - len(h)
	message := x.buffer()[from:end]
	copy(message, h)
	_, err := x.conn.Write(message)
	return err
}

func (x *exchange) text(status int, body []byte, last bool) error {
	_, err := x.conn.Write(append(appendHead(nil, status, int64(len(body)), last), body...))
	return err
}

// refuse answers with an error, after which the connection is of no use: what follows may
// be the body.
func (x *exchange) refuse(status int, why string) error {
	if err := x.text(status, []byte(why+"\n"), true); err != nil {
		return err
	}
	return errLast
}

// bodyLength says whether a body may come, and asks for it if the peer waits.
func (x *exchange) bodyLength(h head) (int64, error) {
	if h.length < 0 {
		return 0, x.refuse(411, "say Content-Length")
	}
	if h.expects {
		if _, err := x.conn.Write([]byte("HTTP/1.1 100 Continue\r\n\r\n")); err != nil {
			return 0, err
		}
	}
	return h.length, nil
}

func (x *exchange) echo(h head) error {
	if h.length > maxEcho {
		return x.refuse(413, fmt.Sprintf("at most %d bytes", maxEcho))
	}
	n, err := x.bodyLength(h)
	if err != nil {
		return err
	}
	body, err := x.body(int(n))
	if err != nil {
		return err
	}
	return x.answer(body, h.close)
}

// received is the answer to PUT.
type received struct {
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256,omitempty"`
}

func (x *exchange) put(h head, sum bool) error {
	n, err := x.bodyLength(h)
	if err != nil {
		return err
	}
	answer := received{}
	hash := sha256.New()
	err = x.drain(n, func(piece []byte) {
		answer.Bytes += int64(len(piece))
		if sum {
			hash.Write(piece)
		}
	})
	if err != nil {
		return err
	}
	if sum {
		answer.SHA256 = fmt.Sprintf("%x", hash.Sum(nil))
	}
	return x.text(200, jsonOf(answer), h.close)
}

// get sends n bytes of the pattern.
func (x *exchange) get(n int64, last bool) error {
	if n <= small {
		return x.getSmall(n, last)
	}
	if _, err := x.conn.Write(appendHead(nil, 200, n, last)); err != nil {
		return err
	}
	if x.server.file == nil {
		return sendPattern(x.conn, x.server.pattern, n, x.server.WriteSize, nil)
	}
	if x.file == nil {
		var err error
		if x.file, err = x.server.file.reopen(); err != nil {
			return err
		}
	}
	return sendFile(x.conn, x.file, n, nil)
}

func (x *exchange) getSmall(n int64, last bool) error {
	body := x.server.pattern.at(0, n)
	if x.start != x.end { // a request waits in the buffer
		return x.text(200, body, last)
	}
	if len(body) > smallRead {
		x.grow()
	}
	x.start = headRoom + copy(x.buffer()[headRoom:], body)
	x.end = x.start
	return x.answer(x.buffer()[headRoom:x.start], last)
}

func jsonOf(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own types
	}
	return append(text, '\n')
}
