// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"net"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Names of the features in ethtool -k (net/ethtool/common.c).
const (
	featureHWTX = "tls-hw-tx-offload"
	featureHWRX = "tls-hw-rx-offload"
)

// Numbers of include/uapi/linux/genetlink.h and ethtool_netlink.h.
const (
	ctrlGetFamily  = 3 // CTRL_CMD_GETFAMILY
	ctrlFamilyID   = 1 // CTRL_ATTR_FAMILY_ID
	ctrlFamilyName = 2 // CTRL_ATTR_FAMILY_NAME

	genlHeaderSize = 4

	ethtoolFeaturesGet    = 11 // ETHTOOL_MSG_FEATURES_GET
	ethtoolFeaturesHeader = 1  // ETHTOOL_A_FEATURES_HEADER
	ethtoolFeaturesActive = 4  // ETHTOOL_A_FEATURES_ACTIVE
	ethtoolHeaderDevName  = 2  // ETHTOOL_A_HEADER_DEV_NAME
	ethtoolBitsetBits     = 3  // ETHTOOL_A_BITSET_BITS
	ethtoolBitName        = 2  // ETHTOOL_A_BITSET_BIT_NAME
)

// genlMessage is struct genlmsghdr: command, version and two reserved bytes.
type genlMessage struct{ command, version byte }

func (m genlMessage) Len() int          { return genlHeaderSize }
func (m genlMessage) Serialize() []byte { return []byte{m.command, m.version, 0, 0} }

// devices returns the interfaces of the network namespace. One whose features
// cannot be read has none that could be used.
func devices() []Device {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil
	}
	family, err := genlFamily("ethtool")
	var list []Device
	for _, i := range interfaces {
		d := Device{Name: i.Name}
		if err == nil {
			on := activeFeatures(family, i.Name)
			d.TX, d.RX = on[featureHWTX], on[featureHWRX]
		}
		list = append(list, d)
	}
	return list
}

// genlFamily returns the number of a generic netlink family.
func genlFamily(name string) (uint16, error) {
	request := nl.NewNetlinkRequest(unix.GENL_ID_CTRL, 0)
	request.AddData(genlMessage{ctrlGetFamily, 1})
	request.AddData(nl.NewRtAttr(ctrlFamilyName, nl.ZeroTerminated(name)))
	replies, err := request.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return 0, err
	}
	for _, reply := range replies {
		if id, ok := genlAttribute(reply, ctrlFamilyID); ok && len(id) >= 2 {
			return nl.NativeEndian().Uint16(id), nil
		}
	}
	return 0, ErrNotSupported
}

// activeFeatures returns the names of the features that are on.
func activeFeatures(family uint16, device string) map[string]bool {
	request := nl.NewNetlinkRequest(int(family), 0)
	request.AddData(genlMessage{ethtoolFeaturesGet, 1})
	header := nl.NewRtAttr(ethtoolFeaturesHeader|unix.NLA_F_NESTED, nil)
	header.AddRtAttr(ethtoolHeaderDevName, nl.ZeroTerminated(device))
	request.AddData(header)
	replies, err := request.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return nil
	}
	on := make(map[string]bool)
	for _, reply := range replies {
		bits, _ := genlAttribute(reply, ethtoolFeaturesActive, ethtoolBitsetBits)
		for bit := range eachAttribute(bits) {
			// The set of active features is a list: a bit that is named is on.
			if name, ok := attribute(bit.value, ethtoolBitName); ok && len(name) > 0 {
				on[string(name[:len(name)-1])] = true
			}
		}
	}
	return on
}

func genlAttribute(reply []byte, path ...uint16) ([]byte, bool) {
	if len(reply) < genlHeaderSize {
		return nil, false
	}
	return attribute(reply[genlHeaderSize:], path...)
}
