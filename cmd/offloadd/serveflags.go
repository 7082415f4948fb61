// SPDX-License-Identifier: Apache-2.0

package main

import (
	"path/filepath"

	"github.com/spf13/pflag"
)

// serveFlags describe one listener without a file, and override the rest of one.
type serveFlags struct {
	listener             listenerConfig
	certificate, key     string
	workerUser           string
	ledger, control      string
	guard, bpfDir        string
	signerUser           string
	workers, connections int
	handshakeTimeout     duration
	lifetime             duration
	noTickets            bool
	listenerFlags        []string
}

func (s *serveFlags) add(f *pflag.FlagSet) {
	l := &s.listener
	f.StringVar(&l.Address, "listen", "", "listen on this `address`, for example 0.0.0.0:443")
	f.StringVar(&s.certificate, "certificate", "", "certificate chain, a PEM `file`, leaf first")
	f.StringVar(&s.key, "key", "", "private key, a PEM `file` that only workers read, or pkcs11:... or tpm:...")
	f.StringVar(&l.Application, "application", "/run/offloadd/application.sock", "unix `socket` where applications fetch connections")
	f.StringVar(&l.ApplicationUser, "application-user", "", "`user` that may fetch connections, beside root")
	f.StringSliceVar(&l.ALPN, "alpn", nil, "application protocols, the preferred first: http/1.1")
	f.StringVar(&l.MinVersion, "min-version", "1.2", "lowest TLS `version`: 1.2 or 1.3")
	f.StringVar(&l.ClientAuth, "client-auth", "none", "client certificates: none, request, require, verify or require-and-verify")
	f.StringVar(&l.ClientCA, "client-ca", "", "roots to verify client certificates with, a PEM `file`")
	f.StringVar(&l.KernelTLS, "kernel-tls", "require", "the kernel's record layer: require, prefer (and user space where it cannot) or never")
	f.BoolVar(&s.noTickets, "no-tickets", false, "no session tickets, so no resumption")
	f.VisitAll(func(f *pflag.Flag) {
		if f.Name != "config" && f.Name != "log" {
			s.listenerFlags = append(s.listenerFlags, f.Name)
		}
	})
	f.StringVar(&s.workerUser, "worker-user", "offloadd", "`user` of the workers, a name or a number")
	f.StringVar(&s.ledger, "ledger", defaultConfig().Ledger, "remember imported keys in this `file`, on a tmpfs; one for each daemon")
	f.StringVar(&s.control, "control", defaultControl, "unix `socket` for status and revoke, root only")
	f.StringVar(&s.guard, "guard", guardPrefer, "BPF guards of keys (see offloadd bpf): require, prefer or off")
	addBPFDirFlag(f, &s.bpfDir)
	f.StringVar(&s.signerUser, "signer-user", "offloadd-signer", "`user` that uses keys in tokens, a name or a number")
	f.IntVar(&s.workers, "workers", 2, "`number` of workers")
	f.IntVar(&s.connections, "worker-connections", 10_000, "replace a worker after this `number` of connections")
	f.TextVar(&s.lifetime, "worker-lifetime", defaultConfig().WorkerLifetime, "replace a worker after this `time`")
	f.TextVar(&s.handshakeTimeout, "handshake-timeout", defaultConfig().HandshakeTimeout, "longest `time` of a handshake")
}

// config merges the file at path, if there is one, with the flags that were given.
func (s *serveFlags) config(path string, given func(string) bool) (*config, error) {
	c := defaultConfig()
	if path != "" {
		for _, name := range s.listenerFlags {
			if given(name) {
				return nil, usageError("--%s and --config: write the listener into the file", name)
			}
		}
		var err error
		if c, err = readConfig(path); err != nil {
			return nil, err
		}
	} else {
		l := s.listener
		if l.Address == "" || s.certificate == "" || s.key == "" {
			return nil, usageError("without --config, serve needs --listen, --certificate and --key; see \"offloadd serve --help\"")
		}
		l.Name, l.NoTickets = "default", s.noTickets
		l.setDefaults()
		l.Certificates = []certificateConfig{{Chain: s.certificate, Key: s.key}}
		if abs, err := filepath.Abs(l.Application); err == nil {
			l.Application = abs
		}
		c.Listeners = []listenerConfig{l}
	}
	if given("worker-user") {
		c.WorkerUser = s.workerUser
	}
	if given("ledger") {
		c.Ledger = s.ledger
	}
	if given("control") {
		c.Control = s.control
	}
	if given("guard") {
		c.Guard = s.guard
	}
	if given("bpf-dir") {
		c.BPFDir = s.bpfDir
	}
	if given("signer-user") {
		c.SignerUser = s.signerUser
	}
	if given("workers") {
		c.Workers = s.workers
	}
	if given("worker-connections") {
		c.WorkerConnections = s.connections
	}
	if given("worker-lifetime") {
		c.WorkerLifetime = s.lifetime
	}
	if given("handshake-timeout") {
		c.HandshakeTimeout = s.handshakeTimeout
	}
	if err := c.validate(); err != nil {
		return nil, usageError("%v", err)
	}
	return c, nil
}
