// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/handshaker"
	"github.com/offloadd/offloadd/ktls"
)

// KeySteps are what daemon and worker do with the keys of a connection and cannot tell how long
// it took: the one has nothing to tell it by, for the other it is part of the install. They are
// measured in this process, on keys of its own, for both directions.
type KeySteps struct{ Seal, ReadBack []time.Duration }

// MeasureKeySteps seals the keys of n connections, and reads those of n others back.
func MeasureKeySteps(ctx context.Context, config *tls.Config, n int) (*KeySteps, error) {
	key, err := blob.GenerateKey()
	if err != nil {
		return nil, err
	}
	sealer, _, err := blob.NewSealer(key.Public())
	if err != nil {
		return nil, err
	}
	defer sealer.Destroy()
	l, err := Listen(ctx, "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	steps := &KeySteps{}
	for range n {
		err := withSession(ctx, l, config, func(_ *net.TCPConn, s *handshaker.Session) error {
			expiry := time.Now().Add(time.Minute)
			begin := time.Now()
			_, readErr := sealer.Seal(s.Read, expiry)
			_, writeErr := sealer.Seal(s.Write, expiry)
			steps.Seal = append(steps.Seal, time.Since(begin))
			return errors.Join(readErr, writeErr)
		})
		if err != nil {
			return nil, fmt.Errorf("seal keys: %w", err)
		}
		err = withSession(ctx, l, config, func(tcp *net.TCPConn, s *handshaker.Session) error {
			if _, err := ktls.Install(tcp, s.Read, s.Write); err != nil {
				return err
			}
			took, err := readBack(tcp, s.Facts.Suite.AEAD())
			steps.ReadBack = append(steps.ReadBack, took)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("read keys back: %w", err)
		}
	}
	return steps, nil
}

// withSession shakes hands with itself, and gives the server's side to f.
func withSession(ctx context.Context, l net.Listener, config *tls.Config, f func(*net.TCPConn, *handshaker.Session) error) error {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	dialed, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
	if err != nil {
		return err
	}
	defer dialed.Close()
	accepted, err := l.Accept()
	if err != nil {
		return err
	}
	defer accepted.Close()
	client := make(chan error, 1)
	go func() {
		client <- tls.Client(dialed, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(ctx)
	}()
	session, err := handshaker.Server(ctx, accepted, &handshaker.Config{TLS: config})
	if err := errors.Join(err, <-client); err != nil {
		session.Destroy()
		return err
	}
	defer session.Destroy()
	return f(accepted.(*net.TCPConn), session)
}
