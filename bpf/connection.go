// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net/netip"
	"syscall"
	"time"
)

// A Connection is a kernel TLS socket, whoever's it is.
type Connection struct {
	Cookie      uint64 // SO_COOKIE
	Local, Peer netip.AddrPort
	Version     uint16 // 0x0303 or 0x0304; 0 without a key
	Cipher      uint16 // TLS_CIPHER_* of include/uapi/linux/tls.h
	// Inode and UID are those of the socket: /proc/PID/fd has links to the inode. Both are 0 once it is closed.
	Inode uint64
	UID   uint32
	// Sending and Receiving are the two keys.
	Sending, Receiving Key
	// TCP's own counters, in bytes.
	Sent, Acked, Received, Retransmitted uint64
	// Totals are nil for a socket that had keys before the observer was loaded, or found no room.
	Totals *Totals
}

// A Key is one direction of a socket.
type Key struct {
	Path     Path
	Sequence uint64 // of the next record
}

// Totals are what a connection did since it got its first key.
type Totals struct {
	Since              time.Time
	Sending, Receiving Traffic
	Errors             [errorKinds]uint32 // that calls returned, by kind
	Failures           uint32             // how often the record layer gave up
	Failure            syscall.Errno      // the last of them
	// Of a connection that is over.
	End           End
	PeerFirst     bool   // the peer's FIN came before the close
	Unread        uint32 // bytes from the wire that nobody had read
	UnreadRecords uint32 // records that were decrypted, and not read whole
}

// Traffic is one direction of a connection.
type Traffic struct {
	Bytes   uint64 // content of records of every type
	Records uint64
	Calls   uint64
	Rekeys  uint32
	// Sequence is the number of the next record as the last call left it.
	Sequence uint64
	Path     Path
}

// VersionName is as in the RFCs.
func VersionName(version uint16) string {
	switch version {
	case 0:
		return "-"
	case 0x0303:
		return "TLS 1.2"
	case 0x0304:
		return "TLS 1.3"
	}
	return fmt.Sprintf("0x%04x", version)
}

// ciphers are TLS_CIPHER_* of include/uapi/linux/tls.h. How keys were agreed upon the kernel does not know.
var ciphers = map[uint16]string{
	0: "-", 51: "AES_128_GCM", 52: "AES_256_GCM", 53: "AES_128_CCM", 54: "CHACHA20_POLY1305",
	55: "SM4_GCM", 56: "SM4_CCM", 57: "ARIA_128_GCM", 58: "ARIA_256_GCM",
}

// CipherName names an AEAD.
func CipherName(cipher uint16) string {
	if name := ciphers[cipher]; name != "" {
		return name
	}
	return fmt.Sprintf("cipher %d", cipher)
}

func (a *rawAddress) ports() (local, peer netip.AddrPort) {
	address := func(b [16]byte) netip.Addr {
		if a.Family == syscall.AF_INET {
			return netip.AddrFrom4([4]byte(b[:4]))
		}
		return netip.AddrFrom16(b).Unmap()
	}
	return netip.AddrPortFrom(address(a.Local), a.LocalPort), netip.AddrPortFrom(address(a.Peer), a.PeerPort)
}

func (r *rawListed) connection() Connection {
	c := Connection{
		Cookie: r.Cookie, Version: r.Version, Cipher: r.Cipher, Inode: r.Inode, UID: r.UID,
		Sending:   Key{Path(r.Path[outward]), r.Sequence[outward]},
		Receiving: Key{Path(r.Path[inward]), r.Sequence[inward]},
		Sent:      r.Sent, Acked: r.Acked, Received: r.Received, Retransmitted: r.Retransmitted,
	}
	c.Local, c.Peer = r.Address.ports()
	return c
}

// totals needs the time of the boot.
func (r *rawConnection) totals(boot time.Time) *Totals {
	traffic := func(d int) Traffic {
		return Traffic{Bytes: r.Bytes[d], Records: r.Records[d], Calls: r.Calls[d], Rekeys: r.Rekeys[d],
			Sequence: r.Sequence[d], Path: Path(r.Path[d])}
	}
	return &Totals{
		Since: boot.Add(time.Duration(r.Since)), Sending: traffic(outward), Receiving: traffic(inward),
		Errors: r.Errors, Failures: r.Failures, Failure: syscall.Errno(-r.Failure),
		End: End(r.End), PeerFirst: r.PeerFirst != 0, Unread: r.Unread, UnreadRecords: r.UnreadRecords,
	}
}
