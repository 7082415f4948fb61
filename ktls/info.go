// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"fmt"
	"strings"
	"syscall"

	"github.com/offloadd/offloadd/blob"
)

// Mode says who protects the records of one direction (TLS_INFO_TXCONF and
// TLS_INFO_RXCONF of tls.rst).
type Mode uint8

// The modes.
const (
	// Unknown: there is a key, but the kernel does not tell this process more.
	Unknown Mode = iota
	// Base: there is no key, the direction is clear text.
	Base
	// SW: the kernel, on the CPU.
	SW
	// HW: the network device.
	HW
)

func (m Mode) String() string {
	switch m {
	case Base:
		return "base"
	case SW:
		return "sw"
	case HW:
		return "hw"
	}
	return "unknown"
}

// MarshalText is String.
func (m Mode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// Info is what the kernel tells about TLS on one socket. Nothing in it is secret.
// It is the kernel's word at the time of asking: after the network device went
// down, the kernel goes on saying HW (net/tls/tls_device.c, tls_device_down).
type Info struct {
	Version blob.Version
	AEAD    blob.AEAD
	// TX and RX are the modes of writing and reading.
	TX, RX Mode
	// Reason says why a mode is unknown, or why it is not better; "" if both are HW.
	Reason string
	// ZeroCopy: sendfile hands page cache pages to the device uncopied.
	ZeroCopy bool
	// NoPad: the kernel expects TLS 1.3 records without padding.
	NoPad bool
	// MaxPayload is the limit in bytes of a sent record's content; 0 if the kernel
	// does not tell, then it is 16384.
	MaxPayload int
}

// InfoOf asks the kernel about the socket. It never asks for a key.
func InfoOf(c syscall.Conn) (Info, error) {
	var info Info
	err := control(c, func(fd int) error {
		if err := checkTCP(fd); err != nil {
			return fmt.Errorf("ask for TLS: %w", err)
		}
		info = infoOf(fd)
		return nil
	})
	return info, err
}

// infoOf never fails: what the kernel does not tell is unknown, with the reason.
func infoOf(fd int) Info {
	info := Info{TX: Base, RX: Base}
	for _, d := range []struct {
		option int
		mode   *Mode
	}{{optTX, &info.TX}, {optRX, &info.RX}} {
		if header, err := keyHeader(fd, d.option); err == nil {
			info.Version, info.AEAD = decodeHeader(header)
			*d.mode = Unknown
		}
	}
	if info.TX == Base && info.RX == Base {
		info.Reason = "the socket has no TLS keys"
		return info
	}
	told, err := diagnose(fd)
	if err != nil {
		info.Reason = err.Error()
		return info
	}
	info.TX, info.RX = told.tx, told.rx
	info.ZeroCopy, info.NoPad, info.MaxPayload = told.zeroCopy, told.noPad, told.maxPayload
	info.Reason = info.whyNotHardware()
	return info
}

// whyNotHardware gives the reason for a mode below HW as far as it follows from
// what is known; the kernel falls back to software without a word.
func (i Info) whyNotHardware() string {
	switch {
	case i.TX == HW && i.RX == HW:
		return ""
	case i.TX == SW && i.RX == HW:
		return "the device took only the read key: on this combination Linux stops sending for good when the link goes down"
	case i.TX == Base || i.RX == Base:
		return "one direction has no key and is clear text"
	case i.Version != blob.TLS12:
		return fmt.Sprintf("Linux offloads only TLS 1.2 to network devices, not %v", i.Version)
	case i.AEAD != blob.AES128GCM && i.AEAD != blob.AES256GCM:
		return fmt.Sprintf("Linux offloads only AES-GCM to network devices, not %v", i.AEAD)
	}
	return "the device of the route has TLS offload off or not at all, or it refused the key"
}

func (i Info) String() string {
	var b strings.Builder
	if i.Version != 0 {
		fmt.Fprintf(&b, "%v %v, ", i.Version, i.AEAD)
	}
	fmt.Fprintf(&b, "tx %v, rx %v", i.TX, i.RX)
	for _, f := range []struct {
		on   bool
		name string
	}{{i.ZeroCopy, "zero copy"}, {i.NoPad, "no padding"}} {
		if f.on {
			b.WriteString(", " + f.name)
		}
	}
	if i.Reason != "" {
		fmt.Fprintf(&b, " (%s)", i.Reason)
	}
	return b.String()
}

// MarshalJSON writes names instead of numbers.
func (i Info) MarshalJSON() ([]byte, error) { return marshalInfo(i) }
