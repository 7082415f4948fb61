// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/custody"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// startControl serves a table in this process.
func startControl(t *testing.T, table *custody.Table) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root may ask the control socket")
	}
	path := filepath.Join(openDir(t), "control.sock")
	key, err := blob.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	c, err := listenControl(&daemon{config: &config{Control: path}, custody: table, key: key, log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	go c.run()
	t.Cleanup(c.close)
	return path
}

func TestAControlRequestIsReadStrictly(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"all", `{"version":1,"command":"status","all":true}`, ""},
		{"sockets", `{"version":1,"command":"revoke","sockets":[1,18446744073709551615]}`, ""},
		{"a later version", `{"version":2,"command":"status","everything":true}`, "this daemon speaks version 1"},
		{"no version", `{"command":"status","all":true}`, "version 0"},
		{"no JSON", `status`, "no JSON"},
		{"unknown field", `{"version":1,"command":"status","all":true,"force":true}`, `unknown field "force"`},
		{"unknown command", `{"version":1,"command":"stop","all":true}`, `command "stop"`},
		{"a second object", `{"version":1,"command":"status","all":true}{}`, ""},
		{"nothing chosen", `{"version":1,"command":"revoke"}`, "none of"},
		{"two choices", `{"version":1,"command":"revoke","all":true,"peer":"192.0.2.1"}`, "more than one of"},
		{"socket 0", `{"version":1,"command":"revoke","sockets":[0]}`, "socket 0"},
		{"a negative socket", `{"version":1,"command":"revoke","sockets":[-1]}`, "-1"},
		{"too many sockets", `{"version":1,"command":"status","sockets":[1` + strings.Repeat(",1", maxControlSockets) + `]}`, "at most"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := parseControlRequest([]byte(c.text))
			if bad := c.want != "" || c.name == "a second object"; bad != (err != nil) || (r == nil) != bad {
				t.Fatalf("%+v, %v", r, err)
			}
			if err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// TestAReplyIsOneObject: nothing may hide behind it.
func TestAReplyIsOneObject(t *testing.T) {
	for text, ok := range map[string]bool{`{"version":1}`: true, `{"version":1} `: true, `{"version":1}{}`: false, `{"version":1}x`: false, `{"versions":1}`: false, ``: false} {
		if err := decodeStrictly([]byte(text), &controlReply{}); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestAControlClientThatBreaksTheProtocolIsToldAndDropped: and the next one served.
func TestAControlClientThatBreaksTheProtocolIsToldAndDropped(t *testing.T) {
	path := startControl(t, custody.NewTable(1, slog.New(slog.DiscardHandler)))
	for want, message := range map[string]string{
		"more than":       `{"version":1,"command":"status","peer":"` + strings.Repeat("x", maxControlMessage) + `"}`,
		"no JSON":         "x",
		"want an address": `{"version":1,"command":"status","peer":"nowhere"}`,
	} {
		t.Run(want, func(t *testing.T) {
			c, err := net.Dial("unixpacket", path)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Write([]byte(message)); err != nil {
				t.Fatal(err)
			}
			c.SetReadDeadline(time.Now().Add(20 * time.Second))
			buffer := make([]byte, maxControlMessage)
			n, err := c.Read(buffer)
			var reply controlReply
			if err != nil || json.Unmarshal(buffer[:n], &reply) != nil || !strings.Contains(reply.Error, want) || reply.Done != nil {
				t.Errorf("%q, %v; want %q", buffer[:n], err, want)
			}
			if _, err := c.Read(buffer); err != io.EOF {
				t.Errorf("%v, want the end", err)
			}
		})
	}
	if code, out, stderr := call("", "status", "--control", path); code != exitOK || !strings.HasPrefix(out, "0 live") {
		t.Errorf("exit %d: %s%s", code, out, stderr)
	}
}

// TestManyThousandsOfConnectionsAreShown: in the order of their numbers, aligned, and
// as JSON.
func TestManyThousandsOfConnectionsAreShown(t *testing.T) {
	// Nobody tells this table of the sockets' end, so its entries stay.
	table := custody.NewTable(custody.MaxEntries, slog.New(slog.DiscardHandler))
	path := startControl(t, table)
	l := ktlstest.Listen(t)
	count := 5000
	if ktlstest.InVM() {
		count = 200 // nothing here depends on the kernel, and an emulated one is slow
	}
	for range count {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		key := custody.Key{Place: custody.Software, Hands: []custody.Hand{{Role: "application", PID: 4711}}}
		entry := custody.Entry{Listener: "test", Version: "TLS 1.3", Suite: "TLS_AES_128_GCM_SHA256", ServerName: strings.Repeat("\x1b", 255), Accepted: time.Now(), Read: key, Write: key}
		if err := table.Add(c.(*net.TCPConn), entry, time.Now()); err != nil {
			t.Fatal(err)
		}
		server, err := l.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
		server.Close()
	}
	start := time.Now()
	code, out, stderr := call("", "status", "--control", path)
	if code != exitOK {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	t.Logf("%d connections in %v", count, time.Since(start))
	lines := strings.Split(out, "\n")
	if !strings.HasPrefix(lines[0], "SOCKET") || !strings.Contains(out, fmt.Sprintf("\n%d live: ", count)) {
		t.Errorf("%s\n...\n%s", lines[0], lines[len(lines)-3])
	}
	last, rows, column := "", 0, strings.Index(lines[0], "TLS")
	for _, line := range lines[1:] {
		if !strings.Contains(line, "software") || strings.Contains(line, "live") {
			continue
		}
		rows++
		socket, _, _ := strings.Cut(line, " ")
		if len(socket) < len(last) || len(socket) == len(last) && socket <= last {
			t.Fatalf("socket %s after %s", socket, last)
		}
		last = socket
		if at := strings.Index(line, "TLS 1.3"); rows%statusBlock != 1 && at != column {
			t.Fatalf("column at %d, before at %d:\n%s", at, column, line)
		} else {
			column = at
		}
	}
	if rows != count {
		t.Errorf("%d lines, want %d", rows, count)
	}
	if strings.Contains(out, "\x1b") {
		t.Error("a peer's word reaches the terminal as it is")
	}
	code, out, _ = call("", "status", "--json", "--control", path)
	var all struct {
		Connections []custody.Entry `json:"connections"`
		Daemon      controlSummary  `json:"daemon"`
	}
	if err := decodeStrictly([]byte(out), &all); code != exitOK || err != nil || len(all.Connections) != count || all.Daemon.Totals.Live != count {
		t.Errorf("exit %d, %v, %d connections, %+v", code, err, len(all.Connections), all.Daemon)
	}
	// More by name than fit into one request.
	args := []string{"status", "--control", path}
	for _, e := range all.Connections {
		args = append(args, fmt.Sprint(e.Socket))
	}
	code, out, stderr = call("", append(args, "18446744073709551615")...)
	if n := strings.Count(out, "read key"); code != exitNone || n != count || !strings.Contains(stderr, "no such connection: 18446744073709551615") {
		t.Errorf("exit %d, %d connections in detail, %s", code, n, stderr)
	}
	if strings.Contains(out, "\x1b") {
		t.Error("a peer's word reaches the terminal as it is")
	}
}

// TestWithoutADaemonStatusSaysWhatToDo: nobody there, and nobody there any more.
func TestWithoutADaemonStatusSaysWhatToDo(t *testing.T) {
	stale := filepath.Join(t.TempDir(), "stale.sock")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: stale, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for _, path := range []string{stale, filepath.Join(t.TempDir(), "none.sock")} {
		for _, args := range [][]string{{"status"}, {"status", "4711"}, {"revoke", "--all"}} {
			code, out, stderr := call("", append(args, "--control", path)...)
			if code != exitMachine || out != "" || !strings.Contains(stderr, "no daemon listens at "+path) || !strings.Contains(stderr, "--control") {
				t.Errorf("%v: exit %d, %s%s", args, code, out, stderr)
			}
		}
	}
}
