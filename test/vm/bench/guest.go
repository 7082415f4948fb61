// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/offloadd/offloadd/test/vm/bench/result"
)

// sysctls: room for many connections at a time. All else is as the kernel has it.
var sysctls = map[string]string{
	"net/core/somaxconn":           "4096",
	"net/ipv4/tcp_max_syn_backlog": "8192",
	"net/ipv4/ip_local_port_range": "10000 65000",
}

// prepareGuest returns what it set.
func prepareGuest() (settings []string, err error) {
	for name, value := range sysctls {
		if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644); err != nil {
			return nil, fmt.Errorf("set %s: %w", name, err)
		}
		settings = append(settings, name+" = "+value)
	}
	return settings, nil
}

func (o options) settings() []string {
	return []string{
		"TLS 1.3, TLS_AES_128_GCM_SHA256 unless said, an ECDSA P-256 certificate, loopback; one process or thread for each server of a peer",
		"each server, client and backend in a control group of its own, no controller enabled; CPU is its cpu.stat",
		fmt.Sprintf("rows in turn, one warm-up dropped; %d repetitions", o.repetitions()),
	}
}

// files are what servers are configured with and serve.
type files struct {
	directory        string
	chain, key, both string // PEM; both is for HAProxy and hitch
	documents        string // what nginx serves: files named by their sizes
}

// sizes of the documents that nginx serves.
func sizes() []int64 {
	return []int64{1, 1 << 10, 16 << 10, 64 << 10, 1 << 20, 2 << 20, 4 << 20, 8 << 20, 16 << 20, 32 << 20, 64 << 20}
}

// makeFiles puts all into memory, so that no disk is measured.
func makeFiles() (*files, error) {
	directory := "/tmp/bench"
	f := &files{directory: directory, chain: directory + "/chain.pem", key: directory + "/key.pem", both: directory + "/both.pem",
		documents: directory + "/documents"}
	if err := os.MkdirAll(f.documents, 0o755); err != nil {
		return nil, err
	}
	for _, size := range sizes() {
		if err := fillFile(filepath.Join(f.documents, strconv.FormatInt(size, 10)), size); err != nil {
			return nil, err
		}
	}
	chain, key, err := makeCertificate()
	if err != nil {
		return nil, err
	}
	return f, errors.Join(os.WriteFile(f.chain, chain, 0o644), os.WriteFile(f.key, key, 0o600),
		os.WriteFile(f.both, append(chain, key...), 0o600))
}

func fillFile(name string, size int64) error {
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	defer file.Close()
	piece := make([]byte, 1<<20)
	if _, err := rand.Read(piece); err != nil {
		return err
	}
	for ; size > 0; size -= int64(len(piece)) {
		if _, err := file.Write(piece[:min(size, int64(len(piece)))]); err != nil {
			return err
		}
	}
	return nil
}

func makeCertificate() (chain, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour)}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return nil, nil, err
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded}), nil
}

// settled waits until the kernel has done what is left of the last measurement: connections of the loopback device are
// closed in softirqs, of whoever runs then.
func settled(mode string) {
	pause := 20 * time.Millisecond
	if mode == result.Wall {
		pause = 100 * time.Millisecond
	}
	time.Sleep(pause)
}
