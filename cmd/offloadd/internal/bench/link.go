// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/offloadd/offloadd/handshaker"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/userspace"
)

// The record layers of a client.
const (
	LayerCryptoTLS = "crypto-tls"
	LayerKTLS      = "ktls"
	LayerDiscard   = "discard" // what comes is dropped by the kernel, undeciphered
	LayerNone      = "none"
)

// Layers are all, for help and errors.
var Layers = []string{LayerCryptoTLS, LayerKTLS, LayerDiscard, LayerNone}

// link is a client's connection.
type link struct {
	reader
	tcp     *net.TCPConn
	layer   string
	agreed  agreed
	records *recordCount // nil where nobody counts
	file    *patternFile // to send from; nil until it is needed
	used    bool         // a request was sent
}

// agreed is what a handshake ended with.
type agreed struct {
	version, suite uint16
	resumed        bool
}

// dialer makes links.
type dialer struct {
	address string
	layer   string
	choice  Choice
	config  *tls.Config // nil without TLS
}

func newDialer(address, layer string, choice Choice) (*dialer, error) {
	d := &dialer{address: address, layer: layer, choice: choice}
	if layer == LayerNone {
		return d, nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, usagef("address %q: %v; want HOST:PORT", address, err)
	}
	// The servers are the user's own, with certificates made for the occasion, and what is
	// measured is the same with any.
	d.config = &tls.Config{InsecureSkipVerify: true, ServerName: host, MinVersion: tls.VersionTLS12}
	return d, choice.Apply(d.config)
}

// dial connects and shakes hands.
func (d *dialer) dial(ctx context.Context) (*link, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", d.address)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("%w: does \"offloadd bench server\" run there?", err)
	}
	if err != nil {
		return nil, err
	}
	l := &link{tcp: conn.(*net.TCPConn), layer: d.layer}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := d.shake(ctx, l); err != nil {
		conn.Close()
		return nil, fmt.Errorf("%s: %w", d.address, err)
	}
	return l, nil
}

func (d *dialer) shake(ctx context.Context, l *link) error {
	switch d.layer {
	case LayerNone:
		l.conn = l.tcp
		return nil
	case LayerCryptoTLS:
		l.records = &recordCount{}
		c := tls.Client(countedConn{l.tcp, l.records}, d.config)
		if err := c.HandshakeContext(ctx); err != nil {
			return notTLS(err)
		}
		state := c.ConnectionState()
		l.conn, l.agreed = c, agreed{state.Version, state.CipherSuite, state.DidResume}
		return d.choice.check(state.CipherSuite)
	}
	session, err := handshaker.Client(ctx, l.tcp, &handshaker.Config{TLS: d.config})
	if err != nil {
		return notTLS(err)
	}
	defer session.Destroy()
	l.agreed = agreed{uint16(session.Facts.Version), uint16(session.Facts.Suite), session.Facts.Resumed}
	if d.layer == LayerKTLS {
		if _, err := ktls.Install(l.tcp, session.Read, session.Write); err != nil {
			return err
		}
		l.conn, err = ktls.NewConn(l.tcp)
	} else {
		l.conn, err = userspace.NewConn(l.tcp, session.Read, session.Write)
	}
	if err != nil {
		return err
	}
	return d.choice.check(l.agreed.suite)
}

// notTLS adds what to do if the server answers in clear.
func notTLS(err error) error {
	var header tls.RecordHeaderError
	if errors.As(err, &header) {
		return fmt.Errorf("%w; if the server speaks no TLS: --tls none", err)
	}
	return err
}

func (l *link) close() {
	l.conn.Close()
	if l.file != nil {
		l.file.Close()
	}
	if l.large != nil {
		l.start = l.end
		l.rest()
	}
}

// ask sends a request and returns the head of the answer.
func (l *link) ask(message []byte) (head, error) {
	l.used = true
	if _, err := l.conn.Write(message); err != nil {
		return head{}, err
	}
	return l.answer()
}

// answer reads the head of an answer.
func (l *link) answer() (head, error) {
	h, err := l.head()
	if err != nil {
		return head{}, l.noAnswer(unexpected(err))
	}
	switch {
	case h.status() == 0:
		return head{}, l.noAnswer(fmt.Errorf("%w: it begins with %.40q", errHead, h.first))
	case h.length < 0:
		return head{}, fmt.Errorf("%w: the answer has no Content-Length", errHead)
	}
	return h, nil
}

// noAnswer says what to do about a connection on which no answer came.
func (l *link) noAnswer(err error) error {
	hint := "is that an HTTP server?"
	if l.layer == LayerNone {
		hint = "if the server speaks TLS, leave out --tls none"
	}
	return fmt.Errorf("no answer from %v: %w; %s", l.tcp.RemoteAddr(), err, hint)
}

// expect is ask for status 200.
func (l *link) expect(message []byte) (head, error) {
	h, err := l.ask(message)
	if err != nil {
		return h, err
	}
	return h, checkStatus(h, message)
}

func checkStatus(h head, message []byte) error {
	if h.status() == 200 {
		return nil
	}
	asked, _, _ := cutLine(message)
	return fmt.Errorf("%s: the server answers %d", asked, h.status())
}
