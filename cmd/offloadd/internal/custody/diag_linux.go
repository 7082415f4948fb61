// SPDX-License-Identifier: Apache-2.0

package custody

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Numbers of include/uapi/linux/inet_diag.h.
const (
	diagInfo     = 2  // INET_DIAG_INFO: its bit in idiag_ext asks for ULP_INFO too
	diagShutdown = 8  // INET_DIAG_SHUTDOWN
	diagULPInfo  = 19 // INET_DIAG_ULP_INFO
	ulpInfoName  = 1  // INET_ULP_INFO_NAME
	ulpInfoTLS   = 2  // INET_ULP_INFO_TLS
	tlsInfoTX    = 3  // TLS_INFO_TXCONF, of include/uapi/linux/tls.h
	tlsInfoRX    = 4  // TLS_INFO_RXCONF
	tlsConfBase  = 1  // TLS_CONF_BASE: no key
	nlaTypeMask  = 0x3fff
	noCookie     = ^uint64(0) // INET_DIAG_NOCOOKIE, twice
	requestSize  = 56         // struct inet_diag_req_v2
	messageSize  = 72         // struct inet_diag_msg, before the attributes
	idAt         = 8          // idiag.id in the request
	messageID    = 4          // idiag.id in the message
)

// socketID is struct inet_diag_sockid up to the cookie, and the family: how the
// kernel finds a socket. Ports and addresses are big-endian.
type socketID struct {
	family byte
	raw    [40]byte
}

// Fields of raw.
const (
	idSrcPort   = 0
	idDstPort   = 2
	idSrc       = 4
	idDst       = 20
	idInterface = 36
)

// newSocketID makes the id of a connection. boundTo is the index of the interface
// that the socket is bound to, 0 if none. A v4-mapped pair of addresses is looked up
// as IPv4 by the kernel (inet_diag_find_one_icsk).
func newSocketID(local, peer netip.AddrPort, boundTo int) socketID {
	id := socketID{family: unix.AF_INET6}
	if local.Addr().Is4() {
		id.family = unix.AF_INET
	}
	binary.BigEndian.PutUint16(id.raw[idSrcPort:], local.Port())
	binary.BigEndian.PutUint16(id.raw[idDstPort:], peer.Port())
	copy(id.raw[idSrc:], local.Addr().AsSlice())
	copy(id.raw[idDst:], peer.Addr().AsSlice())
	binary.NativeEndian.PutUint32(id.raw[idInterface:], uint32(boundTo))
	return id
}

// request is struct inet_diag_req_v2.
type request [requestSize]byte

func (r *request) Len() int          { return requestSize }
func (r *request) Serialize() []byte { return r[:] }

func newRequest(id socketID, cookie uint64) *request {
	r := &request{id.family, unix.IPPROTO_TCP, 1 << (diagInfo - 1)}
	binary.NativeEndian.PutUint32(r[4:], ^uint32(0)) // all states
	copy(r[idAt:], id.raw[:])
	binary.NativeEndian.PutUint32(r[48:], uint32(cookie))
	binary.NativeEndian.PutUint32(r[52:], uint32(cookie>>32))
	return r
}

// found is a socket that the kernel has in its tables.
type found struct {
	id     socketID
	cookie uint64
	// whole: not what remains in TIME_WAIT, which has the cookie still and no attributes
	// (inet_twsk_diag_fill).
	whole bool
	// tls: the TLS ULP is attached.
	tls bool
	// keyed: a direction has a key.
	keyed bool
}

// parseFound reads a struct inet_diag_msg with its attributes.
func parseFound(b []byte) (found, bool) {
	if len(b) < messageSize {
		return found{}, false
	}
	f := found{id: socketID{family: b[0]}}
	copy(f.id.raw[:], b[messageID:])
	f.cookie = uint64(binary.NativeEndian.Uint32(b[44:])) | uint64(binary.NativeEndian.Uint32(b[48:]))<<32
	for _, a := range attributes(b[messageSize:]) {
		switch a.Attr.Type & nlaTypeMask {
		case diagShutdown:
			f.whole = true
		case diagULPInfo:
			f.parseULP(a.Value)
		}
	}
	return f, true
}

func (f *found) parseULP(b []byte) {
	for _, a := range attributes(b) {
		switch a.Attr.Type & nlaTypeMask {
		case ulpInfoName:
			f.tls = unix.ByteSliceToString(a.Value) == "tls"
		case ulpInfoTLS:
			f.keyed = hasKey(a.Value)
		}
	}
}

// attributes reads what can be read.
func attributes(b []byte) []syscall.NetlinkRouteAttr {
	all, err := nl.ParseRouteAttr(b)
	if err != nil {
		return nil
	}
	return all
}

func hasKey(tls []byte) bool {
	for _, a := range attributes(tls) {
		kind := a.Attr.Type & nlaTypeMask
		if (kind == tlsInfoTX || kind == tlsInfoRX) && len(a.Value) >= 2 && binary.NativeEndian.Uint16(a.Value) > tlsConfBase {
			return true
		}
	}
	return false
}

// lookUp asks for the socket with these addresses and this cookie; nil if there is
// none.
func lookUp(id socketID, cookie uint64) (*found, error) {
	message := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, 0)
	message.AddData(newRequest(id, cookie))
	replies, err := message.Execute(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY)
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ESTALE) {
		return nil, nil // ESTALE: the addresses are another socket's now
	}
	if err != nil {
		return nil, fmt.Errorf("inet_diag: %w", err)
	}
	for _, reply := range replies {
		if f, ok := parseFound(reply); ok && f.cookie == cookie && f.whole {
			return &f, nil
		}
	}
	return nil, nil
}

// find is lookUp, and if that fails a search through all sockets: a socket that was
// bound to an interface afterwards is found under its addresses no more.
func find(id socketID, cookie uint64) (*found, error) {
	f, err := lookUp(id, cookie)
	if f != nil || err != nil {
		return f, err
	}
	err = eachTLS(func(candidate found) {
		if candidate.cookie == cookie {
			f = &candidate
		}
	})
	return f, err
}

// eachTLS calls f for each TLS socket of the network namespace.
func eachTLS(f func(found)) error {
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		message := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		message.AddData(newRequest(socketID{family: family}, noCookie))
		err := message.ExecuteIter(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY, func(b []byte) bool {
			if one, ok := parseFound(b); ok && one.tls {
				f(one)
			}
			return true
		})
		if err != nil {
			return fmt.Errorf("inet_diag dump: %w", err)
		}
	}
	return nil
}

// destroy is SOCK_DESTROY (net/core/sock_diag.c). The kernel compares the cookie, so
// that a later socket with the same addresses is safe.
func destroy(id socketID, cookie uint64) error {
	message := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	message.AddData(newRequest(id, cookie))
	_, err := message.Execute(unix.NETLINK_INET_DIAG, 0)
	return err
}

// onFD runs f with c's descriptor.
func onFD(c syscall.Conn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// locate fills in what the socket itself tells: cookie, addresses, device.
func (r *record) locate(c syscall.Conn) error {
	var boundTo, unicast int
	err := onFD(c, func(fd int) (err error) {
		if r.Socket, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE); err != nil {
			return os.NewSyscallError("getsockopt SO_COOKIE", err)
		}
		local, err := unix.Getsockname(fd)
		if err != nil {
			return os.NewSyscallError("getsockname", err)
		}
		peer, err := unix.Getpeername(fd)
		if err != nil {
			return os.NewSyscallError("getpeername", err)
		}
		r.Local, r.Peer = addrPort(local), addrPort(peer)
		// Both are 0 where nothing was chosen, and where the kernel does not know the option.
		boundTo, _ = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX)
		unicast = unicastInterface(fd, r.Local)
		return nil
	})
	if err != nil {
		return err
	}
	r.id = newSocketID(r.Local, r.Peer, boundTo)
	r.Local, r.Peer = unmapped(r.Local), unmapped(r.Peer)
	if r.inDevice() {
		r.findDevice(boundTo, unicast)
	}
	return nil
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

func unmapped(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
