// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// stableLooks bounds how often two numbers of a socket are read until they belong to
// one moment.
const stableLooks = 1000

// givenToTCP returns how many bytes TCP has been given since the connection began, up
// to a constant: those that the peer has acknowledged, and those it has not.
func givenToTCP(fd int) (uint64, error) {
	queued, info, err := stableCounts(fd, "SIOCOUTQ", unix.SIOCOUTQ)
	if err != nil {
		return 0, err
	}
	return info.Bytes_acked + queued, nil
}

// takenFromTCP returns how many bytes TLS has taken from TCP: those that have arrived
// without those that are still queued. The parser takes a record when it is decrypted;
// only under memory pressure it copies a part of one before that (net/tls/tls_strp.c).
func takenFromTCP(fd int) (uint64, error) {
	queued, info, err := stableCounts(fd, "SIOCINQ", unix.SIOCINQ)
	if err != nil {
		return 0, err
	}
	return info.Bytes_received - queued, nil
}

// stableCounts reads the length of a queue and TCP_INFO. The kernel tells them in two
// calls, so they are read until nothing moved in between.
func stableCounts(fd int, name string, queue uint) (uint64, *unix.TCPInfo, error) {
	for range stableLooks {
		before, err := unix.IoctlGetInt(fd, queue)
		if err != nil {
			return 0, nil, os.NewSyscallError("ioctl "+name, err)
		}
		info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
		if err != nil {
			return 0, nil, os.NewSyscallError("getsockopt TCP_INFO", err)
		}
		after, err := unix.IoctlGetInt(fd, queue)
		if err != nil {
			return 0, nil, os.NewSyscallError("ioctl "+name, err)
		}
		if before == after {
			return uint64(after), info, nil
		}
	}
	return 0, nil, &NotQuietError{What: "packets come faster than they can be counted"}
}

// nothingToRead proves that no record is waiting whole, and none in part: a look that
// would find either finds nothing. If there is one, looking decrypts it, and it waits
// to be read as before.
func nothingToRead(fd int) error {
	p, oob := make([]byte, 1), make([]byte, cmsgRoom)
	defer clear(p)
	n, err := uninterrupted(func() (n int, err error) {
		n, _, _, _, err = unix.Recvmsg(fd, p, oob, unix.MSG_DONTWAIT|unix.MSG_PEEK)
		return n, err
	})
	switch {
	case errors.Is(err, unix.EAGAIN):
		return nil
	case err != nil:
		return os.NewSyscallError("recvmsg", err)
	case n == 0:
		return &NotQuietError{What: "the peer has closed, or sent an empty record"}
	}
	return &NotQuietError{What: "a record was read in part, or the peer pads its records and there is more to read"}
}

// routeDevice returns the name of the interface that the socket's packets leave by. The
// socket must belong to the caller's network namespace.
func routeDevice(fd int) (string, error) {
	local, peer, err := socketHosts(fd)
	if err != nil {
		return "", err
	}
	options := &netlink.RouteGetOptions{SrcAddr: local}
	if device, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX); err == nil {
		options.OifIndex = device
	}
	routes, err := netlink.RouteGetWithOptions(peer, options)
	if err != nil || len(routes) == 0 {
		return "", fmt.Errorf("the device of the route: %w", errors.Join(err, os.ErrNotExist))
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return "", fmt.Errorf("the device of the route: %w", err)
	}
	return link.Attrs().Name, nil
}

// socketHosts returns both addresses, without ports.
func socketHosts(fd int) (local, peer net.IP, err error) {
	l, err := unix.Getsockname(fd)
	if err != nil {
		return nil, nil, os.NewSyscallError("getsockname", err)
	}
	p, err := unix.Getpeername(fd)
	if err != nil {
		return nil, nil, os.NewSyscallError("getpeername", err)
	}
	return hostOf(l), hostOf(p), nil
}

func hostOf(sa unix.Sockaddr) net.IP {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return net.IP(sa.Addr[:])
	case *unix.SockaddrInet6:
		return net.IP(sa.Addr[:])
	}
	return nil
}
