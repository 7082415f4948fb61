// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/offloadd/offloadd/blob"
	"golang.org/x/sys/unix"
)

// probeSuite13 is the suite that every kernel with TLS 1.3 has.
const probeSuite13 = blob.TLS_AES_128_GCM_SHA256

func tryULP() error {
	a, b, err := loopback()
	if err != nil {
		return err
	}
	defer a.Close()
	defer b.Close()
	return unsupported(Attach(a), ErrNoTLS)
}

// TrySuite tries what [Probe] tries for one suite: it installs keys on a loopback
// connection of its own and carries a byte each way. The error wraps ErrNotSupported
// if the kernel cannot.
func TrySuite(suite blob.CipherSuite) error {
	p, err := newKeyedPair(suite)
	if err != nil {
		return unsupported(err, ErrSuite, ErrNoTLS)
	}
	defer p.close()
	return errors.Join(carry(p.a, p.b), carry(p.b, p.a))
}

// tryRekey changes the key of one direction on both ends, and carries a byte.
func tryRekey(option int) error {
	p, err := newKeyedPair(probeSuite13)
	if err != nil {
		return err
	}
	defer p.close()
	next := probeState(probeSuite13)
	other := optRX + optTX - option
	if err := setProbeKey(p.a, option, next); err != nil {
		// EBUSY: the kernel takes one key per direction.
		return unsupported(err, ErrInstalled)
	}
	if err := setProbeKey(p.b, other, next); err != nil {
		return unsupported(err, ErrInstalled)
	}
	if option == optTX {
		return carry(p.a, p.b)
	}
	return carry(p.b, p.a)
}

// setNumber sets an option of level SOL_TLS; a kernel that does not know it says
// ENOPROTOOPT.
func (p *probePair) setNumber(option int, value []byte) error {
	err := control(p.b, func(fd int) error { return setOption(fd, unix.SOL_TLS, option, value) })
	return unsupported(err, unix.ENOPROTOOPT)
}

func nativeUint32(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }
func nativeUint16(n uint16) []byte { return binary.NativeEndian.AppendUint16(nil, n) }

func tryNoPad() error {
	p, err := newKeyedPair(probeSuite13)
	if err != nil {
		return err
	}
	defer p.close()
	if err := p.setNumber(optRXExpectNoPad, nativeUint32(1)); err != nil {
		return err
	}
	return carry(p.a, p.b)
}

func tryMaxPayload() error {
	p, err := newKeyedPair(probeSuite13)
	if err != nil {
		return err
	}
	defer p.close()
	if err := p.setNumber(optTXMaxPayloadLen, nativeUint16(1024)); err != nil {
		return err
	}
	return carry(p.b, p.a)
}

// tryInfo asks inet_diag for the mode, as this process may.
func tryInfo() error {
	p, err := newKeyedPair(probeSuite13)
	if err != nil {
		return err
	}
	defer p.close()
	return control(p.a, func(fd int) error {
		_, err := diagnose(fd)
		return unsupported(err, errNoULPInfo)
	})
}

// tryMPTCP attaches the ULP to an unconnected MPTCP socket: TCP would say that it is
// not connected.
func tryMPTCP() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
	if err != nil {
		return fmt.Errorf("no Multipath TCP here: %w", os.NewSyscallError("socket", err))
	}
	defer unix.Close(fd)
	err = attachULP(fd)
	if errors.Is(err, unix.ENOTCONN) {
		return nil
	}
	return unsupported(err, unix.ENOPROTOOPT, unix.EOPNOTSUPP)
}
