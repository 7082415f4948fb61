// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"io"
	"sync"
)

// prefixWriter puts a prefix before each line, so that the lines of several kernels
// that share one output can be told apart. Whole lines reach the output.
type prefixWriter struct {
	prefix string
	shared *sharedOutput

	rest []byte // of a line that has not ended
}

// sharedOutput is what several prefixWriters write to.
type sharedOutput struct {
	mu sync.Mutex
	w  io.Writer
}

func (p *prefixWriter) Write(b []byte) (int, error) {
	p.rest = append(p.rest, b...)
	end := bytes.LastIndexByte(p.rest, '\n') + 1
	if end == 0 {
		return len(b), nil
	}
	var lines bytes.Buffer
	for line := range bytes.Lines(p.rest[:end]) {
		lines.WriteString(p.prefix)
		lines.Write(line)
	}
	p.rest = append(p.rest[:0], p.rest[end:]...)
	p.shared.mu.Lock()
	defer p.shared.mu.Unlock()
	_, err := p.shared.w.Write(lines.Bytes())
	return len(b), err
}
