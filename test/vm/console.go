// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// A console reads what the kernel prints, remembers the end of it and notices when the kernel is in trouble. A test
// that passes on a kernel that warned has not passed.
type console struct {
	ignore []*regexp.Regexp

	mu       sync.Mutex
	tail     []string
	problems []string
}

const (
	consoleTail     = 60
	consoleProblems = 20
)

// kernelTrouble are the ways kernels begin to report that something is broken.
var kernelTrouble = regexp.MustCompile(strings.Join([]string{
	`Kernel panic`,
	`\bBUG:`,
	`kernel BUG at`,
	`\bWARNING:`,
	`\bOops\b`,
	`refcount_t:`,
	`general protection fault`,
	`unable to handle`,
	`blocked for more than`,
	`detected stall`,
	`soft lockup`,
	`hard LOCKUP`,
	`UBSAN:`,
	`KASAN:`,
	`KFENCE:`,
	`DEADLOCK`,
	`unregister_netdevice: waiting for`,
}, "|"))

// consoleTime is the time stamp that the console has and the log's text has not.
var consoleTime = regexp.MustCompile(`^\[ *[0-9]+\.[0-9]+\] `)

// read takes lines until the stream ends.
func (c *console) read(from io.Reader) {
	lines := bufio.NewReader(from)
	for {
		line, err := lines.ReadString('\n')
		if line = strings.TrimRight(line, "\r\n"); line != "" {
			c.mu.Lock()
			c.tail = append(c.tail, line)
			c.tail = c.tail[max(0, len(c.tail)-consoleTail):]
			c.judge(line)
			c.mu.Unlock()
		}
		if err != nil {
			return
		}
	}
}

// reset forgets what an earlier boot said.
func (c *console) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tail, c.problems = nil, nil
}

// readLog takes the log that init sends at the end. It repeats what the console has printed, and has what it has not.
func (c *console) readLog(log string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for line := range strings.Lines(log) {
		c.judge(strings.TrimRight(line, "\n"))
	}
}

func (c *console) judge(line string) {
	line = consoleTime.ReplaceAllString(line, "")
	if !kernelTrouble.MatchString(line) || slices.Contains(c.problems, line) || len(c.problems) == consoleProblems {
		return
	}
	for _, ignored := range c.ignore {
		if ignored.MatchString(line) {
			return
		}
	}
	c.problems = append(c.problems, line)
}

// report returns the troubles seen and the last lines.
func (c *console) report() (problems, tail []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.problems), slices.Clone(c.tail)
}
