// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"strings"
)

// DefaultDir is where everything is pinned.
const DefaultDir = "/sys/fs/bpf/offloadd"

// A Form is the way in which guards are attached.
type Form string

const (
	// FormLSM: as programs of the BPF security module. They run only if it is active: if the kernel was booted with bpf
	// in lsm=, or built so. Where it is not, they attach all the same, and never run.
	FormLSM Form = "lsm"
	// FormModifyReturn: by changing the return value of the kernel functions that call the security modules (fmod_ret).
	FormModifyReturn Form = "fmod_ret"
)

// A Report says what is attached.
type Report struct {
	Dir  string `json:"dir"`
	Form Form   `json:"form"`
	// Skippable says why these guards can be outrun; empty: they cannot.
	Skippable string    `json:"skippable,omitempty"`
	Lockdown  string    `json:"lockdown"` // none, integrity or confidentiality; empty: the kernel does not tell
	Managed   int       `json:"managed"`  // sockets that are guarded now
	Programs  []Program `json:"programs"`
}

// A Program is one line of a report.
type Program struct {
	Name    string `json:"name"`
	Object  string `json:"object"`
	Feature string `json:"feature"`
	Hook    string `json:"hook"`
	// Optional: without it all others do what they are for.
	Optional bool   `json:"optional"`
	Attach   string `json:"attach"` // lsm, fmod_ret, fentry, ...
	ID       uint32 `json:"id,omitempty"`
	Tag      string `json:"tag,omitempty"`
	// Change is what Load did: "new", "replaced", "same".
	Change string `json:"change,omitempty"`
	// Off says why the program is not attached; empty if it is.
	Off string `json:"off,omitempty"`
}

// pin is the name of the link. Where and how the program is attached is in it, so that a change of these is not taken for
// the same program.
func (p *Program) pin() string {
	return strings.ReplaceAll(p.Name+"-"+p.Attach+"-"+p.Hook, " ", "_")
}

// Off returns the programs that are not attached.
func (r *Report) Off() (off []Program) {
	for _, p := range r.Programs {
		if p.Off != "" {
			off = append(off, p)
		}
	}
	return off
}

// ErrNotLoaded: nothing is pinned in the directory.
var ErrNotLoaded = errors.New("the BPF programs are not loaded; as root, run: offloadd bpf load")

// An UnavailableError says what this machine or this process lacks.
type UnavailableError struct {
	What   string // what was tried
	Err    error  // why it did not work
	Remedy string // what to do
}

func (e *UnavailableError) Error() string {
	return fmt.Sprintf("%s: %v; %s", e.What, e.Err, e.Remedy)
}

func (e *UnavailableError) Unwrap() error { return e.Err }

// A ShapeError says that a pinned map cannot be used by the programs to be loaded. Nothing was changed.
type ShapeError struct {
	Map     string
	Managed int // sockets that are guarded now
	Err     error
}

func (e *ShapeError) Error() string {
	return fmt.Sprintf("map %s has another shape than these programs need (%v), and %d sockets are managed: "+
		"end their connections or wait for their end, stop the daemon, then run: offloadd bpf unload", e.Map, e.Err, e.Managed)
}

func (e *ShapeError) Unwrap() error { return e.Err }
