// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// inKernel counts what is ours in the kernel.
type inKernel struct{ Programs, Maps, Links int }

func countInKernel(t *testing.T) (n inKernel) {
	t.Helper()
	all := readAll(t)
	ours := map[ebpf.ProgramID]bool{}
	for id, err := ebpf.ProgramGetNextID(0); err == nil; id, err = ebpf.ProgramGetNextID(id) {
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // just gone
		}
		info, err := p.Info()
		p.Close()
		// The kernel keeps 15 bytes of a name.
		if err == nil && slices.ContainsFunc(all.programs, func(one program) bool { return strings.HasPrefix(one.name, info.Name) }) {
			ours[id] = true
			n.Programs++
		}
	}
	for id, err := ebpf.MapGetNextID(0); err == nil; id, err = ebpf.MapGetNextID(id) {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			continue
		}
		info, err := m.Info()
		m.Close()
		if err == nil && all.maps[info.Name] != nil {
			n.Maps++
		}
	}
	links := new(link.Iterator)
	defer links.Close()
	for links.Next() {
		if info, err := links.Link.Info(); err == nil && ours[info.Program] {
			n.Links++
		}
	}
	return n
}

// expectInKernel waits until the kernel has just this much, as it frees in its own time.
func expectInKernel(t *testing.T, want inKernel) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		now := countInKernel(t)
		if now == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("in the kernel are %+v, not %+v", now, want)
		}
	}
}

// nothing waits until nothing of ours is in the kernel, and looks for pins.
func nothing(t *testing.T) {
	t.Helper()
	expectInKernel(t, inKernel{})
	if _, err := os.Lstat(DefaultDir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there, %v", DefaultDir, err)
	}
}

// everything waits until one of each is.
func everything(t *testing.T) {
	t.Helper()
	all := readAll(t)
	expectInKernel(t, inKernel{len(all.programs), len(all.maps), len(all.programs)})
}

func readAll(t *testing.T) *set {
	t.Helper()
	all, err := readObjects(objects())
	if err != nil {
		t.Fatal(err)
	}
	return all
}
