// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/offloadd/offloadd/blob"
)

// probeTimeout bounds each attempt on a loopback connection. On a busy machine a byte
// can take seconds.
const probeTimeout = 10 * time.Second

// loopback returns both ends of a TCP connection to ourselves.
func loopback() (a, b *net.TCPConn, err error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", "localhost:0")
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	deadline := time.Now().Add(probeTimeout)
	if err := l.(*net.TCPListener).SetDeadline(deadline); err != nil {
		return nil, nil, err
	}
	dialer := net.Dialer{Deadline: deadline}
	dialer.SetMultipathTCP(false)
	dialed, err := dialer.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	for {
		accepted, err := l.Accept()
		if err != nil {
			dialed.Close()
			return nil, nil, err
		}
		// Anybody may connect to a loopback port.
		if accepted.RemoteAddr().String() == dialed.LocalAddr().String() {
			a, b = dialed.(*net.TCPConn), accepted.(*net.TCPConn)
			return a, b, errors.Join(a.SetDeadline(deadline), b.SetDeadline(deadline))
		}
		accepted.Close()
	}
}

// probePair is a loopback connection; what one end writes under a key the other
// reads under the same.
type probePair struct {
	a, b *net.TCPConn
	// ab and ba are the states from a to b and back; probe keys, protecting nothing.
	ab, ba *blob.State
}

// newProbePair attaches the ULP to both ends.
func newProbePair(suite blob.CipherSuite) (*probePair, error) {
	a, b, err := loopback()
	if err != nil {
		return nil, err
	}
	p := &probePair{a: a, b: b, ab: probeState(suite), ba: probeState(suite)}
	if err := errors.Join(Attach(a), Attach(b)); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// newKeyedPair installs the keys as well.
func newKeyedPair(suite blob.CipherSuite) (*probePair, error) {
	p, err := newProbePair(suite)
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		setProbeKey(p.a, optRX, p.ba), setProbeKey(p.b, optRX, p.ab),
		setProbeKey(p.a, optTX, p.ab), setProbeKey(p.b, optTX, p.ba))
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *probePair) close() {
	p.a.Close()
	p.b.Close()
}

// probeState returns a random state. Validate would not pass it: it is bound to no
// socket.
func probeState(suite blob.CipherSuite) *blob.State {
	random := func(n int) blob.Secret {
		b := make([]byte, n)
		rand.Read(b)
		return blob.NewSecret(b)
	}
	return &blob.State{
		Version: suite.Version(), Suite: suite,
		Key: random(suite.AEAD().KeySize()), IV: random(suite.IVSize()),
	}
}

func setProbeKey(c *net.TCPConn, option int, s *blob.State) error {
	return control(c, func(fd int) error {
		return explain(opSetKey, "set "+optionName(option), setKey(fd, option, encodeCryptoInfo(s)))
	})
}

// carry writes a byte at one end and expects it at the other.
func carry(from, to net.Conn) error {
	if _, err := from.Write([]byte{'.'}); err != nil {
		return err
	}
	b := make([]byte, 1)
	if _, err := io.ReadFull(to, b); err != nil {
		return err
	}
	if b[0] != '.' {
		return fmt.Errorf("%q arrived", b)
	}
	return nil
}
