// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"

	"github.com/offloadd/offloadd/test/vm/bench/result"
)

// A serve starts what a row measures.
type serve func(*stage) error

// own is one of offloadd's commands, for which Go's own number of threads is left alone: the machine has one CPU where
// instructions are counted.
func (s *stage) own(args ...string) program {
	p := program{path: s.offloadd, args: args, ready: "ready"}
	if s.mode == result.Wall {
		p.env = []string{"GOMAXPROCS=1"} // as each peer has one thread
	}
	return p
}

func (s *stage) certificate() []string {
	return []string{"--cert", s.files.chain, "--key", s.files.key}
}

// path is `offloadd bench server` with one of its paths.
func path(name string) serve {
	return func(s *stage) error {
		args := append([]string{"bench", "server", "--listen", s.address, "--path", name}, s.certificate()...)
		return s.run(s.server, s.own(args...))
	}
}

// handed is an application that gets its connections from `offloadd serve`, which is the server that is measured, with
// its workers.
func handed(more ...string) serve {
	return func(s *stage) error {
		socket := s.files.directory + "/" + s.name + ".sock"
		args := append([]string{"serve", "--listen", s.address, "--certificate", s.files.chain, "--key", s.files.key,
			"--application", socket, "--worker-connections", "1000000", "--ledger", s.files.directory + "/" + s.name + ".ledger",
			"--control", s.files.directory + "/" + s.name + ".control"}, more...)
		daemon := s.own(args...)
		daemon.ready = "msg=ready"
		if err := s.run(s.server, daemon); err != nil {
			return err
		}
		return s.run(s.application, s.own("bench", "server", "--path", "handed", "--application", socket))
	}
}

// proxy is `offloadd bench proxy` before a backend that serves and takes plaintext.
func proxy(name string) serve {
	return func(s *stage) error {
		if err := s.runBackend(); err != nil {
			return err
		}
		args := append([]string{"bench", "proxy", "--listen", s.address, "--target", s.backendAddress(), "--path", name}, s.certificate()...)
		return s.run(s.server, s.own(args...))
	}
}

func (s *stage) runBackend() error {
	return s.run(s.backend, s.own("bench", "server", "--listen", s.backendAddress(), "--path", "plain-sendfile"))
}

// peerRoot is a root directory of the disk.
func peerRoot(name string) (string, error) {
	root := "/peers/" + name
	if _, err := os.Stat(root); err != nil {
		return "", fmt.Errorf("%s: %w", root, errNoPeer)
	}
	return root, nil
}
