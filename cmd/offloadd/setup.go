// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/offloadd/offloadd/blob/handoff"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/signer"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/token"
	"github.com/offloadd/offloadd/handshaker"
)

// setup is the body of a Setup message: how a worker works. Both ends are of one
// build. Files arrive as descriptors, since a worker opens none.
type setup struct {
	PublicKey        []byte // blob.PublicKey
	HandshakeTimeout duration
	// TicketKeys is secret; the first seals, all open.
	TicketKeys [][32]byte
	Signer     int // descriptor of the channel to the signer, 0 for none
	Listeners  []setupListener
}

type setupListener struct {
	Name         string
	MinVersion   uint16
	ALPN         []string
	Tickets      bool
	ClientAuth   tls.ClientAuthType
	ClientCA     int // descriptor, 0 for none
	Certificates []setupCertificate
}

type setupCertificate struct {
	Chain, Key         int // descriptors; no Key if the signer has it
	ChainName, KeyName string
	KeyNumber          uint16 // with the signer
}

// maxPEM bounds a certificate or key file in bytes.
const maxPEM = 1 << 20

// makeSetup opens the files of the listeners, unread, and returns the message body
// and the files to inherit, whose descriptor numbers in the child start at firstFD.
// The first of them is the channel to the signer, if there is one. The caller closes
// the files; after an error they are closed.
func makeSetup(c *config, publicKey []byte, ticketKeys [][32]byte, firstFD int, signer []*os.File) (body []byte, files []*os.File, err error) {
	files = signer
	open := func(path string) (fd int, err error) {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrPermission) {
			// The daemon has given up root's right to read what belongs to others.
			return 0, fmt.Errorf("%w: the file must belong to root, or be readable for it as for anybody; \"chown root %s\", and see to the directories above it", err, path)
		}
		if err != nil {
			return 0, err
		}
		files = append(files, f)
		return firstFD + len(files) - 1, nil
	}
	defer func() {
		if err != nil {
			closeAll(files)
			files = nil
		}
	}()
	s := setup{PublicKey: publicKey, HandshakeTimeout: c.HandshakeTimeout, TicketKeys: ticketKeys}
	if len(signer) != 0 {
		s.Signer = firstFD
	}
	tokenKeys := c.tokenKeys()
	for i := range c.Listeners {
		l := &c.Listeners[i]
		out := setupListener{
			Name: l.Name, MinVersion: tls.VersionTLS12, ALPN: l.ALPN, Tickets: !l.NoTickets, ClientAuth: clientAuthTypes[l.ClientAuth],
		}
		if l.MinVersion == "1.3" {
			out.MinVersion = tls.VersionTLS13
		}
		if l.ClientCA != "" {
			if out.ClientCA, err = open(l.ClientCA); err != nil {
				return nil, nil, fmt.Errorf("listener %q: client_ca: %w", l.Name, err)
			}
		}
		for _, cert := range l.Certificates {
			sc := setupCertificate{ChainName: cert.Chain, KeyName: cert.Key}
			if sc.Chain, err = open(cert.Chain); err != nil {
				return nil, nil, fmt.Errorf("listener %q: certificate chain: %w", l.Name, err)
			}
			if number := slices.Index(tokenKeys, cert.Key); number >= 0 {
				reference, err := token.Parse(cert.Key)
				if err != nil {
					return nil, nil, fmt.Errorf("listener %q: private key: %w", l.Name, err)
				}
				sc.KeyName, sc.KeyNumber = reference.String(), uint16(number) // without where its PIN is
			} else if sc.Key, err = open(cert.Key); err != nil {
				return nil, nil, fmt.Errorf("listener %q: private key: %w", l.Name, err)
			}
			out.Certificates = append(out.Certificates, sc)
		}
		s.Listeners = append(s.Listeners, out)
	}
	body, err = json.Marshal(s)
	return body, files, err
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

func parseSetup(body []byte) (*setup, error) {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	s := &setup{}
	if err := d.Decode(s); err != nil {
		return nil, fmt.Errorf("%w: setup: %v", handoff.ErrMalformed, err)
	}
	return s, nil
}

// handshakerConfigs reads the inherited files and closes them.
func (s *setup) handshakerConfigs() (map[string]*handshaker.Config, error) {
	var keys *signer.Client
	if s.Signer != 0 {
		var err error
		if keys, err = signer.NewClient(s.Signer, min(signTimeout, time.Duration(s.HandshakeTimeout))); err != nil {
			return nil, err
		}
	}
	configs := make(map[string]*handshaker.Config, len(s.Listeners))
	for _, l := range s.Listeners {
		c := &tls.Config{
			MinVersion: l.MinVersion, NextProtos: l.ALPN, ClientAuth: l.ClientAuth, SessionTicketsDisabled: !l.Tickets,
		}
		if l.Tickets {
			c.SetSessionTicketKeys(s.TicketKeys)
		}
		if l.ClientCA != 0 {
			pem, err := readInherited(l.ClientCA)
			if err != nil {
				return nil, fmt.Errorf("listener %q: client_ca: %w", l.Name, err)
			}
			c.ClientCAs = x509.NewCertPool()
			if !c.ClientCAs.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("listener %q: client_ca holds no PEM certificate", l.Name)
			}
		}
		for _, sc := range l.Certificates {
			cert, err := sc.read(keys)
			if err != nil {
				return nil, fmt.Errorf("listener %q: %w", l.Name, err)
			}
			c.Certificates = append(c.Certificates, cert)
		}
		configs[l.Name] = &handshaker.Config{TLS: c}
	}
	return configs, nil
}

// signTimeout bounds one signature. It leaves some of a handshake's time to the rest.
const signTimeout = 5 * time.Second

func (sc setupCertificate) read(keys *signer.Client) (tls.Certificate, error) {
	chain, err := readInherited(sc.Chain)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate chain %s: %w", sc.ChainName, err)
	}
	if sc.Key == 0 {
		cert, err := signerCertificate(keys, sc.KeyNumber, chain)
		if err != nil {
			return tls.Certificate{}, fmt.Errorf("certificate %s with private key %s: %w", sc.ChainName, sc.KeyName, err)
		}
		return cert, nil
	}
	key, err := readInherited(sc.Key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("private key %s: %w", sc.KeyName, err)
	}
	defer clear(key)
	cert, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate %s with private key %s: %w", sc.ChainName, sc.KeyName, err)
	}
	return cert, nil
}

// signerCertificate is tls.X509KeyPair for a key that the signer has: it too checks
// that the key belongs to the certificate.
func signerCertificate(keys *signer.Client, number uint16, chain []byte) (cert tls.Certificate, err error) {
	for block, rest := pem.Decode(chain); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			cert.Certificate = append(cert.Certificate, block.Bytes)
		}
	}
	if len(cert.Certificate) == 0 {
		return cert, errors.New("the chain holds no PEM certificate")
	}
	if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
		return cert, err
	}
	cert.PrivateKey, err = keys.Key(number, cert.Leaf.PublicKey)
	return cert, err
}

// readInherited reads a file that the daemon opened, into one buffer that the
// caller can clear.
func readInherited(fd int) ([]byte, error) {
	f := os.NewFile(uintptr(fd), "inherited")
	if f == nil {
		return nil, fmt.Errorf("no descriptor %d", fd)
	}
	defer f.Close()
	buf := make([]byte, maxPEM+1)
	n, err := io.ReadFull(f, buf)
	switch {
	case err == nil:
		return nil, fmt.Errorf("longer than %d bytes", maxPEM)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return buf[:n], nil
	}
	return nil, err
}
