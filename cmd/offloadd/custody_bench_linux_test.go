// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/ledger"
	"github.com/offloadd/offloadd/handshaker"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// BenchmarkCustody measures what the custody of keys costs a connection, both keys
// together: sealing, opening, the ledger and the read-back, as in the daemon. The
// last is one whole handshake, with both ends in this process; "%custody" is what the
// others are of it. TLS_AES_128_GCM_SHA256, X25519MLKEM768, ECDSA P-256.
func BenchmarkCustody(b *testing.B) {
	total := 0.0
	part := func(name string, run func(b *testing.B)) {
		last := 0.0
		b.Run(name, func(b *testing.B) {
			run(b)
			last = float64(b.Elapsed().Nanoseconds()) / float64(b.N)
		})
		total += last
	}
	key, err := blob.GenerateKey()
	if err != nil {
		b.Fatal(err)
	}
	sealer, setup, err := blob.NewSealer(key.Public())
	if err != nil {
		b.Fatal(err)
	}
	opener, err := key.NewOpener(setup)
	if err != nil {
		b.Fatal(err)
	}
	expiry := time.Now().Add(time.Hour)
	seal := func(b *testing.B, states [2]*blob.State) (blobs [2]blob.Blob) {
		for i, s := range states {
			if blobs[i], err = sealer.Seal(s, expiry); err != nil {
				b.Fatal(err)
			}
		}
		return blobs
	}
	part("Seal", func(b *testing.B) {
		other, _, err := blob.NewSealer(key.Public())
		if err != nil {
			b.Fatal(err)
		}
		kept := sealer
		sealer = other
		defer func() { sealer = kept }()
		states := benchmarkStates(b.N)
		b.ResetTimer()
		for _, s := range states {
			seal(b, s)
		}
	})
	part("Open", func(b *testing.B) {
		blobs := make([][2]blob.Blob, b.N)
		for i, s := range benchmarkStates(b.N) {
			blobs[i] = seal(b, s)
		}
		b.ResetTimer()
		for i, pair := range blobs {
			want := blob.Binding{Cookie: uint64(i + 1), Role: blob.Server, Direction: blob.Read, Now: time.Now()}
			if _, err := opener.Open(pair[0], want); err != nil {
				b.Fatal(err)
			}
			want.Direction = blob.Write
			if _, err := opener.Open(pair[1], want); err != nil {
				b.Fatal(err)
			}
		}
	})
	part("Enter", func(b *testing.B) {
		dir, err := os.MkdirTemp("/dev/shm", "offloadd-test-")
		if err != nil {
			b.Skip(err)
		}
		defer os.RemoveAll(dir)
		l, err := ledger.Open(filepath.Join(dir, "ledger"), key.Instance(), slog.New(slog.NewTextHandler(io.Discard, nil)))
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close()
		states := benchmarkStates(b.N)
		b.ResetTimer()
		for _, s := range states {
			if _, err := l.Enter(ledger.NewPending(s[0], s[1])); err != nil {
				b.Fatal(err)
			}
		}
	})
	part("ReadBack", func(b *testing.B) {
		ktlstest.Require(b)
		p := ktlstest.Installed(b, blob.TLS_AES_128_GCM_SHA256)
		want := len(ktlstest.CryptoInfo(benchmarkStates(1)[0][0]))
		for b.Loop() {
			cryptoInfoOf(b, p.Server, optionRX, want)
			cryptoInfoOf(b, p.Server, optionTX, want)
		}
	})
	custody := total
	b.Run("Handshake", func(b *testing.B) {
		benchmarkHandshake(b)
		b.ReportMetric(100*custody/(float64(b.Elapsed().Nanoseconds())/float64(b.N)), "%custody")
	})
}

// benchmarkStates makes n pairs of states, for the sockets 1 to n.
func benchmarkStates(n int) [][2]*blob.State {
	pairs := make([][2]*blob.State, n)
	for i := range pairs {
		for j, d := range []blob.Direction{blob.Read, blob.Write} {
			secret := make([]byte, 16+12+32)
			binary.BigEndian.PutUint64(secret, uint64(2*i+j+1))
			pairs[i][j] = &blob.State{Role: blob.Server, Direction: d, Version: blob.TLS13, Suite: blob.TLS_AES_128_GCM_SHA256, Cookie: uint64(i + 1),
				Key: blob.NewSecret(secret[:16:16]), IV: blob.NewSecret(secret[16:28:28]), NextSecret: blob.NewSecret(secret[28:])}
		}
	}
	return pairs
}

// benchmarkHandshake completes handshakes as a worker does, with a client of Go's.
func benchmarkHandshake(b *testing.B) {
	id := newIdentity(b)
	server := &handshaker.Config{TLS: &tls.Config{Certificates: id.serverForTest}}
	client := &tls.Config{RootCAs: id.roots, ServerName: "localhost", MinVersion: tls.VersionTLS13}
	listener := ktlstest.Listen(b)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	for b.Loop() {
		b.StopTimer()
		p := ktlstest.Connect(b, listener)
		b.StartTimer()
		handshake := make(chan error, 1)
		go func() { handshake <- tls.Client(p.Client, client).Handshake() }()
		session, err := handshaker.Server(ctx, p.Server, server)
		if err != nil {
			b.Fatal(err)
		}
		if err := <-handshake; err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		session.Read.Destroy()
		session.Write.Destroy()
		p.Server.Close()
		p.Client.Close()
		b.StartTimer()
	}
}
