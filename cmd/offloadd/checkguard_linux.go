// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/offloadd/offloadd/bpf"
)

// addGuards says which BPF guards act, in which form, and what they leave open. Where
// none are loaded, it tries what would act: it loads them into a directory of its own
// and takes them away again.
func (r *checkReport) addGuards(dir string) {
	if os.Geteuid() != 0 {
		r.add("BPF guards", errors.New("only root may look"), false, "run check as root").State = "unknown"
		return
	}
	report, err := bpf.Inspect(dir)
	loaded := err == nil
	if errors.Is(err, bpf.ErrNotLoaded) {
		report, err = tryGuards(dir)
	}
	if err != nil {
		// The error has its own remedy.
		r.add("BPF guards", err, false, "until then whoever holds a socket can ask the kernel for its keys, and root can look into the daemon")
		return
	}
	if !loaded {
		r.add("BPF guards loaded", errors.New("they would act here (see below), and are not loaded: whoever holds a socket can ask the kernel for its keys, and root can look into the daemon"),
			false, "offloadd bpf load, after each boot")
	}
	r.addFeatures(&report, loaded)
	if report.Skippable != "" {
		r.add("guards that cannot be outrun", errors.New(report.Skippable), false, "until then serve refuses them where guard = \"require\"")
	}
	r.add("guard against a root that goes around it", errors.New("cannot be had: BPF programs or kernel modules of its own, removed pins, physical memory"), false, lockdownRemedy(report.Lockdown))
}

// lockdownRemedy: the kernel's lockdown refuses part of that.
func lockdownRemedy(mode string) string {
	if mode == "confidentiality" {
		return "lockdown=confidentiality, which is on, refuses modules without signature, physical memory, and BPF programs that read the kernel's"
	}
	return "boot with lockdown=confidentiality: it refuses modules without signature, physical memory, and BPF programs that read the kernel's"
}

// addFeatures adds a line for each, with the first program that is off.
func (r *checkReport) addFeatures(report *bpf.Report, loaded bool) {
	lines := map[string]*checkLine{}
	var order []string
	for _, p := range report.Programs {
		line := lines[p.Feature]
		if line == nil {
			line = &checkLine{Name: p.Feature, State: "yes", Detail: fmt.Sprintf("as %s", report.Form)}
			if !loaded {
				line.State, line.Detail = "no", fmt.Sprintf("would act as %s", report.Form)
			}
			lines[p.Feature] = line
			order = append(order, p.Feature)
		}
		if p.Off != "" {
			line.State, line.Detail = "no", fmt.Sprintf("%s: %s", p.Name, p.Off)
		}
	}
	for _, feature := range order {
		r.Lines = append(r.Lines, *lines[feature])
	}
}

func tryGuards(dir string) (bpf.Report, error) {
	try := filepath.Join(filepath.Dir(dir), fmt.Sprintf("offloadd-check-%d", os.Getpid()))
	report, err := bpf.Load(bpf.Options{Dir: try})
	if err != nil {
		return report, err
	}
	return report, bpf.Unload(try)
}
