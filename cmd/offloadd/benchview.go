// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"golang.org/x/term"

	"github.com/offloadd/offloadd/cmd/offloadd/internal/bench"
)

// benchView prints what a client measures for people.
type benchView struct {
	w       io.Writer
	options bench.Options
	begun   bool
	strong  string // how a terminal shows what matters; empty elsewhere
	normal  string
}

func newBenchView(w io.Writer, o bench.Options) *benchView {
	v := &benchView{w: w, options: o}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == "" {
		v.strong, v.normal = "\x1b[1;36m", "\x1b[0m"
	}
	return v
}

// interval prints a line for an interval that ended.
func (v *benchView) interval(i bench.Interval) {
	if !v.begun {
		v.begun = true
		fmt.Fprintln(v.w, "SECONDS          SENT        RECEIVED    RATE            REQUESTS")
	}
	fmt.Fprintf(v.w, "%6.2f - %6.2f  %-10s  %-10s  %s%-14s%s  %d\n", i.Start, i.End,
		mebibytes(i.BytesSent), mebibytes(i.BytesReceived), v.strong, bitRate(i.BitsPerSecond), v.normal, i.Requests)
}

// summary prints the result.
func (v *benchView) summary(r *bench.Result) error {
	if v.begun {
		fmt.Fprintln(v.w)
	}
	protocol := "no TLS"
	if r.Version != "" {
		protocol = r.Version + ", " + r.Suite + ", client " + r.TLS
	}
	fmt.Fprintf(v.w, "%s of %s: %s, %d streams\n", r.Mode, r.Address, protocol, r.Streams)
	fmt.Fprintf(v.w, "  moved      %s sent, %s received in %.2f s", mebibytes(r.BytesSent), mebibytes(r.BytesReceived), r.Seconds)
	if r.BytesSent+r.BytesReceived > 0 {
		fmt.Fprintf(v.w, ", %s%s%s", v.strong, bitRate(r.BitsPerSecond), v.normal)
	}
	if r.Verified {
		fmt.Fprint(v.w, ", all compared")
	}
	fmt.Fprintf(v.w, "\n  requests   %d, %.1f/s\n", r.Requests, r.PerSecond)
	if r.TLSResumed > 0 {
		fmt.Fprintf(v.w, "  resumed    %d\n", r.TLSResumed)
	}
	if l := r.Latency; l != nil {
		fmt.Fprintf(v.w, "  latency    %.0f µs median, 90%% %.0f, 99%% %.0f, 99.9%% %.0f, at most %.0f\n", l.P50, l.P90, l.P99, l.P999, l.Max)
	}
	if r.Records != nil {
		fmt.Fprintf(v.w, "  records    %d sent, %d received\n", r.Records.Sent, r.Records.Received)
	} else if r.TLS != bench.LayerNone {
		fmt.Fprintf(v.w, "  records    unknown: %s\n", r.RecordsWhy)
	}
	return v.spent(r)
}

// spent prints what both ends used.
func (v *benchView) spent(r *bench.Result) error {
	t := tabwriter.NewWriter(v.w, 0, 0, 2, ' ', 0)
	// What is said of small messages and handshakes is each one's share, not that of bytes.
	each := r.Mode == "small" || r.Mode == "handshakes"
	if each {
		fmt.Fprintln(t, "\n\tUSER\tSYSTEM\tCPU EACH\tSYSTEM CALLS\tEACH\tMEMORY")
	} else {
		fmt.Fprintln(t, "\n\tUSER\tSYSTEM\tCPU PER GIB\tSYSTEM CALLS\tPER MIB\tMEMORY")
	}
	for _, end := range []struct {
		name string
		of   *bench.Spent
		why  string
	}{{"client", r.Client, "not asked"}, {"server", r.Server, r.ServerWhy}} {
		if end.of == nil {
			fmt.Fprintf(t, "%s\t-\t-\t-\t-\t-\t-\t%s\n", end.name, end.why)
			continue
		}
		cpu, calls, share := known(end.of.CPUUSPerGiB, 1000)+" ms", "-", known(end.of.SyscallsPerMiB, 1)
		if end.of.Syscalls != nil {
			calls = fmt.Sprint(*end.of.Syscalls)
		}
		if each {
			cpu, share = fmt.Sprintf("%.1f µs", float64(end.of.UserUS+end.of.SystemUS)/float64(r.Requests)), "-"
			if end.of.Syscalls != nil {
				share = fmt.Sprintf("%.1f", float64(*end.of.Syscalls)/float64(r.Requests))
			}
		}
		fmt.Fprintf(t, "%s\t%.1f ms\t%.1f ms\t%s\t%s\t%s\t%s\n", end.name, float64(end.of.UserUS)/1000, float64(end.of.SystemUS)/1000,
			cpu, calls, share, mebibytes(end.of.RSSBytes))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, of := range []*bench.Spent{r.Client, r.Server} {
		if of != nil && of.SyscallsWhy != "" {
			_, err := fmt.Fprintf(v.w, "system calls were not counted: %s\n", of.SyscallsWhy)
			return err
		}
	}
	return nil
}

// known is a number in units of so much, or a dash for none.
func known(n *float64, unit float64) string {
	if n == nil {
		return "-"
	}
	return fmt.Sprintf("%.1f", *n/unit)
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

func bitRate(r float64) string {
	switch {
	case r >= 1e9:
		return fmt.Sprintf("%.2f Gbit/s", r/1e9)
	case r >= 1e6:
		return fmt.Sprintf("%.1f Mbit/s", r/1e6)
	}
	return fmt.Sprintf("%.1f kbit/s", r/1e3)
}
