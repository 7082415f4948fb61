// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/cmd/offloadd/internal/custody"
)

// The control socket is a unix socket of type SOCK_SEQPACKET. A client sends a
// request, one JSON object, and gets replies, one JSON object each, the last of which
// says "done" or "error". Then it may send the next request.
const (
	defaultControl = "/run/offloadd/control.sock"
	controlVersion = 1
	// maxControlMessage bounds request and reply in bytes.
	maxControlMessage = 64 << 10
	// maxControlSockets bounds the sockets that a request names.
	maxControlSockets = 2000
	// controlTimeout bounds the wait for a request, and for room for a reply.
	controlTimeout = 10 * time.Second
)

// Commands of a request.
const (
	controlStatus = "status"
	controlRevoke = "revoke"
)

// controlRequest asks for the connections that any of its fields chooses.
type controlRequest struct {
	Version int      `json:"version"`
	Command string   `json:"command"`
	Sockets []uint64 `json:"sockets,omitempty"`
	All     bool     `json:"all,omitempty"`
	// Peer is an address, an address with port, or a prefix.
	Peer string `json:"peer,omitempty"`
}

// controlReply has one of its fields set, and Version in each.
type controlReply struct {
	Version    int             `json:"version"`
	Connection *custody.Entry  `json:"connection,omitempty"` // status
	Traffic    *traffic        `json:"traffic,omitempty"`    // beside it, where the observer knows
	Revoked    *revokeResult   `json:"revoked,omitempty"`    // revoke
	Missing    uint64          `json:"missing,omitempty"`    // status: a socket that was asked for
	Done       *controlSummary `json:"done,omitempty"`
	Error      string          `json:"error,omitempty"`
}

// revokeResult is what became of one socket.
type revokeResult struct {
	Socket  uint64          `json:"socket"`
	Outcome custody.Outcome `json:"outcome"`
	Detail  string          `json:"detail,omitempty"`
	// What the command found out afterwards, and the daemon does not know: whether the
	// dead socket still has its keys, why, and which processes hold it.
	Keys       string   `json:"keys,omitempty"`
	KeysDetail string   `json:"keys_detail,omitempty"`
	Holders    []holder `json:"holders,omitempty"`
}

// controlSummary ends a reply.
type controlSummary struct {
	PID      int            `json:"pid"`
	Instance string         `json:"instance"`
	Started  time.Time      `json:"started"`
	Totals   custody.Totals `json:"totals"`
	// Foreign counts kernel TLS sockets that are not in the table: of other programs, or
	// from before this start. -1 if the kernel did not say.
	Foreign int `json:"foreign"`
}

// parseControlRequest is strict: what it does not know is an error.
func parseControlRequest(b []byte) (*controlRequest, error) {
	// The version first, since a later one may have fields that this one does not know.
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, fmt.Errorf("no JSON object: %v", err)
	}
	if v.Version != controlVersion {
		return nil, fmt.Errorf("version %d, and this daemon speaks version %d: use the offloadd that it runs", v.Version, controlVersion)
	}
	r := &controlRequest{}
	if err := decodeStrictly(b, r); err != nil {
		return nil, err
	}
	switch {
	case r.Command != controlStatus && r.Command != controlRevoke:
		return nil, fmt.Errorf("command %q, want %q or %q", r.Command, controlStatus, controlRevoke)
	case len(r.Sockets) > maxControlSockets:
		return nil, fmt.Errorf("%d sockets, want at most %d in a request", len(r.Sockets), maxControlSockets)
	case slices.Contains(r.Sockets, 0):
		return nil, errors.New("socket 0, and the kernel numbers from 1")
	case (len(r.Sockets) > 0 && r.All) || (len(r.Sockets) > 0 && r.Peer != "") || (r.All && r.Peer != ""):
		return nil, errors.New("more than one of sockets, all and peer")
	case len(r.Sockets) == 0 && !r.All && r.Peer == "":
		return nil, errors.New("none of sockets, all and peer")
	}
	return r, nil
}

// decodeStrictly decodes exactly one object.
func decodeStrictly(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON object")
	}
	return nil
}

// matchPeer returns what an address, an address with port or a prefix matches.
func matchPeer(text string) (func(*custody.Entry) bool, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return func(e *custody.Entry) bool { return e.Peer.Addr() == a.Unmap() }, nil
	}
	if a, err := netip.ParseAddrPort(text); err == nil {
		a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
		return func(e *custody.Entry) bool { return e.Peer == a }, nil
	}
	if p, err := netip.ParsePrefix(text); err == nil {
		return func(e *custody.Entry) bool { return p.Contains(e.Peer.Addr()) }, nil
	}
	return nil, fmt.Errorf("peer %q, want an address, an address with port, or a prefix such as 192.0.2.0/24", text)
}

// sendControl writes one message.
func sendControl(c *net.UnixConn, message any) error {
	b, err := json.Marshal(message)
	if err != nil {
		return err
	}
	if len(b) > maxControlMessage {
		return fmt.Errorf("a message of %d bytes, more than %d", len(b), maxControlMessage)
	}
	if err := c.SetWriteDeadline(time.Now().Add(controlTimeout)); err != nil {
		return err
	}
	_, err = c.Write(b)
	return err
}

// receiveControl reads one message into buffer, which has room for the longest.
func receiveControl(c *net.UnixConn, buffer []byte) ([]byte, error) {
	if err := c.SetReadDeadline(time.Now().Add(controlTimeout)); err != nil {
		return nil, err
	}
	n, _, flags, _, err := c.ReadMsgUnix(buffer, nil)
	if err != nil {
		return nil, err
	}
	if flags&unix.MSG_TRUNC != 0 {
		return nil, fmt.Errorf("a message of more than %d bytes", len(buffer))
	}
	return buffer[:n], nil
}
