// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/offloadd/offloadd/bpf"
)

// topConnections are n sockets; the daemon manages every other one.
func topConnections(n int, moved uint64) (list []bpf.Connection, owners map[uint64]owner) {
	owners = make(map[uint64]owner)
	for i := range uint64(n) {
		cookie := i + 1
		c := bpf.Connection{
			Cookie: cookie, Version: 0x0304, Cipher: 51, UID: 33, Inode: 1000 + cookie,
			Local: netip.MustParseAddrPort("[2001:db8::1]:443"), Peer: netip.MustParseAddrPort(fmt.Sprintf("192.0.2.%d:4000", cookie)),
			Sending: bpf.Key{Path: bpf.Software, Sequence: cookie * 1000}, Receiving: bpf.Key{Path: bpf.Device, Sequence: 5},
			Sent: 1, Acked: 11 * moved, Received: 22 * moved,
		}
		if i%2 == 0 {
			owners[cookie] = owner{"web", 4711}
			c.Totals = &bpf.Totals{Since: time.Now().Add(-time.Minute),
				Sending: bpf.Traffic{Bytes: cookie * moved, Records: moved}, Receiving: bpf.Traffic{Bytes: 7, Records: 3}}
			c.Totals.Errors[bpf.ErrorIO] = uint32(i)
		}
		list = append(list, c)
	}
	return list, owners
}

// testTop is a model with samples that are one second apart.
func testTop(t *testing.T, n, width, height int) *topModel {
	t.Helper()
	now, moved := time.Unix(1_800_000_000, 0), uint64(0)
	m := newTopModel(func() (*topSample, error) {
		now, moved = now.Add(time.Second), moved+1024
		list, owners := topConnections(n, moved)
		return newTopSample(now, list, bpf.Sums{Connections: 99}, &topDaemon{PID: 815}, owners, 0.8), nil
	}, time.Second)
	m.Update(tea.WindowSizeMsg{Width: width, Height: height})
	m.Update(m.takeSample())
	m.Update(m.takeSample())
	return m
}

// press sends keys: names, or letters one by one.
func press(m *topModel, keys ...string) (quit bool) {
	codes := map[string]rune{"left": tea.KeyLeft, "right": tea.KeyRight, "up": tea.KeyUp, "down": tea.KeyDown, "enter": tea.KeyEnter,
		"esc": tea.KeyEscape, "backspace": tea.KeyBackspace, "pgdown": tea.KeyPgDown, "pgup": tea.KeyPgUp, "home": tea.KeyHome, "end": tea.KeyEnd}
	for _, key := range keys {
		message := tea.KeyPressMsg{Code: codes[key]}
		if codes[key] == 0 {
			message = tea.KeyPressMsg{Code: rune(key[0]), Text: key}
		}
		if _, command := m.Update(message); command != nil {
			_, quit = command().(tea.QuitMsg)
		}
	}
	return quit
}

// sockets are the first column of the view.
func sockets(m *topModel) (list []string) {
	for _, line := range strings.Split(m.render(), "\n")[summaryLines+1:] {
		if fields := strings.Fields(plain(line)); len(fields) > 1 && strings.Trim(fields[0], "0123456789") == "" {
			list = append(list, fields[0])
		}
	}
	return list
}

// plain is without colours.
func plain(s string) string {
	return strings.NewReplacer("\x1b[31m", "", "\x1b[39m", "", "\x1b[7m", "", "\x1b[27m", "").Replace(s)
}

func TestKeysChangeWhatTopShows(t *testing.T) {
	for _, c := range []struct {
		name string
		keys []string
		want string // sockets, in order
	}{
		{"the busiest first", nil, "2 4 6 5 3 1"},
		{"the other way round", []string{"r"}, "1 3 5 2 4 6"},
		{"the next column, and back", []string{"right", "left"}, "2 4 6 5 3 1"},
		{"by what came in", []string{"right"}, "2 4 6 1 3 5"},
		{"by peer", []string{"left"}, "1 2 3 4 5 6"},
		{"by socket, reversed", []string{"left", "left", "left", "r"}, "6 5 4 3 2 1"},
		{"a new column is not reversed", []string{"r", "left"}, "1 2 3 4 5 6"},
		{"all the way round", []string{"left", "left", "left", "left", "right"}, "1 2 3 4 5 6"},
		{"only the daemon's", []string{"/", "W", "e", "b", "enter"}, "5 3 1"},
		{"only foreign ones", []string{"/", "f", "o", "r", "e", "i", "g", "n", "enter"}, "2 4 6"},
		{"typing filters at once", []string{"/", ".", "4", ":"}, "4"},
		{"a letter is taken back", []string{"/", ".", "4", "9", "backspace", ":", "enter"}, "4"},
		{"q is a letter while typing", []string{"/", "q", "q"}, ""},
		{"esc drops the filter", []string{"/", "w", "e", "b", "enter", "esc"}, "2 4 6 5 3 1"},
		{"help hides the table", []string{"?"}, ""},
		{"any key leaves help, and does nothing else", []string{"?", "r"}, "2 4 6 5 3 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := testTop(t, 6, 80, 30)
			if press(m, c.keys...) {
				t.Fatal("it quits")
			}
			if got := strings.Join(sockets(m), " "); got != c.want {
				t.Errorf("sockets %s, want %s:\n%s", got, c.want, m.render())
			}
		})
	}
}

func TestTopQuits(t *testing.T) {
	for _, keys := range [][]string{{"q"}, {"?", "q"}, {"p", "q"}} {
		if m := testTop(t, 1, 80, 24); !press(m, keys...) {
			t.Errorf("%q does not quit", keys)
		}
	}
	m := testTop(t, 1, 80, 24)
	press(m, "/")
	if _, command := m.Update(tea.KeyPressMsg{Code: 'c', Mod: tea.ModCtrl}); command == nil {
		t.Error("ctrl+c does not quit while typing")
	}
}

func TestTopPauses(t *testing.T) {
	m := testTop(t, 2, 200, 24)
	press(m, "p")
	before := m.render()
	if !strings.Contains(before, "PAUSED") {
		t.Errorf("does not say so:\n%s", before)
	}
	m.Update(m.takeSample())
	if m.render() != before {
		t.Error("goes on while paused")
	}
	// What was missed is in the rates: two seconds, and as much as in two.
	press(m, "p")
	m.Update(m.takeSample())
	if m.sample.Interval != 2 || *m.sample.Sockets[0].Sent.ByteRate != 1024 {
		t.Errorf("%v seconds, %v bytes a second; want 2 and 1024", m.sample.Interval, *m.sample.Sockets[0].Sent.ByteRate)
	}
}

func TestTopScrolls(t *testing.T) {
	m := testTop(t, 100, 80, 16) // ten rows
	press(m, "left", "left", "left")
	for _, c := range []struct {
		key, first string
	}{{"home", "1"}, {"down", "2"}, {"up", "1"}, {"up", "1"}, {"pgdown", "11"}, {"pgup", "1"}, {"end", "91"}, {"down", "91"}, {"pgup", "81"}} {
		press(m, c.key)
		if got := sockets(m); len(got) != 10 || got[0] != c.first {
			t.Errorf("after %s: %q, want ten from %s", c.key, got, c.first)
		}
	}
	// A filter or a higher window leave nothing out.
	press(m, "end", "/", "f", "o", "r", "enter")
	if got := sockets(m); len(got) != 10 || got[0] != "2" {
		t.Errorf("with a filter: %q", got)
	}
}

// TestTopFitsItsTerminal: whatever its size, no line is too long, no line too many, and what is needed most is there.
func TestTopFitsItsTerminal(t *testing.T) {
	for _, c := range []struct {
		width, height int
		columns       string
	}{
		{200, 50, "SOCKET OWNER APP PEER LOCAL TLS CIPHER PATH OUT/s IN/s OUT IN REC/s> REC/s< SEQ OUT SEQ IN ERR KEY % AGE"},
		{80, 24, "SOCKET OWNER PEER OUT/s IN/s ERR KEY %"},
		{40, 10, "SOCKET OWNER"},
		{8, 6, "SOCKET"},
		{1, 1, ""},
	} {
		m := testTop(t, 60, c.width, c.height)
		for range 3 {
			lines := strings.Split(m.render(), "\n")
			if len(lines) > c.height {
				t.Errorf("%dx%d: %d lines", c.width, c.height, len(lines))
			}
			for _, line := range lines {
				if n := len(plain(line)); n > c.width {
					t.Errorf("%dx%d: a line of %d: %q", c.width, c.height, n, line)
				}
			}
			if len(lines) > summaryLines {
				if got := strings.Join(strings.Fields(plain(lines[summaryLines])), " "); c.columns != "" && got != c.columns && !m.help {
					t.Errorf("%dx%d: columns %s, want %s", c.width, c.height, got, c.columns)
				}
			}
			if press(m, "?") {
				t.Error("? quits")
			}
		}
	}
}

// TestTopShowsWhatItKnows: one line of each kind, at both widths.
func TestTopShowsWhatItKnows(t *testing.T) {
	m := testTop(t, 3, 200, 24)
	press(m, "left", "left", "left", "left", "left", "left", "left", "left") // by socket
	lines := strings.Split(plain(m.render()), "\n")
	for _, c := range []struct {
		at   int
		want string
	}{
		{0, "daemon 815"},
		{1, "3 sockets, 1 foreign, 3 in a device"},
		{2, "99 connections"},
	} {
		if !strings.Contains(lines[c.at], c.want) {
			t.Errorf("line %d %q has no %q", c.at, lines[c.at], c.want)
		}
	}
	rows := strings.Join(lines[summaryLines+1:], "\n")
	for _, want := range []string{
		// Of the daemon, counted; and of another program, with TCP's bytes and no errors.
		"       3 web                4711 192.0.2.3:4000        [2001:db8::1]:443     1.3 AES_128_GCM       sw/dev     3.0K       0    6.0K       7    1.0K       0       3000          5    2   0.01    1m0s",
		"       2 foreign uid 33        0 192.0.2.2:4000        [2001:db8::1]:443     1.3 AES_128_GCM       sw/dev      11K     22K    ~22K    ~44K       0       0       2000          5    -   0.01       -",
	} {
		if !strings.Contains(rows, want) {
			t.Errorf("no row\n%s in\n%s", want, rows)
		}
	}
}

// TestTopIsRedWhereAKeyIsNearItsEnd: in the row, and above.
func TestTopIsRedWhereAKeyIsNearItsEnd(t *testing.T) {
	m := testTop(t, 3, 120, 24)
	if strings.Contains(m.render(), "\x1b[31m") {
		t.Errorf("red without a reason:\n%s", m.render())
	}
	m.threshold(t, 3000.0/23726566)
	out := m.render()
	if !strings.Contains(out, "\x1b[31m1 keys near their end") || !strings.Contains(out, "\x1b[31m       3 web") || strings.Contains(out, "\x1b[31m       1 web") {
		t.Errorf("%q", out)
	}
}

// threshold shows a sample with another threshold of alarms.
func (m *topModel) threshold(t *testing.T, threshold float64) {
	t.Helper()
	list, owners := topConnections(3, 4096)
	m.Update(topTaken{sample: newTopSample(time.Now(), list, bpf.Sums{}, &topDaemon{}, owners, threshold)})
}

// TestTopSaysWhatWentWrong: and shows what it had.
func TestTopSaysWhatWentWrong(t *testing.T) {
	m := testTop(t, 2, 120, 24)
	m.Update(topTaken{err: errors.New("unloaded meanwhile")})
	if out := m.render(); !strings.Contains(out, "unloaded meanwhile") || len(sockets(m)) != 2 {
		t.Errorf("%s", out)
	}
	m = newTopModel(nil, time.Second)
	m.Update(topTaken{err: errors.New("never loaded")})
	if out := m.render(); !strings.Contains(out, "never loaded") {
		t.Errorf("%s", out)
	}
}

// TestForeignTextStaysText: a listener's name comes from a file, and a terminal must not obey it.
func TestForeignTextStaysText(t *testing.T) {
	m := testTop(t, 1, 120, 24)
	m.sample.Sockets[0].Foreign, m.sample.Sockets[0].Listener = false, "\x1b]0;x\a"
	if out := m.render(); strings.Contains(out, "\x1b]") || strings.Contains(out, "\a") || !strings.Contains(out, `\x1b]0;x\a`) {
		t.Errorf("%q", out)
	}
	press(m, "/")
	m.Update(tea.PasteMsg{Content: "\x1b[2J"})
	if out := m.render(); strings.Contains(out, "\x1b[2J") || !strings.Contains(out, `\x1b[2J`) {
		t.Errorf("%q", out)
	}
}

func TestTopPrintsJSONForScripts(t *testing.T) {
	m := testTop(t, 3, 80, 24)
	var out bytes.Buffer
	if err := topLines(context.Background(), &out, m.take, time.Millisecond, 3); err != nil {
		t.Fatal(err)
	}
	decoder := json.NewDecoder(&out)
	decoder.DisallowUnknownFields()
	var samples []topSample
	for decoder.More() {
		var s topSample
		if err := decoder.Decode(&s); err != nil {
			t.Fatal(err)
		}
		samples = append(samples, s)
	}
	if len(samples) != 3 {
		t.Fatalf("%d objects, want 3", len(samples))
	}
	if s := samples[0]; s.Interval != 0 || s.Sockets[0].Sent.ByteRate != nil || s.Alarms == nil || s.Daemon.PID != 815 {
		t.Errorf("the first: %+v", s)
	}
	s := samples[2]
	if s.Interval != 1 || len(s.Sockets) != 3 || s.Sums.Connections != 99 {
		t.Errorf("the last: %+v", s)
	}
	managed, foreign := s.Sockets[2], s.Sockets[1]
	if managed.Foreign || managed.Listener != "web" || managed.Application != 4711 || !managed.Counted || *managed.Sent.ByteRate != 3*1024 ||
		*managed.Sent.RecordRate != 1024 || managed.Errors["io"] != 2 || managed.Received.Path != "device" {
		t.Errorf("managed: %+v", managed)
	}
	if !foreign.Foreign || foreign.Counted || foreign.Errors != nil || foreign.Received.Bytes != foreign.Received.Wire || *foreign.Received.ByteRate != 22*1024 {
		t.Errorf("foreign: %+v", foreign)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := topLines(ended, &out, m.take, time.Hour, 0); err != nil {
		t.Error(err)
	}
}

func TestTopWithoutObserverSaysWhatToRun(t *testing.T) {
	code, _, stderr := call("", "top", "--json", "--dir", t.TempDir())
	if code != exitMachine || !strings.Contains(stderr, "offloadd bpf load") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	for _, args := range [][]string{{"--interval", "1ms"}, {"--count", "-1"}, {"--alarm", "0"}, {"now"}} {
		if code, _, stderr := call("", append([]string{"top"}, args...)...); code != exitUsage {
			t.Errorf("%q exits with %d: %s", args, code, stderr)
		}
	}
}
