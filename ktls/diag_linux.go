// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Numbers of include/uapi/linux/sock_diag.h, inet_diag.h and tls.h.
const (
	sockDiagByFamily = 20 // SOCK_DIAG_BY_FAMILY
	diagInfo         = 2  // INET_DIAG_INFO: its bit in idiag_ext asks for ULP_INFO too
	diagULPInfo      = 19 // INET_DIAG_ULP_INFO
	ulpInfoTLS       = 2  // INET_ULP_INFO_TLS

	tlsInfoTXConf       = 3
	tlsInfoRXConf       = 4
	tlsInfoZeroCopyRO   = 5
	tlsInfoRXNoPad      = 6
	tlsInfoTXMaxPayload = 7

	// nlaTypeMask drops NLA_F_NESTED and NLA_F_NET_BYTEORDER from a type.
	nlaTypeMask = 0x3fff
)

// Fields of struct inet_diag_req_v2; the ports and addresses are big-endian.
const (
	diagReqSize   = 56
	diagReplySize = 72 // struct inet_diag_msg, before the attributes
)

var (
	reqFamily   = span{0, 1}
	reqProtocol = span{1, 1}
	reqExt      = span{2, 1}
	reqStates   = span{4, 4}
	reqSrcPort  = span{8, 2}
	reqDstPort  = span{10, 2}
	reqSrc      = span{12, 16}
	reqDst      = span{28, 16}
	reqIf       = span{44, 4}
	reqCookieLo = span{48, 4}
	reqCookieHi = span{52, 4}
)

// ulpTLS is what INET_ULP_INFO_TLS tells.
type ulpTLS struct {
	tx, rx          Mode
	zeroCopy, noPad bool
	maxPayload      int
}

// errNoULPInfo is the answer to a process without privilege before Linux 7
// (net/ipv4/tcp_diag.c, tcp_diag_get_aux).
var errNoULPInfo = errors.New("the kernel tells the mode only to CAP_NET_ADMIN")

// diagRequest encodes the lookup of exactly one socket, by address and cookie.
type diagRequest [diagReqSize]byte

func newDiagRequest(fd int) (*diagRequest, error) {
	local, err := unix.Getsockname(fd)
	if err != nil {
		return nil, fmt.Errorf("getsockname: %w", err)
	}
	peer, err := unix.Getpeername(fd)
	if err != nil {
		return nil, fmt.Errorf("getpeername: %w", err)
	}
	cookie, err := cookie(fd)
	if err != nil {
		return nil, err
	}
	r := new(diagRequest)
	r[reqProtocol.at] = unix.IPPROTO_TCP
	r[reqExt.at] = 1 << (diagInfo - 1)
	binary.NativeEndian.PutUint32(reqStates.of(r[:]), ^uint32(0))
	binary.NativeEndian.PutUint32(reqCookieLo.of(r[:]), uint32(cookie))
	binary.NativeEndian.PutUint32(reqCookieHi.of(r[:]), uint32(cookie>>32))
	// A v4-mapped pair of addresses is looked up as IPv4 by the kernel
	// (inet_diag_find_one_icsk).
	r[reqFamily.at] = r.address(reqSrcPort, reqSrc, local)
	r.address(reqDstPort, reqDst, peer)
	// A socket bound to a device (link-local IPv6) is found only with that device.
	if device, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX); err == nil {
		binary.NativeEndian.PutUint32(reqIf.of(r[:]), uint32(device))
	}
	return r, nil
}

// address fills in one end and returns its family.
func (r *diagRequest) address(port, host span, sa unix.Sockaddr) byte {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		binary.BigEndian.PutUint16(port.of(r[:]), uint16(sa.Port))
		copy(host.of(r[:]), sa.Addr[:])
		return unix.AF_INET
	case *unix.SockaddrInet6:
		binary.BigEndian.PutUint16(port.of(r[:]), uint16(sa.Port))
		copy(host.of(r[:]), sa.Addr[:])
		return unix.AF_INET6
	}
	return unix.AF_UNSPEC
}

// diagnose asks inet_diag for the TLS part of the socket. The socket must belong
// to the caller's network namespace.
func diagnose(fd int) (ulpTLS, error) {
	request, err := newDiagRequest(fd)
	if err != nil {
		return ulpTLS{}, fmt.Errorf("mode not known: %w", err)
	}
	reply, err := request.ask()
	if err != nil {
		return ulpTLS{}, fmt.Errorf("mode not known: inet_diag: %w", err)
	}
	if len(reply) >= diagReplySize {
		if told, ok := decodeULP(reply[diagReplySize:]); ok {
			return told, nil
		}
	}
	return ulpTLS{}, errNoULPInfo
}

// diagReplyRoom is enough for a struct inet_diag_msg with INET_DIAG_INFO and its like,
// which are some 500 bytes.
const diagReplyRoom = 4096

// ask has the kernel answer, and returns the body of the answer. The netlink library
// would do; but each connection is asked about once, and for that its buffers cost more
// than all system calls of an installation.
func (r *diagRequest) ask() ([]byte, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	header := unix.NlMsghdr{Len: unix.NLMSG_HDRLEN + diagReqSize, Type: sockDiagByFamily, Flags: unix.NLM_F_REQUEST, Seq: 1}
	message, err := binary.Append(make([]byte, 0, header.Len), binary.NativeEndian, header)
	if err != nil {
		return nil, err
	}
	if err := unix.Sendto(fd, append(message, r[:]...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, os.NewSyscallError("sendto", err)
	}
	// The kernel has answered before it returned (net/netlink/af_netlink.c,
	// netlink_unicast_kernel).
	b := make([]byte, diagReplyRoom)
	n, err := uninterrupted(func() (int, error) {
		n, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
		return n, err
	})
	if err != nil {
		return nil, os.NewSyscallError("recvfrom", err)
	}
	if n > len(b) {
		return nil, fmt.Errorf("an answer of %d bytes", n)
	}
	return diagReply(b[:n])
}

// diagReply returns the body of a netlink message, or the error that it is.
func diagReply(b []byte) ([]byte, error) {
	var header unix.NlMsghdr
	n, err := binary.Decode(b, binary.NativeEndian, &header)
	if err != nil || int(header.Len) < n || int(header.Len) > len(b) {
		return nil, fmt.Errorf("an answer of %d bytes that is no netlink message", len(b))
	}
	body := b[n:header.Len]
	switch {
	case header.Type == sockDiagByFamily:
		return body, nil
	case header.Type == unix.NLMSG_ERROR && len(body) >= 4:
		return nil, unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
	}
	return nil, fmt.Errorf("an answer of type %d", header.Type)
}

// decodeULP finds INET_DIAG_ULP_INFO, and the TLS part in it.
func decodeULP(attributes []byte) (ulpTLS, bool) {
	told := ulpTLS{tx: Base, rx: Base}
	tls, ok := attribute(attributes, diagULPInfo, ulpInfoTLS)
	if !ok {
		return told, false
	}
	for a := range eachAttribute(tls) {
		switch {
		case a.kind == tlsInfoTXConf && len(a.value) >= 2:
			told.tx = modeOf(binary.NativeEndian.Uint16(a.value))
		case a.kind == tlsInfoRXConf && len(a.value) >= 2:
			told.rx = modeOf(binary.NativeEndian.Uint16(a.value))
		case a.kind == tlsInfoZeroCopyRO:
			told.zeroCopy = true
		case a.kind == tlsInfoRXNoPad:
			told.noPad = true
		case a.kind == tlsInfoTXMaxPayload && len(a.value) >= 2:
			told.maxPayload = int(binary.NativeEndian.Uint16(a.value))
		}
	}
	return told, true
}

// modeOf translates TLS_CONF_* of include/uapi/linux/tls.h.
func modeOf(conf uint16) Mode {
	switch conf {
	case 1:
		return Base
	case 2:
		return SW
	case 3:
		return HW
	}
	return Unknown
}
