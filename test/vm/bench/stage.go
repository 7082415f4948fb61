// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"time"
)

// A stage is where one row plays: its groups, and the servers in them.
type stage struct {
	*bench
	name                         string
	server, application, backend *group
	client                       *group
	processes                    []*process
	address                      string // that clients connect to
}

// firstPort and those after it are below what the kernel gives to clients.
const firstPort = 2000

func (b *bench) newStage(number int) (s *stage, err error) {
	s = &stage{bench: b, name: fmt.Sprintf("bench-%d", number)}
	for place, into := range map[string]**group{"server": &s.server, "application": &s.application, "backend": &s.backend, "client": &s.client} {
		if *into, err = newGroup(s.name + "-" + place); err != nil {
			return nil, err
		}
	}
	s.address = net.JoinHostPort("127.0.0.1", strconv.Itoa(firstPort+2*number))
	return s, nil
}

// backendAddress is that of the server behind a proxy.
func (s *stage) backendAddress() string {
	_, port, _ := net.SplitHostPort(s.address) // it is ours
	number, _ := strconv.Atoi(port)
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(number+1))
}

// run starts a server and keeps it until the stage is closed.
func (s *stage) run(in *group, p program) error {
	process, err := p.start(in)
	if process != nil {
		s.processes = append(s.processes, process)
	}
	return err
}

// runUntilListening is run for a server that does not say when it is ready.
func (s *stage) runUntilListening(in *group, p program, address string) error {
	if err := s.run(in, p); err != nil {
		return err
	}
	process := s.processes[len(s.processes)-1]
	for range 6000 {
		if connection, err := net.Dial("tcp", address); err == nil {
			return connection.Close()
		}
		if err := process.alive(); err != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return process.trouble("does not listen on " + address)
}

func (s *stage) alive() error {
	var all []error
	for _, one := range s.processes {
		all = append(all, one.alive())
	}
	return errors.Join(all...)
}

// close stops the servers, the last one first: applications before their daemon.
func (s *stage) close() {
	for _, one := range slices.Backward(s.processes) {
		one.stop()
	}
	s.processes = nil
	for _, g := range []*group{s.server, s.application, s.backend, s.client} {
		g.close()
	}
}

// write makes a configuration file.
func (s *stage) write(name, content string) (string, error) {
	path := s.files.directory + "/" + s.name + "-" + name
	return path, os.WriteFile(path, []byte(content), 0o600)
}
