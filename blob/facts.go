// SPDX-License-Identifier: Apache-2.0

package blob

// Facts is what the next owner of a connection may want to know of the handshake.
// Nothing in it is secret.
type Facts struct {
	Role    Role
	Version Version
	Suite   CipherSuite
	// Group is the key agreement's NamedGroup (RFC 8446, Section 4.2.7), 0 if there
	// was none.
	Group uint16
	// Resumed says that a session ticket was used.
	Resumed bool
	// ALPN is the protocol agreed on (RFC 7301), "" if none; at most 255 bytes.
	ALPN string
	// ServerName is the SNI host name the client asked for (RFC 6066), "" if none; at
	// most 255 bytes.
	ServerName string
	// PeerCertificates is the peer's chain as it came, leaf first, each DER.
	PeerCertificates [][]byte
	// PeerVerified says that PeerCertificates was verified against a root.
	PeerVerified bool
}
