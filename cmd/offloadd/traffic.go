// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"

	"github.com/offloadd/offloadd/bpf"
)

// traffic is what the observer knows of a connection, for status.
type traffic struct {
	Sent     trafficDirection  `json:"sent"`
	Received trafficDirection  `json:"received"`
	Errors   map[string]uint32 `json:"errors"` // that calls returned
	Failures uint32            `json:"failures"`
}

type trafficDirection struct {
	Bytes    uint64 `json:"bytes"` // content of records
	Records  uint64 `json:"records"`
	Sequence uint64 `json:"sequence"` // of the next record
	Rekeys   uint32 `json:"rekeys"`
}

// trafficOf is nil where the observer is not loaded or does not know the socket.
func (d *daemon) trafficOf(socket uint64) *traffic {
	if d.observer == nil {
		return nil
	}
	totals, err := d.observer.Totals(socket)
	if err != nil || totals == nil {
		return nil
	}
	direction := func(t *bpf.Traffic) trafficDirection {
		return trafficDirection{t.Bytes, t.Records, t.Sequence, t.Rekeys}
	}
	t := &traffic{Sent: direction(&totals.Sending), Received: direction(&totals.Receiving), Errors: map[string]uint32{}, Failures: totals.Failures}
	for kind, n := range totals.Errors {
		if n > 0 {
			t.Errors[bpf.ErrorNames[kind]] = n
		}
	}
	return t
}

// cells are those of the table.
func (t *traffic) cells() (out, in, errors string) {
	if t == nil {
		return "-", "-", "-"
	}
	n := uint32(0)
	for _, of := range t.Errors {
		n += of
	}
	return shortNumber(float64(t.Sent.Bytes), 1024), shortNumber(float64(t.Received.Bytes), 1024), fmt.Sprint(n)
}

// print adds lines to what is known of one connection.
func (t *traffic) print(w io.Writer) {
	if t == nil {
		return
	}
	for _, d := range []struct {
		name string
		of   *trafficDirection
	}{{"sent", &t.Sent}, {"received", &t.Received}} {
		fmt.Fprintf(w, "  %s\t%d bytes in %d records, next number %d", d.name, d.of.Bytes, d.of.Records, d.of.Sequence)
		if d.of.Rekeys > 0 {
			fmt.Fprintf(w, ", %d new keys", d.of.Rekeys)
		}
		fmt.Fprintln(w)
	}
	for _, name := range bpf.ErrorNames {
		if n := t.Errors[name]; n > 0 {
			fmt.Fprintf(w, "  errors\t%s: %d\n", name, n)
		}
	}
}
