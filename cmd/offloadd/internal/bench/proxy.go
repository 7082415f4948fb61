// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"syscall"
)

// Proxy speaks TLS, or plain TCP, to clients and plain TCP to one target.
type Proxy struct {
	Path   Path // one of ProxyPaths
	TLS    *tls.Config
	Target string
	Log    *slog.Logger
	connections
}

// Serve copies until ctx ends.
func (p *Proxy) Serve(ctx context.Context, l net.Listener) error {
	return p.serve(ctx, l, p.Log, func(accepted net.Conn) error { return p.handle(ctx, accepted) })
}

// halfCloser is what every connection here is: TCP, crypto/tls, ktls.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

func (p *Proxy) handle(ctx context.Context, accepted net.Conn) error {
	client, err := p.shake(ctx, accepted)
	if err != nil {
		accepted.Close()
		return err
	}
	defer client.Close()
	dialed, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.Target)
	if err != nil {
		return fmt.Errorf("connect to the target: %w", err)
	}
	defer dialed.Close()
	stop := context.AfterFunc(ctx, func() { dialed.Close() })
	defer stop()
	target := dialed.(*net.TCPConn)

	// Each direction ends by itself. After an error both do, since a part would pass for
	// the whole.
	results := make(chan error, 2)
	go func() { results <- p.upload(target, client) }()
	go func() { results <- p.download(client, target) }()
	for range 2 {
		if copyErr := <-results; copyErr != nil && err == nil {
			err = copyErr
			reset(target)
			reset(accepted)
		}
	}
	if isGone(err) {
		return nil
	}
	return err
}

func (p *Proxy) shake(ctx context.Context, accepted net.Conn) (halfCloser, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	conn, err := p.Path.open(ctx, accepted, p.TLS, p.settings)
	if err != nil {
		return nil, err
	}
	return conn.(halfCloser), nil
}

// upload copies what the client sends. A ktls.Conn is asked itself how to do that.
func (p *Proxy) upload(target *net.TCPConn, client halfCloser) error {
	var err error
	if from, ok := client.(io.WriterTo); ok {
		_, err = from.WriteTo(target)
	} else {
		_, err = io.Copy(target, client)
	}
	if err != nil {
		return err
	}
	return ignoreGone(target.CloseWrite())
}

// download copies what the target sends.
func (p *Proxy) download(client halfCloser, target *net.TCPConn) error {
	var err error
	if to, ok := client.(io.ReaderFrom); ok {
		_, err = to.ReadFrom(target)
	} else {
		_, err = io.Copy(client, target)
	}
	if err != nil {
		return err
	}
	return ignoreGone(client.CloseWrite())
}

// reset ends a TCP connection so that the peer does not take it for an end of file.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	c.Close()
}

// ignoreGone: who has left needs no end of file.
func ignoreGone(err error) error {
	if err != nil && (isGone(err) || errors.Is(err, syscall.ENOTCONN)) {
		return nil
	}
	return err
}
