// SPDX-License-Identifier: Apache-2.0

package main

import (
	"path/filepath"
	"slices"
	"strings"
)

// testOutputs are the flags of a test binary that name a file it writes. go test wants to find it on the host.
var testOutputs = []string{"coverprofile", "cpuprofile", "memprofile", "mutexprofile", "blockprofile", "trace"}

// addTestResults brings back what a test binary writes, so that go test -cover and the profiles work.
func (r *runFiles) addTestResults(args []string, dir string) {
	outputs := dir
	for _, arg := range args[1:] {
		if value, found := strings.CutPrefix(arg, "-test.outputdir="); found {
			outputs = value
		}
	}
	for _, arg := range args[1:] {
		name, value, _ := strings.Cut(strings.TrimPrefix(arg, "-test."), "=")
		if !strings.HasPrefix(arg, "-test.") || value == "" {
			continue
		}
		switch {
		case name == "gocoverdir":
			r.bringBack(value, value)
		case slices.Contains(testOutputs, name):
			if !filepath.IsAbs(value) {
				value = filepath.Join(outputs, value)
			}
			r.bringBack(value, filepath.Dir(value))
		}
	}
}

// bringBack asks for a path that need not be there, as the test may have ended before. It is the same on both sides.
func (r *runFiles) bringBack(path, dir string) {
	r.dirs = append(r.dirs, dir)
	r.get = append(r.get, filePair{host: path, guest: path, optional: true})
}
