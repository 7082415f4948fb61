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
)

// SealTimes seals the keys of n connections of its own, and returns for each how long it took
// for both directions. A worker does the same, but cannot tell: it has nothing to tell it by.
func SealTimes(ctx context.Context, config *tls.Config, n int) ([]time.Duration, error) {
	key, err := blob.GenerateKey()
	if err != nil {
		return nil, err
	}
	sealer, _, err := blob.NewSealer(key.Public())
	if err != nil {
		return nil, err
	}
	defer sealer.Destroy()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	times := make([]time.Duration, 0, n)
	for range n {
		t, err := sealOnce(ctx, l, config, sealer)
		if err != nil {
			return nil, fmt.Errorf("seal keys: %w", err)
		}
		times = append(times, t)
	}
	return times, nil
}

func sealOnce(ctx context.Context, l net.Listener, config *tls.Config, sealer *blob.Sealer) (time.Duration, error) {
	session, err := serverSession(ctx, l, config)
	if err != nil {
		return 0, err
	}
	defer session.Destroy()
	expiry := time.Now().Add(time.Minute)
	begin := time.Now()
	_, readErr := sealer.Seal(session.Read, expiry)
	_, writeErr := sealer.Seal(session.Write, expiry)
	return time.Since(begin), errors.Join(readErr, writeErr)
}

// serverSession shakes hands with itself.
func serverSession(ctx context.Context, l net.Listener, config *tls.Config) (*handshaker.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	dialed, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
	if err != nil {
		return nil, err
	}
	defer dialed.Close()
	accepted, err := l.Accept()
	if err != nil {
		return nil, err
	}
	defer accepted.Close()
	client := make(chan error, 1)
	go func() {
		client <- tls.Client(dialed, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(ctx)
	}()
	session, err := handshaker.Server(ctx, accepted, &handshaker.Config{TLS: config})
	if err := errors.Join(err, <-client); err != nil {
		session.Destroy()
		return nil, err
	}
	return session, nil
}
