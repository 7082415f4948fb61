// SPDX-License-Identifier: Apache-2.0

package signer

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// concurrent bounds the requests of one channel that are served at a time.
const concurrent = 16

// writeTimeout bounds how long a worker may leave responses unread.
const writeTimeout = 5 * time.Second

// Counts are how many requests had which end.
type Counts struct {
	Signed  uint64 `json:"signed"`
	Refused uint64 `json:"refused"` // not allowed
	Failed  uint64 `json:"failed"`  // by the token
	Ended   uint64 `json:"ended"`   // channels, for what they sent
}

// Server is the signer's side of all channels.
type Server struct {
	tell                           func(what string, key uint16, err error)
	signed, refused, failed, ended atomic.Uint64
}

// NewServer returns a Server that tells what a person should know: what tokens say,
// and what was refused.
func NewServer(tell func(what string, key uint16, err error)) *Server { return &Server{tell: tell} }

// Counts returns the counts so far.
func (s *Server) Counts() Counts {
	return Counts{s.signed.Load(), s.refused.Load(), s.failed.Load(), s.ended.Load()}
}

// Serve serves the channel fd, which it owns, until its end. The worker there may use
// keys, by their numbers. An error says that the worker broke the protocol.
func (s *Server) Serve(fd int, keys map[uint16]crypto.Signer) error {
	f, err := open(fd)
	if err != nil {
		return err
	}
	c := &served{Server: s, file: f, keys: make(map[uint16]servedKey)}
	defer f.Close()
	for number, key := range keys {
		digest, err := publicDigest(key.Public())
		if err != nil {
			return fmt.Errorf("key %d: %w", number, err)
		}
		c.keys[number] = servedKey{key, digest}
	}
	if err = c.run(); errors.Is(err, errMalformed) {
		s.ended.Add(1)
		return err
	}
	return nil
}

// served is one channel.
type served struct {
	*Server
	file *os.File
	keys map[uint16]servedKey
	told sync.Once
}

type servedKey struct {
	crypto.Signer
	digest [sha256.Size]byte
}

func (c *served) run() error {
	places := make(chan struct{}, concurrent)
	var jobs sync.WaitGroup
	defer jobs.Wait()
	for {
		places <- struct{}{}
		b, err := receive(c.file, requestFixed+mostMessage)
		if err != nil {
			return err
		}
		r, err := decodeRequest(b)
		if err != nil {
			return err
		}
		jobs.Go(func() {
			defer func() { <-places }()
			c.answer(r)
		})
	}
}

func (c *served) answer(r *request) {
	signature, status := c.serve(r)
	answer := response{status: status, number: r.number, signature: signature}
	c.file.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := c.file.Write(answer.encode()); err != nil {
		c.file.Close() // ends run as well
	}
}

// serve does what is asked if it is allowed.
func (c *served) serve(r *request) ([]byte, Status) {
	key, ok := c.keys[r.key]
	switch {
	case !ok:
		c.refuse(r, statusNoKey)
		return nil, statusNoKey
	case key.digest != r.public:
		c.refuse(r, statusOtherKey)
		return nil, statusOtherKey
	case r.operation == opCheck:
		return nil, statusDone
	}
	opts, ok := options(key.Public(), r)
	if !ok {
		c.refuse(r, statusMisfit)
		return nil, statusMisfit
	}
	signature, err := key.Sign(rand.Reader, r.digest, opts)
	if err == nil && len(signature) > mostSignature {
		err = fmt.Errorf("a signature of %d bytes", len(signature))
	}
	if err != nil {
		c.failed.Add(1)
		c.tell("cannot sign", r.key, err)
		return nil, statusToken
	}
	c.signed.Add(1)
	return signature, statusDone
}

func (c *served) refuse(r *request, why Status) {
	c.refused.Add(1)
	// Once, since whoever took over a worker must not fill the log.
	c.told.Do(func() { c.tell("refused to sign", r.key, why) })
}

// certificateVerify is what comes before the hash in what a TLS 1.3 server signs.
var certificateVerify = append(bytes.Repeat([]byte(" "), 64), "TLS 1.3, server CertificateVerify\x00"...)

// options returns how to sign what is asked for, if that suits the key.
func options(public crypto.PublicKey, r *request) (crypto.SignerOpts, bool) {
	switch public.(type) {
	case *rsa.PublicKey:
		if r.scheme == schemePSS {
			return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: r.hash}, true
		}
		return r.hash, r.scheme == schemePKCS1v15
	case *ecdsa.PublicKey:
		return r.hash, r.scheme == schemeECDSA
	case ed25519.PublicKey:
		return crypto.Hash(0), r.scheme == schemeEd25519 && isServersMessage(r.digest)
	}
	return nil, false
}

// isServersMessage reports whether m is what a TLS server signs.
func isServersMessage(m []byte) bool {
	if hash, ok := bytes.CutPrefix(m, certificateVerify); ok {
		return len(hash) == 32 || len(hash) == 48
	}
	// Both randoms, named_curve, the curve, the size of the point, the point.
	const point = 32 + 32 + 1 + 2 + 1
	return len(m) > point && m[64] == 3 && int(m[67]) == len(m)-point
}
