// SPDX-License-Identifier: Apache-2.0

// Package result is what a bench in a virtual machine says, and what may be concluded from it: the guest writes it, one
// event a line, and the host reads, compares and reports it. It imports none of the product: it measures that as one
// program among others.
package result

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
)

// Schema is the version of all this.
const Schema = 1

// Modes of measuring.
const (
	Instructions = "instructions" // the guest's clock counts instructions, one a nanosecond
	Wall         = "wall"         // it is a clock
)

// A Run is all that one boot of one kernel gave.
type Run struct {
	Schema      int                 `json:"schema"`
	Kernel      string              `json:"kernel"` // uname -r
	Series      string              `json:"series"`
	Mode        string              `json:"mode"`
	Quick       bool                `json:"quick"`
	Only        string              `json:"only"`     // what was chosen to be measured; empty: all
	Emulator    string              `json:"emulator"` // QEMU's package, and how it was started
	Commit      string              `json:"commit"`   // of offloadd
	Go          string              `json:"go"`
	Started     string              `json:"started"`
	Seconds     float64             `json:"seconds"` // of the host
	Packages    map[string][]string `json:"packages"`
	Settings    []string            `json:"settings"`
	Disciplines []Discipline        `json:"disciplines"`
	Samples     []Sample            `json:"samples"`
	Failures    []Failure           `json:"failures"`
	Missing     []string            `json:"missing"`
}

// A Discipline is the same work for several rows.
type Discipline struct {
	Name     string `json:"name"`
	Title    string `json:"title"`
	Work     string `json:"work"`     // what is done, in a sentence
	Unit     string `json:"unit"`     // what Cost is for one of: byte, request, handshake, ...
	Metric   string `json:"metric"`   // the value of a sample that counts; Cost if it is server_us
	Baseline string `json:"baseline"` // the row that others are given as a ratio of
	Rows     []Row  `json:"rows"`
}

// Metrics: values of a sample. CPU is that of all processes in a control group, in microseconds of the guest.
const (
	Server      = "server_us" // whoever is measured: user and system
	ServerUser  = "server_user_us"
	Application = "application_us" // which got its sockets from the server
	Client      = "client_us"
	Backend     = "backend_us"
	Elapsed     = "elapsed_us"
	Units       = "units" // of work that were done
)

// A Row is one program in one set-up.
type Row struct {
	Name   string `json:"name"`
	Kind   string `json:"kind"`   // ours, peer, or limit: what nobody who encrypts, or checks, can be below
	Engine string `json:"engine"` // whose AES-128-GCM encrypts each byte: kernel, openssl, go, or empty
}

// Kinds of rows.
const (
	Ours  = "ours"
	Peer  = "peer"
	Limit = "limit"
)

// A Sample is one measurement.
type Sample struct {
	Discipline string             `json:"discipline"`
	Row        string             `json:"row"`
	Repetition int                `json:"repetition"`
	Values     map[string]float64 `json:"values"`
}

// A Failure is a row that could not be measured.
type Failure struct {
	Discipline string `json:"discipline"`
	Row        string `json:"row"`
	Why        string `json:"why"`
}

// An Event is a line that the guest writes. One field is set.
type Event struct {
	Settings   []string    `json:"settings,omitempty"`
	Discipline *Discipline `json:"discipline,omitempty"`
	Sample     *Sample     `json:"sample,omitempty"`
	Failure    *Failure    `json:"failure,omitempty"`
	// Planned is how many samples there will be.
	Planned int `json:"planned,omitempty"`
}

// Add takes an event into the run.
func (r *Run) Add(e Event) {
	r.Settings = append(r.Settings, e.Settings...)
	if e.Discipline != nil {
		r.Disciplines = append(r.Disciplines, *e.Discipline)
	}
	if e.Sample != nil {
		r.Samples = append(r.Samples, *e.Sample)
	}
	if e.Failure != nil {
		r.Failures = append(r.Failures, *e.Failure)
	}
}

// ReadEvents calls seen for each line.
func ReadEvents(in io.Reader, seen func(Event)) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var event Event
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			return fmt.Errorf("the bench in the guest wrote %.80q, which is no event: %w", lines.Text(), err)
		}
		seen(event)
	}
	return lines.Err()
}

// Discipline finds one by name.
func (r *Run) Discipline(name string) (Discipline, bool) {
	for _, one := range r.Disciplines {
		if one.Name == name {
			return one, true
		}
	}
	return Discipline{}, false
}
