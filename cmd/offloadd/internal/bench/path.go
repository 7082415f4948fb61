// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/offloadd/offloadd/handshaker"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/userspace"
)

// Path names how a server's bytes get onto the wire.
type Path string

// The paths.
const (
	PlainWrite    Path = "plain-write"
	PlainSendfile Path = "plain-sendfile"
	CryptoTLS     Path = "tls"
	CryptoTLSFile Path = "tls-file"
	KTLSWrite     Path = "ktls-write"
	KTLSSendfile  Path = "ktls-sendfile"
	Userspace     Path = "userspace"
	BareWrite     Path = "bare-write"
	BareSendfile  Path = "bare-sendfile"
	Handed        Path = "handed"
)

// Paths are all, for help and errors.
var Paths = []Path{PlainWrite, PlainSendfile, CryptoTLS, CryptoTLSFile, KTLSWrite, KTLSSendfile, Userspace, BareWrite, BareSendfile, Handed}

// ProxyPaths are those of a proxy.
var ProxyPaths = []Path{"plain", "tls", "ktls"}

// Describe says what a path is.
func (p Path) Describe() string {
	return map[Path]string{
		PlainWrite:    "no TLS; write(2) from memory",
		PlainSendfile: "no TLS; sendfile(2) from a file in memory",
		CryptoTLS:     "Go's crypto/tls; write from memory",
		CryptoTLSFile: "the same; files are read, 128 KiB at a time, and written",
		KTLSWrite:     "handshaker and ktls.Conn in this process; write",
		KTLSSendfile:  "the same; files by sendfile",
		Userspace:     "handshaker and ktls/userspace.Conn: our records, not the kernel's",
		BareWrite:     "keys installed, then system calls and nothing of ktls.Conn; write",
		BareSendfile:  "the same; files by sendfile",
		Handed:        "connections from \"offloadd serve\", ktls.Conn; files by sendfile",
	}[p]
}

// Known reports whether it is one of them.
func (p Path) Known() bool { return slices.Contains(Paths, p) }

func (p Path) plain() bool { return p == "plain" || strings.HasPrefix(string(p), "plain-") }

// Kernel reports whether the path needs the kernel's TLS.
func (p Path) Kernel() bool {
	return p == "ktls" || strings.HasPrefix(string(p), "ktls-") || strings.HasPrefix(string(p), "bare-")
}

// files reports whether bodies are sent from a file.
func (p Path) files() bool {
	return strings.HasSuffix(string(p), "-sendfile") || p == CryptoTLSFile || p == Handed
}

// open makes what bytes are written to out of an accepted connection. If it fails, the
// caller closes that. The settings are those of kernel TLS, and not of the bare program.
func (p Path) open(ctx context.Context, accepted net.Conn, config *tls.Config, settings func() ktls.Settings) (net.Conn, error) {
	switch {
	case p.plain(), p == Handed: // a handed connection has its keys
		return accepted, nil
	case p == CryptoTLS, p == CryptoTLSFile:
		c := tls.Server(accepted, config)
		return c, c.HandshakeContext(ctx)
	}
	session, err := handshaker.Server(ctx, accepted, &handshaker.Config{TLS: config})
	if err != nil {
		return nil, err
	}
	defer session.Destroy()
	return p.takeOver(accepted, session, settings)
}

// takeOver gives the keys of a session to the record layer of the path.
func (p Path) takeOver(accepted net.Conn, session *handshaker.Session, settings func() ktls.Settings) (net.Conn, error) {
	if p == Userspace {
		return userspace.NewConn(accepted, session.Read, session.Write)
	}
	tcp, ok := accepted.(*net.TCPConn)
	if !ok {
		return nil, fmt.Errorf("%T: %w", accepted, ktls.ErrNotTCP)
	}
	if p == BareWrite || p == BareSendfile {
		if _, err := ktls.Install(tcp, session.Read, session.Write); err != nil {
			return nil, err
		}
		return newBareConn(tcp)
	}
	custody, _, err := settings().InstallKeeping(tcp, session.Read, session.Write)
	if err != nil {
		return nil, err
	}
	custody.Destroy()
	return ktls.NewConn(tcp)
}
