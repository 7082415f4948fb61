// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/offloadd/offloadd/blob"
)

func TestWhatDoesNotFitTheWireIsNotHandedOver(t *testing.T) {
	flip := func(b []byte, at int) { b[at] ^= 1 }
	for _, tt := range []struct {
		name    string
		version blob.Version
		spoil   func(h *handshake)
		err     error
	}{
		{"nothing", blob.TLS12, func(h *handshake) {}, nil},
		{"nothing", blob.TLS13, func(h *handshake) {}, nil},
		{"key log of another connection", blob.TLS12, func(h *handshake) { flip(h.log.random[:], 3) }, ErrLocal},
		{"key log of another connection", blob.TLS13, func(h *handshake) { flip(h.log.random[:], 3) }, ErrLocal},
		{"no master secret", blob.TLS12, func(h *handshake) { h.log.master = blob.Secret{} }, ErrLocal},
		{"no read secret", blob.TLS13, func(h *handshake) { h.log.client = blob.Secret{} }, ErrLocal},
		{"no write secret", blob.TLS13, func(h *handshake) { h.log.server = blob.Secret{} }, ErrLocal},
		{"another master secret", blob.TLS12, func(h *handshake) { flip(h.log.master.Bytes(), 5) }, ErrLocal},
		{"another client random", blob.TLS12, func(h *handshake) { flip(h.wire.in, 5+4+2); flip(h.log.random[:], 0) }, ErrLocal},
		{"another server random", blob.TLS12, func(h *handshake) { flip(h.wire.out, 5+4+2) }, ErrLocal},
		{"another version", blob.TLS12, func(h *handshake) { flip(h.wire.out, 5+4) }, ErrLocal},
		{"another suite", blob.TLS12, func(h *handshake) { flip(h.wire.out, 5+4+2+32+1) }, ErrLocal},
		{"no ClientHello", blob.TLS13, func(h *handshake) { h.wire.in = nil }, ErrLocal},
		{"half a record read", blob.TLS13, func(h *handshake) { h.wire.in = append(h.wire.in, 23, 3, 3, 0) }, ErrLocal},
		{"half a record written", blob.TLS13, func(h *handshake) { h.wire.out = append(h.wire.out, 23, 3, 3, 0) }, ErrLocal},
		{"no Finished read", blob.TLS12, func(h *handshake) { h.wire.in = h.wire.in[:len(h.wire.in)-45] }, ErrLocal},
	} {
		t.Run(fmt.Sprintf("%v %s", tt.version, tt.name), func(t *testing.T) {
			ours, theirs := tcpPair(t)
			server := serverTLS()
			server.MaxVersion = uint16(tt.version)
			client := clientTLS()
			client.CipherSuites = []uint16{uint16(blob.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256)}
			go tlsConn(blob.Client, theirs, client).Handshake()
			h, err := newHandshake(blob.Server, ours, &Config{TLS: server})
			if err != nil {
				t.Fatal(err)
			}
			if err := h.shake(testContext(t)); err != nil {
				t.Fatal(err)
			}
			tt.spoil(h)
			err = h.derive()
			if err == nil {
				err = h.count()
			}
			if !errors.Is(err, tt.err) {
				t.Errorf("%v, want %v", err, tt.err)
			}
		})
	}
}

func TestFactsAreCopies(t *testing.T) {
	m := meet(t, blob.Client, &Config{TLS: clientTLS()}, serverTLS())
	der := m.session.Facts.PeerCertificates[0]
	if !bytes.Equal(der, certs().ecdsaA.Certificate[0]) {
		t.Error("another certificate")
	}
	clear(der)
	if raw := m.h.tls.ConnectionState().PeerCertificates[0].Raw; bytes.Equal(raw, der) {
		t.Error("shared with crypto/tls, which shares it with other connections")
	}
}
