// SPDX-License-Identifier: Apache-2.0

package custody

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// unicastInterface returns the interface that IP_UNICAST_IF or IPV6_UNICAST_IF
// chose for what the socket sends, 0 if none. The kernel gives it big-endian.
func unicastInterface(fd int, local netip.AddrPort) int {
	level, option := unix.IPPROTO_IP, unix.IP_UNICAST_IF
	if local.Addr().Is6() {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_IF
	}
	n, err := unix.GetsockoptInt(fd, level, option)
	if err != nil {
		return 0
	}
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], uint32(n))
	return int(binary.BigEndian.Uint32(b[:]))
}

// findDevice names the interface of the socket's route, where the kernel puts the
// keys (net/tls/tls_device.c, get_netdev_for_sock). A connection without one is kept,
// and says that its device is not watched.
func (r *record) findDevice(boundTo, unicast int) {
	index, name, err := outputInterface(r.Local.Addr(), r.Peer.Addr(), max(boundTo, unicast))
	if boundTo != 0 && err == nil && index != boundTo {
		err = fmt.Errorf("bound to interface %d, routed through %s", boundTo, name)
	}
	for _, k := range r.keys() {
		switch {
		case k.Place != Device:
		case err != nil:
			k.Reason = fmt.Sprintf("in a device that is not known, so its loss will not be noticed: %v", err)
		default:
			k.Device = name
		}
	}
	if err == nil {
		r.device = index
	} else {
		r.device = 0
	}
}

// outputInterface asks for the route. Rules that go by mark or uid may lead
// elsewhere, which a lookup from outside cannot tell.
func outputInterface(local, peer netip.Addr, through int) (int, string, error) {
	routes, err := netlink.RouteGetWithOptions(peer.AsSlice(), &netlink.RouteGetOptions{SrcAddr: local.AsSlice(), OifIndex: through})
	if err != nil {
		return 0, "", fmt.Errorf("route to %v: %w", peer, err)
	}
	if len(routes) == 0 {
		return 0, "", fmt.Errorf("no route to %v", peer)
	}
	index := routes[0].LinkIndex
	link, err := netlink.LinkByIndex(index)
	if err != nil {
		return 0, "", fmt.Errorf("interface %d: %w", index, err)
	}
	return index, link.Attrs().Name, nil
}
