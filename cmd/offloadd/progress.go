// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"
)

// progress shows one task at a time on one line of a terminal, and nothing
// elsewhere.
type progress struct {
	w     io.Writer // nil: not a terminal
	shown bool
}

func newProgress(w io.Writer) *progress {
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return &progress{w: f}
	}
	return &progress{}
}

// progressInterval is the least time between two redraws.
const progressInterval = 100 * time.Millisecond

// start returns a Writer that counts towards total bytes.
func (p *progress) start(what string, total int64) io.Writer {
	return &progressTask{progress: p, what: what, total: total}
}

// done clears the line.
func (p *progress) done() {
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.shown = false
	}
}

type progressTask struct {
	progress    *progress
	what        string
	done, total int64
	last        time.Time
}

func (t *progressTask) Write(b []byte) (int, error) {
	t.done += int64(len(b))
	if t.progress.w != nil && t.total > 0 && time.Since(t.last) > progressInterval {
		t.last = time.Now()
		t.progress.shown = true
		fmt.Fprintf(t.progress.w, "\r\x1b[K%s %3d %%", t.what, 100*t.done/t.total)
	}
	return len(b), nil
}
