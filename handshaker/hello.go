// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"fmt"

	"golang.org/x/crypto/cryptobyte"
)

// Handshake message types (RFC 8446, Section 4; RFC 5246, Section 7.4).
const (
	msgClientHello      = 1
	msgServerHello      = 2
	msgNewSessionTicket = 4
	msgFinished         = 20
)

// nextMessage cuts the first handshake message off s.
func nextMessage(s *cryptobyte.String) (kind uint8, body cryptobyte.String, ok bool) {
	ok = s.ReadUint8(&kind) && s.ReadUint24LengthPrefixed(&body)
	return kind, body, ok
}

// clientRandom returns the random of the ClientHello that starts the given plaintext
// handshake stream (RFC 8446, Section 4.1.2). After a HelloRetryRequest the client
// repeats it unchanged.
func clientRandom(stream []byte) ([]byte, error) {
	s := cryptobyte.String(stream)
	kind, body, ok := nextMessage(&s)
	var random []byte
	if !ok || kind != msgClientHello || !body.Skip(2) || !body.ReadBytes(&random, 32) {
		return nil, fmt.Errorf("%w: no ClientHello at the start of the client's records", ErrLocal)
	}
	return random, nil
}

// serverHello is what TLS 1.2 key derivation needs of a ServerHello, and what can be
// compared with what crypto/tls says.
type serverHello struct {
	version uint16
	random  []byte
	suite   uint16
}

// parseServerHello parses the ServerHello that starts the given plaintext handshake
// stream (RFC 5246, Section 7.4.1.3), up to its cipher suite. It is for TLS 1.2: a
// HelloRetryRequest (RFC 8446, Section 4.1.4) has this form too, and the caller
// notices by the version, which crypto/tls then says is 1.3.
func parseServerHello(stream []byte) (*serverHello, error) {
	s := cryptobyte.String(stream)
	var h serverHello
	var sessionID cryptobyte.String
	kind, body, ok := nextMessage(&s)
	if !ok || kind != msgServerHello ||
		!body.ReadUint16(&h.version) ||
		!body.ReadBytes(&h.random, 32) ||
		!body.ReadUint8LengthPrefixed(&sessionID) || len(sessionID) > 32 ||
		!body.ReadUint16(&h.suite) {
		return nil, fmt.Errorf("%w: no ServerHello at the start of the server's records", ErrLocal)
	}
	return &h, nil
}
