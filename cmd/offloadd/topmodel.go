// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
)

// topModel is what the terminal shows, and what keys do to it.
type topModel struct {
	take     func() (*topSample, error)
	interval time.Duration
	columns  []topColumn

	width, height int
	sample        *topSample
	err           error
	sortBy        int
	reverse       bool
	paused, help  bool
	filter        string
	typing        bool // keys go into the filter
	scrolled      int
}

func newTopModel(take func() (*topSample, error), interval time.Duration) *topModel {
	m := &topModel{take: take, interval: interval, columns: topColumns(), width: 80, height: 24}
	m.sortBy = m.columnNamed("OUT/s")
	return m
}

func (m *topModel) columnNamed(name string) int {
	return slices.IndexFunc(m.columns, func(c topColumn) bool { return c.name == name })
}

// topTaken is a new sample, and topTick the time for one.
type (
	topTaken struct {
		sample *topSample
		err    error
	}
	topTick struct{}
)

func (m *topModel) takeSample() tea.Msg {
	sample, err := m.take()
	return topTaken{sample, err}
}

func (m *topModel) Init() tea.Cmd { return m.takeSample }

func (m *topModel) Update(message tea.Msg) (tea.Model, tea.Cmd) {
	switch message := message.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = message.Width, message.Height
	case topTick:
		return m, m.takeSample
	case topTaken:
		m.taken(message)
		return m, tea.Tick(m.interval, func(time.Time) tea.Msg { return topTick{} })
	case tea.PasteMsg:
		if m.typing {
			m.filter += printable([]byte(message.Content))
		}
	case tea.KeyPressMsg:
		if m.typing {
			return m, m.typed(message)
		}
		return m, m.pressed(message.String())
	}
	m.scroll(0)
	return m, nil
}

// taken shows a sample, if time does not stand still. Rates are those since the last
// one that was shown.
func (m *topModel) taken(t topTaken) {
	if m.paused {
		return
	}
	if m.err = t.err; t.err == nil {
		t.sample.since(m.sample)
		m.sample = t.sample
	}
	m.scroll(0)
}

func (m *topModel) pressed(key string) tea.Cmd {
	if m.help && key != "q" && key != "ctrl+c" {
		m.help = false
		return nil
	}
	switch key {
	case "q", "ctrl+c":
		return tea.Quit
	case "?", "h":
		m.help = true
	case "right", ">", "l":
		m.sort(1)
	case "left", "<":
		m.sort(-1)
	case "r":
		m.reverse = !m.reverse
	case "p", "space", " ":
		m.paused = !m.paused
	case "/", "f":
		m.typing = true
	case "esc":
		m.filter = ""
	case "down", "j":
		m.scroll(1)
	case "up", "k":
		m.scroll(-1)
	case "pgdown":
		m.scroll(m.tableHeight())
	case "pgup":
		m.scroll(-m.tableHeight())
	case "home", "g":
		m.scrolled = 0
	case "end", "G":
		m.scroll(len(m.rows()))
	}
	m.scroll(0)
	return nil
}

// typed edits the filter.
func (m *topModel) typed(key tea.KeyPressMsg) tea.Cmd {
	switch key.String() {
	case "ctrl+c":
		return tea.Quit
	case "enter":
		m.typing = false
	case "esc":
		m.typing, m.filter = false, ""
	case "backspace":
		if runes := []rune(m.filter); len(runes) > 0 {
			m.filter = string(runes[:len(runes)-1])
		}
	case "ctrl+u":
		m.filter = ""
	default:
		m.filter += printable([]byte(key.Text))
	}
	m.scrolled = 0
	return nil
}

// sort goes to the next column that is shown.
func (m *topModel) sort(by int) {
	shown := m.shown()
	at := slices.Index(shown, m.sortBy)
	switch {
	case at >= 0:
		at = (at + by + len(shown)) % len(shown)
	case by < 0:
		at = len(shown) - 1
	default:
		at = 0
	}
	m.sortBy, m.reverse = shown[at], false
}

func (m *topModel) shown() []int { return fitColumns(m.columns, m.width) }

func (m *topModel) scroll(by int) {
	m.scrolled = max(0, min(m.scrolled+by, len(m.rows())-m.tableHeight()))
}

// rows are those that the filter leaves, in order.
func (m *topModel) rows() []*topRow {
	if m.sample == nil {
		return nil
	}
	var rows []*topRow
	for i := range m.sample.Sockets {
		if r := &m.sample.Sockets[i]; m.filter == "" || r.matches(m.columns, m.filter) {
			rows = append(rows, r)
		}
	}
	compare := m.columns[m.sortBy].compare
	slices.SortStableFunc(rows, func(a, b *topRow) int {
		if m.reverse {
			return compare(b, a)
		}
		return compare(a, b)
	})
	return rows
}

// Lines beside the rows: the summary, the names of the columns, and the keys.
const (
	summaryLines = 4
	otherLines   = summaryLines + 2
)

func (m *topModel) tableHeight() int { return max(1, m.height-otherLines) }

func (m *topModel) View() tea.View {
	view := tea.NewView(m.render())
	view.AltScreen = true
	return view
}

func (m *topModel) render() string {
	lines := m.helpPage()
	if !m.help {
		lines = append(m.summary(), m.table()...)
	}
	for len(lines) < m.height-1 {
		lines = append(lines, "")
	}
	lines = append(lines[:max(0, m.height-1)], m.footer())
	for i, line := range lines {
		lines[i] = strings.TrimRight(cutVisible(line, m.width), " ")
	}
	return strings.Join(lines, "\n")
}

func (m *topModel) table() []string {
	shown := m.shown()
	names := make([]string, len(shown))
	for i, column := range shown {
		c := &m.columns[column]
		names[i] = fitText(c.name, c.width, c.left)
		if column == m.sortBy {
			names[i] = reversed(names[i])
		}
	}
	lines := []string{strings.Join(names, strings.Repeat(" ", columnGap))}
	rows := m.rows()
	for _, r := range rows[min(m.scrolled, len(rows)):min(m.scrolled+m.tableHeight(), len(rows))] {
		line := tableLine(m.columns, shown, r)
		if m.alarmed(r) {
			line = red(line)
		}
		lines = append(lines, line)
	}
	if len(rows) == 0 && m.sample != nil {
		none := "no kernel TLS sockets"
		if m.filter != "" {
			none = fmt.Sprintf("none of %d sockets has %q", len(m.sample.Sockets), m.filter)
		}
		lines = append(lines, none)
	}
	return lines
}

func (m *topModel) alarmed(r *topRow) bool {
	return slices.ContainsFunc(m.sample.Alarms, func(a topAlarm) bool { return a.Socket == r.Socket })
}

func (m *topModel) footer() string {
	switch {
	case m.typing:
		return "filter: " + m.filter + "_   enter keep  esc drop"
	case m.filter != "":
		return fmt.Sprintf("filter: %s   / change  esc drop  ? help  q quit", m.filter)
	}
	return "</> sort  r reverse  / filter  p pause  up/down scroll  ? help  q quit"
}
