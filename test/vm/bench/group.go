// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A group is a control group of processes, whose CPU is counted together, ended processes included.
type group struct {
	path string
	dir  *os.File
}

func newGroup(name string) (*group, error) {
	path := filepath.Join("/sys/fs/cgroup", name)
	if err := os.Mkdir(path, 0o755); err != nil && !os.IsExist(err) {
		return nil, fmt.Errorf("make a control group: %w", err)
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &group{path: path, dir: dir}, nil
}

// close removes the group, whose processes have ended.
func (g *group) close() {
	g.dir.Close()
	_ = os.Remove(g.path) // one whose last process is not yet reaped stays, and harms nobody
}

// cpu is what all processes of a group have used.
type cpu struct{ total, user float64 } // microseconds

func (c cpu) minus(before cpu) cpu { return cpu{c.total - before.total, c.user - before.user} }

func (g *group) cpu() (cpu, error) {
	data, err := os.ReadFile(filepath.Join(g.path, "cpu.stat"))
	if err != nil {
		return cpu{}, err
	}
	total, err := field(data, "usage_usec")
	if err != nil {
		return cpu{}, err
	}
	user, err := field(data, "user_usec")
	return cpu{total, user}, err
}

// processes are the ids of those in the group now.
func (g *group) processes() (ids []int, err error) {
	data, err := os.ReadFile(filepath.Join(g.path, "cgroup.procs"))
	for word := range strings.FieldsSeq(string(data)) {
		id, err := strconv.Atoi(word)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, err
}

// field finds the number after a name, in files of a name and a number a line.
func field(data []byte, name string) (float64, error) {
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if len(words) >= 2 && words[0] == name {
			return strconv.ParseFloat(words[1], 64)
		}
	}
	return 0, fmt.Errorf("no %q in what the kernel tells", name)
}
