// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"
)

// A progress tells a person what takes long, on stderr. On a terminal it rewrites one line; elsewhere it prints one
// line when a step begins and one when it ends.
type progress struct {
	out      io.Writer
	terminal bool
	label    string
	began    time.Time
}

func newProgress() *progress {
	return &progress{out: os.Stderr, terminal: term.IsTerminal(int(os.Stderr.Fd()))}
}

func (p *progress) step(format string, args ...any) {
	p.label, p.began = fmt.Sprintf(format, args...), time.Now()
	if p.terminal {
		fmt.Fprintf(p.out, "\r\x1b[K%s", p.label)
		return
	}
	fmt.Fprintf(p.out, "vm: %s\n", p.label)
}

// percent shows how far the current step is; on a terminal only.
func (p *progress) percent(done float64) {
	if !p.terminal {
		return
	}
	const width = 24
	bar := ""
	for i := range width {
		if float64(i) < done/100*width {
			bar += "█"
		} else {
			bar += "░"
		}
	}
	fmt.Fprintf(p.out, "\r\x1b[K%s \x1b[36m%s\x1b[0m %3.0f%%", p.label, bar, done)
}

func (p *progress) done(result string) {
	took := time.Since(p.began).Round(100 * time.Millisecond)
	if p.terminal {
		fmt.Fprintf(p.out, "\r\x1b[K\x1b[32m✓\x1b[0m %s: %s (%s)\n", p.label, result, took)
		return
	}
	fmt.Fprintf(p.out, "vm: %s: %s (%s)\n", p.label, result, took)
}

func (p *progress) warn(format string, args ...any) {
	if p.terminal {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
	fmt.Fprintf(p.out, "vm: "+format+"\n", args...)
}
