// SPDX-License-Identifier: Apache-2.0

package ktlstest

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"syscall"
	"testing"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
)

// States are both states of one end of a connection.
type States struct{ Read, Write *blob.State }

// Destroy destroys both.
func (s States) Destroy() {
	s.Read.Destroy()
	s.Write.Destroy()
}

// NewStates returns the states of both ends of p, with random keys and sequence
// number 0: what the client writes the server reads, and the reverse. Each is bound
// to the cookie of its socket.
func NewStates(t testing.TB, suite blob.CipherSuite, p *Pair) (client, server States) {
	t.Helper()
	var err error
	if suite.Version() == blob.TLS13 {
		client, server, err = states13(suite)
	} else {
		client, server, err = states12(suite)
	}
	if err != nil {
		t.Fatal(err)
	}
	Bind(t, p.Client, client)
	Bind(t, p.Server, server)
	return client, server
}

// Bind sets the cookie of both states to that of c.
func Bind(t testing.TB, c syscall.Conn, s States) {
	t.Helper()
	cookie, err := ktls.Cookie(c)
	if err != nil {
		t.Fatal(err)
	}
	s.Read.Cookie, s.Write.Cookie = cookie, cookie
}

// Installed returns a pair with keys of the suite in the kernel.
func Installed(t testing.TB, suite blob.CipherSuite) *Pair {
	t.Helper()
	p := NewPair(t)
	InstallPair(t, suite, p)
	return p
}

// InstallPair installs new keys of the suite at both ends.
func InstallPair(t testing.TB, suite blob.CipherSuite, p *Pair) {
	t.Helper()
	client, server := NewStates(t, suite, p)
	if _, err := ktls.Install(p.Client, client.Read, client.Write); err != nil {
		t.Fatal(err)
	}
	if _, err := ktls.Install(p.Server, server.Read, server.Write); err != nil {
		t.Fatal(err)
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func states13(suite blob.CipherSuite) (client, server States, err error) {
	size := 32
	if suite == blob.TLS_AES_256_GCM_SHA384 {
		size = 48
	}
	fromClient, fromServer := random(size), random(size)
	state := func(role blob.Role, d blob.Direction, secret []byte) *blob.State {
		s, e := blob.NewState13(suite, role, d, blob.NewSecret(append([]byte(nil), secret...)))
		err = errors.Join(err, e)
		return s
	}
	client = States{state(blob.Client, blob.Read, fromServer), state(blob.Client, blob.Write, fromClient)}
	server = States{state(blob.Server, blob.Read, fromClient), state(blob.Server, blob.Write, fromServer)}
	return client, server, err
}

func states12(suite blob.CipherSuite) (client, server States, err error) {
	master, clientRandom, serverRandom := random(48), random(32), random(32)
	states := func(role blob.Role) States {
		secret := blob.NewSecret(append([]byte(nil), master...))
		r, w, e := blob.NewStates12(suite, role, secret, clientRandom, serverRandom)
		err = errors.Join(err, e)
		return States{r, w}
	}
	return states(blob.Client), states(blob.Server), err
}

// CryptoInfo returns the option value of TLS_RX or TLS_TX that the kernel must hold
// for s, built apart from package ktls from include/uapi/linux/tls.h: version,
// cipher type, iv, key, salt, rec_seq, without gaps.
func CryptoInfo(s *blob.State) []byte {
	iv, salt := s.IV.Bytes(), []byte(nil)
	seq := binary.BigEndian.AppendUint64(nil, s.Seq)
	cipher := uint16(54)
	switch s.Suite.AEAD() {
	case blob.AES128GCM:
		cipher = 51
	case blob.AES256GCM:
		cipher = 52
	}
	if cipher != 54 {
		salt = iv[:4]
		if iv = iv[4:]; s.Version == blob.TLS12 {
			iv = seq
		}
	}
	b := binary.NativeEndian.AppendUint16(nil, uint16(s.Version))
	b = binary.NativeEndian.AppendUint16(b, cipher)
	for _, part := range [][]byte{iv, s.Key.Bytes(), salt, seq} {
		b = append(b, part...)
	}
	return b
}
