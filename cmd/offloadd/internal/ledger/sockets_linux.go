// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// thisBoot asks which life of the machine, and which network namespace, this is. A
// namespace's inode number may be used again; its cookie (Linux 5.14) is not.
func thisBoot() (h header, err error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return h, err
	}
	id, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", ""))
	if err != nil || len(id) != len(h.boot) {
		return h, fmt.Errorf("boot id %q is none", text)
	}
	copy(h.boot[:], id)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return h, fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	if h.namespace, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err != nil {
		return h, fmt.Errorf("ask for the network namespace (SO_NETNS_COOKIE): %w", err)
	}
	return h, nil
}

// Numbers of include/uapi/linux/sock_diag.h and inet_diag.h. A request is a struct
// inet_diag_req_v2, a reply begins with a struct inet_diag_msg.
const (
	sockDiagByFamily = 20
	requestSize      = 56
	requestFamily    = 0
	requestProtocol  = 1
	requestStates    = 4
	replySize        = 72
	replyCookie      = 44 // two halves, the lower first
)

// usableStates are those of include/net/tcp_states.h in which a connection may still
// send or be read: all but TIME_WAIT, CLOSE, LISTEN and NEW_SYN_RECV. A socket in CLOSE
// is in no list, also if somebody holds its descriptor: it carries nothing any more,
// and ktls.Install refuses it for its state.
const usableStates = 1<<1 | 1<<2 | 1<<3 | 1<<4 | 1<<5 | 1<<8 | 1<<9 | 1<<11

type request [requestSize]byte

func (r *request) Len() int          { return requestSize }
func (r *request) Serialize() []byte { return r[:] }

// liveSockets returns the cookies of all TCP connections of this network namespace.
//
// It asks twice. A list that spans several messages goes on within a hash bucket by
// counting (net/ipv4/inet_diag.c), and if a socket before that place has ended
// meanwhile, one that lives is stepped over.
func liveSockets() (map[uint64]struct{}, error) {
	cookies := make(map[uint64]struct{})
	for range 2 {
		for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
			if err := listSockets(family, cookies); err != nil {
				return nil, fmt.Errorf("ask which sockets live (inet_diag; \"modprobe tcp_diag\" if it is missing): %w", err)
			}
		}
	}
	return cookies, nil
}

func listSockets(family byte, cookies map[uint64]struct{}) error {
	r := new(request)
	r[requestFamily], r[requestProtocol] = family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(r[requestStates:], usableStates)
	message := nl.NewNetlinkRequest(sockDiagByFamily, unix.NLM_F_DUMP)
	message.AddData(r)
	return message.ExecuteIter(unix.NETLINK_INET_DIAG, sockDiagByFamily, func(reply []byte) bool {
		if len(reply) >= replySize {
			low, high := binary.NativeEndian.Uint32(reply[replyCookie:]), binary.NativeEndian.Uint32(reply[replyCookie+4:])
			cookies[uint64(high)<<32|uint64(low)] = struct{}{}
		}
		return true
	})
}
