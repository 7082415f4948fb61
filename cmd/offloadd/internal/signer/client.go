// SPDX-License-Identifier: Apache-2.0

package signer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// ErrGone says that the signer, or this worker's channel to it, is no more.
var ErrGone = errors.New("the signer is gone")

// ErrTimeout says that the signer did not answer in time.
var ErrTimeout = errors.New("the signer did not answer in time")

// Client is the worker's end of a channel.
type Client struct {
	channel *os.File
	timeout time.Duration

	mu      sync.Mutex
	next    uint32                   // guarded by mu: number of the next request
	waiting map[uint32]chan response // guarded by mu; nil once the channel has ended
	ended   error                    // guarded by mu: why
}

// NewClient takes over the inherited descriptor fd. Each request waits up to timeout.
func NewClient(fd int, timeout time.Duration) (*Client, error) {
	f, err := open(fd)
	if err != nil {
		return nil, err
	}
	c := &Client{channel: f, timeout: timeout, waiting: make(map[uint32]chan response)}
	go c.read()
	return c, nil
}

// Close ends the channel.
func (c *Client) Close() error { return c.channel.Close() }

// read gives the responses to who waits for them, until the channel ends.
func (c *Client) read() {
	var err error
	for err == nil {
		err = c.receive()
	}
	defer c.channel.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended = ErrGone; !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) {
		c.ended = fmt.Errorf("%w: %v", ErrGone, err)
	}
	for _, w := range c.waiting {
		close(w)
	}
	c.waiting = nil
}

func (c *Client) receive() error {
	b, err := receive(c.channel, responseFixed+mostSignature)
	if err != nil {
		return err
	}
	r, err := decodeResponse(b)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	w, ok := c.waiting[r.number]
	if !ok {
		if r.number >= c.next {
			return fmt.Errorf("%w: response %d to no request", errMalformed, r.number)
		}
		return nil // who asked has given up
	}
	delete(c.waiting, r.number)
	w <- *r
	return nil
}

// ask sends a request and returns the signature.
func (c *Client) ask(r *request) ([]byte, error) {
	w := make(chan response, 1)
	c.mu.Lock()
	if c.waiting == nil {
		defer c.mu.Unlock()
		return nil, c.ended
	}
	r.number = c.next
	c.next++
	c.waiting[r.number] = w
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, r.number)
		c.mu.Unlock()
	}()
	timer := time.NewTimer(c.timeout)
	defer timer.Stop()
	// Requests of others may fill the channel while the signer is slow.
	c.channel.SetWriteDeadline(time.Now().Add(c.timeout))
	if _, err := c.channel.Write(r.encode()); errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, ErrTimeout
	} else if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrGone, err)
	}
	select {
	case response, ok := <-w:
		if !ok {
			c.mu.Lock()
			defer c.mu.Unlock()
			return nil, c.ended
		}
		if response.status != statusDone {
			return nil, response.status
		}
		return response.signature, nil
	case <-timer.C:
		return nil, ErrTimeout
	}
}

// Key is a private key that the signer holds. It is a crypto.Signer.
type Key struct {
	client *Client
	number uint16
	public crypto.PublicKey
	digest [sha256.Size]byte // of the SubjectPublicKeyInfo
}

// Key returns key number number, whose public part must be public.
func (c *Client) Key(number uint16, public crypto.PublicKey) (*Key, error) {
	digest, err := publicDigest(public)
	if err != nil {
		return nil, err
	}
	k := &Key{client: c, number: number, public: public, digest: digest}
	if _, err := c.ask(&request{operation: opCheck, key: number, public: digest}); err != nil {
		return nil, err
	}
	return k, nil
}

func publicDigest(public crypto.PublicKey) ([sha256.Size]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	return sha256.Sum256(der), nil
}

// Public returns the public part.
func (k *Key) Public() crypto.PublicKey { return k.public }

// Sign asks the signer. It takes the options that package tls gives, and no others.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	r := &request{operation: opSign, key: k.number, public: k.digest, hash: opts.HashFunc(), digest: digest}
	switch k.public.(type) {
	case *rsa.PublicKey:
		r.scheme = schemePKCS1v15
		if pss, ok := opts.(*rsa.PSSOptions); ok {
			r.scheme = schemePSS
			if pss.SaltLength != rsa.PSSSaltLengthEqualsHash && pss.SaltLength != r.hash.Size() {
				return nil, fmt.Errorf("RSASSA-PSS with a salt of %d bytes is not for TLS", pss.SaltLength)
			}
		}
	case *ecdsa.PublicKey:
		r.scheme = schemeECDSA
	case ed25519.PublicKey:
		r.scheme = schemeEd25519
	}
	if !r.consistent() {
		return nil, fmt.Errorf("%d bytes with hash %v are nothing the signer signs", len(digest), r.hash)
	}
	return k.client.ask(r)
}
