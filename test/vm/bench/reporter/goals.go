// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/offloadd/offloadd/test/vm/bench/result"
)

// A goal is a row's cost as a part of another's, or as a number.
type goal struct {
	text       string
	discipline string
	row        string
	to         string // a row; bestPeer; or empty: the limit is a number
	metric     string // or empty: the discipline's
	limit      float64
	// softer are the series in which NO_PAD may not be used, as the kernel writes beyond what it says, and their limit.
	softer map[string]float64
}

const bestPeer = "the best peer"

// levelTolerance: costs that differ by less are level.
const levelTolerance = 0.02

var goals = []goal{
	{text: "download by sendfile: 1.02 of the bare program", discipline: "download-1", row: "ktls.Conn, sendfile", to: "bare program, sendfile", limit: 1.02},
	{text: "download by sendfile: level with nginx on kernel TLS", discipline: "download-1", row: "ktls.Conn, sendfile", to: "nginx, kernel TLS", limit: 1 + levelTolerance},
	{text: "download by sendfile: 0.85 of crypto/tls", discipline: "download-1", row: "ktls.Conn, sendfile", to: "crypto/tls", limit: 0.85},
	{text: "the same with ChaCha20: 1.02 of the bare program", discipline: "download-1", row: "ChaCha20: ktls.Conn, sendfile", to: "ChaCha20: bare program, sendfile", limit: 1.02},
	{text: "the same with ChaCha20: level with nginx on kernel TLS", discipline: "download-1", row: "ChaCha20: ktls.Conn, sendfile", to: "ChaCha20: nginx, kernel TLS", limit: 1 + levelTolerance},
	{text: "the same with ChaCha20: 0.85 of crypto/tls", discipline: "download-1", row: "ChaCha20: ktls.Conn, sendfile", to: "ChaCha20: crypto/tls", limit: 0.85},
	{text: "upload: 0.92 of crypto/tls", discipline: "upload-1", row: "ktls.Conn, write", to: "crypto/tls", limit: 0.92},
	{text: "proxy, download: 0.85 of the best peer", discipline: "proxy-download", row: "ktls.Conn", to: bestPeer, limit: 0.85},
	{text: "proxy, upload: 0.93 of the best peer; level where NO_PAD may not be used", discipline: "proxy-upload", row: "ktls.Conn", to: bestPeer, limit: 0.93,
		softer: map[string]float64{"6.12": 1 + levelTolerance}},
	{text: "full handshake split across processes, X25519: 1.12 of crypto/tls in one", discipline: "handshake-x25519", row: "split: handed over by the daemon", to: "crypto/tls", limit: 1.12},
	{text: "the same, X25519MLKEM768: 1.12", discipline: "handshake-mlkem", row: "split: handed over by the daemon", to: "crypto/tls", limit: 1.12},
	{text: "the same, resumed: 1.15", discipline: "handshake-resumed", row: "split: handed over by the daemon", to: "crypto/tls", limit: 1.15},
	{text: "user memory of the daemon for each idle connection: below 1024 B", discipline: "idle", row: "handed over by the daemon", metric: "memory_daemon", limit: 1024},
	{text: "user memory of the application: below 6000 B", discipline: "idle", row: "handed over by the daemon", metric: "memory_application", limit: 6000},
	{text: "messages of 1 B: 1.02 of the bare program", discipline: "echo-1", row: "ktls.Conn, write", to: "bare program, write", limit: 1.02},
	{text: "messages of 1 KiB: 1.02 of the bare program", discipline: "echo-1024", row: "ktls.Conn, write", to: "bare program, write", limit: 1.02},
	{text: "messages of 16 KiB: 1.02 of the bare program", discipline: "echo-16384", row: "ktls.Conn, write", to: "bare program, write", limit: 1.02},
	{text: "messages of 64 KiB: 1.02 of the bare program", discipline: "echo-65536", row: "ktls.Conn, write", to: "bare program, write", limit: 1.02},
}

// A judgement is a goal in one run.
type judgement struct {
	value   float64 // ratio, or number
	limit   float64
	to      string
	known   bool
	reached bool
}

func (g goal) judge(run *result.Run) judgement {
	discipline, found := run.Discipline(g.discipline)
	if !found {
		return judgement{}
	}
	metric := g.metric
	if metric == "" {
		metric = discipline.Metric
	}
	j := judgement{to: g.to, limit: g.limit}
	if softer, is := g.softer[run.Series]; is {
		j.limit = softer
	}
	figure := run.Figure(g.discipline, g.row, metric)
	j.value, j.known = figure.Median, figure.Count > 0
	if g.to == bestPeer {
		best, _ := run.Best(discipline, metric)
		j.to = best.Name
	}
	if g.to != "" && j.known {
		j.value = run.Ratio(g.discipline, g.row, j.to, metric)
		j.known = j.value > 0
	}
	j.reached = j.known && j.value <= j.limit
	return j
}

func (j judgement) String() string {
	if !j.known {
		return "not measured"
	}
	word, value := "**missed**", fmt.Sprintf("%.3f", j.value)
	if j.reached {
		word = "reached"
	}
	if j.to == "" {
		value = fmt.Sprintf("%.0f B", j.value)
	}
	return fmt.Sprintf("%s, %s", value, word)
}

// writeGoals is the table of the first page.
func writeGoals(out *strings.Builder, runs []*result.Run) {
	out.WriteString("## Goals\n\nCPU of the server, as a ratio of medians in one run; memory in bytes.\n\n| Goal |")
	for _, run := range runs {
		fmt.Fprintf(out, " %s |", title(run))
	}
	out.WriteString("\n|---|" + strings.Repeat("---|", len(runs)) + "\n")
	for _, g := range goals {
		fmt.Fprintf(out, "| %s |", g.text)
		for _, run := range runs {
			fmt.Fprintf(out, " %v |", g.judge(run))
		}
		out.WriteString("\n")
	}
	out.WriteString("\n")
	writeSteps(out, runs)
}

// writeSteps is the goal for what the hand-over adds to a handshake. The steps are measured as time, which in a machine
// with one CPU that counts instructions is work, of whoever ran.
func writeSteps(out *strings.Builder, runs []*result.Run) {
	for _, run := range runs {
		sum, names := 0.0, []string{}
		for _, step := range []string{"seal", "open", "enter", "read_back"} {
			if figure := run.Figure("handover", "offloadd", "steps_"+step+"_us_p50"); figure.Count > 0 {
				sum, names = sum+figure.Median, append(names, step)
			}
		}
		whole := run.Figure("handshake-x25519", "split: handed over by the daemon", result.Server).Median / 1000
		if len(names) == 0 || whole == 0 {
			continue
		}
		verdict := "reached"
		if sum/whole > 0.03 {
			verdict = "**missed**"
		}
		fmt.Fprintf(out, "Sealing, opening, ledger and read-back together, below 3 %% of a full handshake (%s): %s together %.1f of %.0f µs, %.1f %%, %s.\n\n",
			title(run), strings.Join(names, ", "), sum, whole, 100*sum/whole, verdict)
	}
}

// writeLosses lists every peer that costs less than the row of ours that is meant for the work.
func writeLosses(out *strings.Builder, runs []*result.Run) {
	out.WriteString("## Where we lose to a peer\n\n")
	any := false
	for _, run := range runs {
		for _, discipline := range run.Disciplines {
			for _, line := range losses(run, discipline) {
				any = true
				fmt.Fprintf(out, "- %s, %s: %s\n", title(run), discipline.Title, line)
			}
		}
	}
	if !any {
		out.WriteString("Nowhere, in what was measured here.\n")
	}
	out.WriteString("\n")
}

// losses compares each row of ours with each peer that does the same, by more than levelTolerance.
func losses(run *result.Run, discipline result.Discipline) (lines []string) {
	for _, row := range discipline.Rows {
		ours := run.Figure(discipline.Name, row.Name, discipline.Metric)
		if row.Kind != result.Ours || ours.Count == 0 {
			continue
		}
		var better []string
		for _, peer := range discipline.Rows {
			theirs := run.Figure(discipline.Name, peer.Name, discipline.Metric)
			if peer.Kind == result.Peer && theirs.Count > 0 && variant(peer.Name) == variant(row.Name) && ours.Median > theirs.Median*(1+levelTolerance) {
				better = append(better, fmt.Sprintf("%.2f of %s", ours.Median/theirs.Median, peer.Name))
			}
		}
		if len(better) > 0 {
			lines = append(lines, fmt.Sprintf("**%s** costs %s", row.Name, strings.Join(better, "; ")))
		}
	}
	return lines
}

// variant is what stands before a colon in the names of rows that do another work than the rest: by another cipher, or
// from memory. They are compared with each other only.
func variant(name string) string {
	before, _, found := strings.Cut(name, ": ")
	if !found || before == "split" {
		return ""
	}
	return before
}
