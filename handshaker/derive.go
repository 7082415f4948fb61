// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"crypto/tls"
	"fmt"

	"github.com/offloadd/offloadd/blob"
)

// derive makes both states out of what was logged, with sequence number 0.
func (h *handshake) derive() error {
	cs := h.tls.ConnectionState()
	suite := blob.CipherSuite(cs.CipherSuite)
	if !suite.Known() || uint16(suite.Version()) != cs.Version {
		return fmt.Errorf("%w: %s with %s", ErrUnsupported, tls.VersionName(cs.Version), tls.CipherSuiteName(cs.CipherSuite))
	}
	fromClient, fromServer, err := h.plaintexts()
	if err != nil {
		return err
	}
	random, err := clientRandom(fromClient)
	if err != nil {
		return err
	}
	// With Encrypted Client Hello the random in use is the encrypted one.
	if h.log.lines > 0 && !cs.ECHAccepted {
		if err := h.log.checkRandom(random); err != nil {
			return err
		}
	}
	if suite.Version() == blob.TLS12 {
		return h.derive12(suite, cs.DidResume, random, fromServer)
	}
	return h.derive13(suite)
}

// derive13 uses the application traffic secrets (RFC 8446, Section 7.1).
func (h *handshake) derive13(suite blob.CipherSuite) (err error) {
	readSecret, writeSecret := h.log.client, h.log.server
	if h.role == blob.Client {
		readSecret, writeSecret = writeSecret, readSecret
	}
	if h.read, err = blob.NewState13(suite, h.role, blob.Read, readSecret); err != nil {
		return fmt.Errorf("%w: derive the read key: %w", ErrLocal, err)
	}
	if h.write, err = blob.NewState13(suite, h.role, blob.Write, writeSecret); err != nil {
		return fmt.Errorf("%w: derive the write key: %w", ErrLocal, err)
	}
	return nil
}

// derive12 uses the master secret, of this connection or of the resumed session, and
// the randoms on the wire (RFC 5246, Section 6.3).
func (h *handshake) derive12(suite blob.CipherSuite, resumed bool, clientRandom, fromServer []byte) error {
	hello, err := parseServerHello(fromServer)
	if err != nil {
		return err
	}
	if hello.version != tls.VersionTLS12 || hello.suite != uint16(suite) {
		return fmt.Errorf("%w: the ServerHello on the wire is not the one crypto/tls acted on", ErrLocal)
	}
	master := h.log.master
	if master.Len() == 0 && resumed && h.resumption.suite == suite {
		master = h.resumption.master
	}
	h.read, h.write, err = blob.NewStates12(suite, h.role, master, clientRandom, hello.random)
	if err != nil {
		return fmt.Errorf("%w: derive the keys: %w", ErrLocal, err)
	}
	return nil
}

// plaintexts returns the handshake messages sent in clear by each side.
func (h *handshake) plaintexts() (fromClient, fromServer []byte, err error) {
	in, err := splitRecords(h.wire.in)
	if err != nil {
		return nil, nil, err
	}
	out, err := splitRecords(h.wire.out)
	if err != nil {
		return nil, nil, err
	}
	fromClient, fromServer = plaintextHandshake(in), plaintextHandshake(out)
	if h.role == blob.Client {
		fromClient, fromServer = fromServer, fromClient
	}
	return fromClient, fromServer, nil
}

// count finds both sequence numbers.
func (h *handshake) count() error {
	if err := countRecords(h.read, h.wire.in); err != nil {
		return err
	}
	return countRecords(h.write, h.wire.out)
}
