// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/offloadd/offloadd/blob"
)

// Server completes a handshake as the server and returns the state of its keys.
//
// The end of ctx, by deadline or cancellation, interrupts it; without one, a silent
// peer keeps it waiting for ever. The deadlines of conn are used for that, and there
// are none afterwards.
//
// conn must not hold back data it has read: its next byte has to be the next byte of
// the socket. If it is a TCP socket, or wraps one and says so by a NetConn method,
// the states are bound to that socket; otherwise their Cookie is 0.
//
// On failure everything secret is destroyed, crypto/tls has sent its alert if it had
// one, and conn is left open for the caller to close: nothing else can be done with
// it. The error wraps one of those in this package.
func Server(ctx context.Context, conn net.Conn, config *Config) (*Session, error) {
	return start(ctx, blob.Server, conn, config)
}

// Client completes a handshake as the client and returns the state of its keys, like
// [Server]. In TLS 1.3 it also takes the session tickets that already came, if conn
// is or wraps a TCP socket, and puts them into the ClientSessionCache; see
// Config.TicketWait.
func Client(ctx context.Context, conn net.Conn, config *Config) (*Session, error) {
	return start(ctx, blob.Client, conn, config)
}

func start(ctx context.Context, role blob.Role, conn net.Conn, config *Config) (*Session, error) {
	h, err := newHandshake(role, conn, config)
	if err != nil {
		return nil, err
	}
	return h.run(ctx)
}

// handshake is one connection on its way from nothing to a Session.
type handshake struct {
	role       blob.Role
	wait       time.Duration
	socket     socket
	wire       *recordConn
	log        *keyLog
	resumption *resumption
	tls        *tls.Conn

	read, write *blob.State
}

func newHandshake(role blob.Role, conn net.Conn, config *Config) (*handshake, error) {
	if conn == nil || config == nil {
		return nil, fmt.Errorf("%w: conn or config is nil", ErrConfig)
	}
	h := &handshake{
		role:       role,
		wait:       config.TicketWait,
		wire:       &recordConn{conn: conn},
		log:        &keyLog{},
		resumption: &resumption{},
	}
	c, err := h.prepare(config.TLS)
	if err != nil {
		return nil, err
	}
	if h.socket, err = findSocket(conn); err != nil {
		return nil, err
	}
	switch {
	case role == blob.Server:
		h.tls = tls.Server(h.wire, c)
	case c.ServerName == "" && !c.InsecureSkipVerify:
		return nil, fmt.Errorf("%w: set ServerName, or the server's certificate cannot be checked", ErrConfig)
	default:
		h.tls = tls.Client(h.wire, c)
	}
	return h, nil
}

// run does everything, and destroys everything unless it all worked.
func (h *handshake) run(ctx context.Context) (*Session, error) {
	var facts blob.Facts
	release := interruptWith(ctx, h.wire.conn)
	err := errors.New("panicked")
	defer func() {
		h.log.destroy()
		h.resumption.destroy()
		if err != nil {
			h.read.Destroy()
			h.write.Destroy()
		}
	}()
	erasing(func() { err = h.steps(ctx) })
	if ended := release(); ended != nil {
		err = fmt.Errorf("%w: %w", ErrHandshake, ended)
	}
	if err == nil {
		facts, err = h.facts()
	}
	if err != nil {
		return nil, err
	}
	return &Session{Read: h.read, Write: h.write, Facts: facts}, nil
}

// steps is the way from a connection to both states, in order.
func (h *handshake) steps(ctx context.Context) error {
	if err := h.shake(ctx); err != nil {
		return err
	}
	if err := h.derive(); err != nil {
		return err
	}
	if err := h.count(); err != nil {
		return err
	}
	h.read.Cookie, h.write.Cookie = h.socket.cookie, h.socket.cookie
	return h.takeTickets(ctx)
}

// shake runs crypto/tls, and takes the connection away from it when it is done.
func (h *handshake) shake(ctx context.Context) error {
	err := h.tls.HandshakeContext(ctx)
	h.wire.detach()
	if err != nil {
		return h.whose(err)
	}
	if !h.wire.atBoundary() {
		return fmt.Errorf("%w: crypto/tls stopped within a record", ErrLocal)
	}
	return nil
}

// whose names the fault behind an error of crypto/tls.
func (h *handshake) whose(err error) error {
	var notTLS tls.RecordHeaderError
	if errors.As(err, &notTLS) && notTLS.Conn != nil {
		// Servers answer "400 Bad Request" on it: give them the real connection.
		notTLS.Conn = h.wire.conn
		err = notTLS
	}
	switch {
	case h.log.err != nil:
		return h.log.err
	case errors.Is(err, ErrConfig): // of GetConfigForClient, or a flight too long
		return err
	case h.wire.err == nil:
		return fmt.Errorf("%w: %w", ErrHandshake, err)
	case errors.Is(err, h.wire.err):
		return err
	default: // crypto/tls saw it too, and had an alert for it
		return fmt.Errorf("%w: %w", h.wire.err, err)
	}
}

// facts collects what is not secret, in memory of its own.
func (h *handshake) facts() (blob.Facts, error) {
	cs := h.tls.ConnectionState()
	f := blob.Facts{
		Role:         h.role,
		Version:      blob.Version(cs.Version),
		Suite:        blob.CipherSuite(cs.CipherSuite),
		Group:        uint16(cs.CurveID),
		Resumed:      cs.DidResume,
		ALPN:         cs.NegotiatedProtocol,
		ServerName:   cs.ServerName,
		PeerVerified: len(cs.VerifiedChains) > 0,
	}
	if n := len(f.ServerName); n > 255 {
		return f, fmt.Errorf("%w: server name of %d bytes, at most 255 are described", ErrUnsupported, n)
	}
	for _, c := range cs.PeerCertificates {
		f.PeerCertificates = append(f.PeerCertificates, bytes.Clone(c.Raw))
	}
	return f, nil
}
