// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
)

// TestEveryObjectIsInTheTable: an object that nobody loads guards nothing.
func TestEveryObjectIsInTheTable(t *testing.T) {
	files, err := filepath.Glob("*.o")
	if err != nil || len(files) == 0 {
		t.Fatalf("objects %q, %v", files, err)
	}
	inTable := map[string]bool{}
	for _, o := range append(objects(), observerObjects()...) {
		inTable[o.name+".o"] = true
	}
	for _, file := range files {
		if !inTable[file] {
			t.Errorf("%s is not in objects()", file)
		}
	}
}

// TestObjectsHaveNoGlobalVariables: each would be a map of its own, made anew by every load, so that programs which are
// the same would never be seen as such.
func TestObjectsHaveNoGlobalVariables(t *testing.T) {
	for _, o := range append(objects(), observerObjects()...) {
		spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(o.bytes))
		if err != nil {
			t.Fatal(err)
		}
		for name := range spec.Maps {
			if strings.HasPrefix(name, ".") {
				t.Errorf("object %s has variables, in %s", o.name, name)
			}
		}
	}
}

func TestSourcesHaveLicenceLines(t *testing.T) {
	files, err := filepath.Glob("src/*.[ch]")
	if err != nil || len(files) == 0 {
		t.Skip("the sources are on the host")
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		first, _, _ := strings.Cut(string(text), "\n")
		if !strings.Contains(first, "SPDX-License-Identifier: GPL-2.0-only") {
			t.Errorf("%s has no licence line", file)
		}
	}
}
