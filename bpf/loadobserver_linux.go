// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// observerPins are a directory within that of the guards, so that Unload removes it too.
func observerPins(dir string) pins {
	return pins{filepath.Join(cmp.Or(dir, DefaultDir), "observer")}
}

// LoadObserver attaches and pins the observer, as Load does with the guards; of the options only Dir is of meaning. It
// loads the tls module. Each program that cannot be attached is off, and the report says why. Under
// lockdown=confidentiality, which forbids to read kernel memory by address, that is nearly all of them.
func LoadObserver(o Options) (Report, error) {
	all, err := readObjects(observerObjects())
	if err != nil {
		return Report{}, err
	}
	p := observerPins(o.Dir)
	if err := os.Mkdir(filepath.Dir(p.dir), dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return Report{}, privilege("make "+filepath.Dir(p.dir), err)
	}
	o.Dir = p.dir
	r, err := all.load(o)
	return observerReport(r), err
}

// InspectObserver says what is pinned of the observer. ErrNotLoaded: nothing is.
func InspectObserver(dir string) (Report, error) {
	r, err := observerPins(dir).inspectAll(observerObjects())
	return observerReport(r), err
}

// byVersion are programs for functions that only some kernels have: sendfile had its own until Linux 6.5, and readers in
// the kernel have theirs since 6.2.
var byVersion = []string{"observe_sw_sendpage", "observe_device_sendpage", "observe_device_splice_eof", "observe_sw_read_sock"}

// observerReport leaves out what a kernel does not need.
func observerReport(r Report) Report {
	r.Programs = slices.DeleteFunc(r.Programs, func(p Program) bool { return p.Off != "" && slices.Contains(byVersion, p.Name) })
	return r
}
