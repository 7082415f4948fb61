// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/offloadd/offloadd/cmd/offloadd/internal/custody"
)

func statusCommand(env *environment) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "status [SOCKET...]",
		Short: "Show the live connections and where their keys are",
		Long: `Asks the daemon which connections it gave keys to and are not over, where the key
of each direction is (the network device, or the kernel on the CPU) and why it is
nowhere better. SOCKET, a number from the first column, asks for all that is known of
one connection, and which processes hold it now: an application may have passed it on.

A connection is shown until its last descriptor is closed: "closed" or "revoked" says
that nothing goes in or out any more, but somebody still holds the dead socket.
Connections that an earlier start of the daemon made are not in the table; the last
line counts them among the others.

Exits with 3 if there is no daemon, and with 4 if a SOCKET is not there.`,
		Example: `  offloadd status
  offloadd status 4711
  offloadd status --json | jq '.connections[] | select(.write.degraded)'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			sockets, err := parseSockets(args)
			if err != nil {
				return err
			}
			path, _ := cmd.Flags().GetString("control")
			client, err := dialControl(path)
			if err != nil {
				return err
			}
			defer client.close()
			var holders map[uint64][]holder
			if len(sockets) > 0 {
				if holders, err = findHolders(sockets); err != nil {
					fmt.Fprintf(env.stderr, "offloadd: not all holders can be told: %v\n", err)
				}
			}
			var out statusOutput
			switch {
			case asJSON:
				out = &statusJSON{w: env.stdout, holders: holders}
			case len(sockets) > 0:
				out = &statusDetail{env.stdout, holders}
			default:
				out = newStatusTable(env.stdout, terminalColor(env.stdout))
			}
			return status(client, sockets, out)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	addControlFlag(c.Flags())
	return c
}

// statusOutput prints connections as they come, and then the totals.
type statusOutput interface {
	connection(*controlReply) error
	end(*controlSummary) error
}

func status(client *controlClient, sockets []uint64, out statusOutput) error {
	var missing []uint64
	each := func(r *controlReply) error {
		if r.Connection == nil {
			missing = append(missing, r.Missing)
			return nil
		}
		return out.connection(r)
	}
	var summary *controlSummary
	// Once without sockets, or once for each so many.
	for first := true; first || len(sockets) > 0; first = false {
		part := sockets[:min(len(sockets), maxControlSockets)]
		sockets = sockets[len(part):]
		var err error
		if summary, err = client.ask(&controlRequest{Command: controlStatus, Sockets: part, All: len(part) == 0}, each); err != nil {
			return err
		}
	}
	if err := out.end(summary); err != nil {
		return err
	}
	if len(missing) > 0 {
		return &exitError{exitNone, fmt.Errorf("no such connection: %s", numbers(missing))}
	}
	return nil
}

// numbers lists a few sockets.
func numbers(sockets []uint64) string {
	const most = 10
	text := ""
	for i, s := range sockets[:min(len(sockets), most)] {
		if i > 0 {
			text += ", "
		}
		text += fmt.Sprint(s)
	}
	if n := len(sockets) - most; n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	return text
}

// terminalColor returns a function that colours, if w is a terminal.
func terminalColor(w io.Writer) func(code, s string) string {
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == "" {
		return func(code, s string) string { return "\x1b[" + code + "m" + s + "\x1b[0m" }
	}
	return func(_, s string) string { return s }
}

// statusJSON prints one object, without having it in memory.
type statusJSON struct {
	w       io.Writer
	holders map[uint64][]holder // of sockets that were asked for by number
	begun   bool
}

func (s *statusJSON) connection(r *controlReply) error {
	separator := "{\"connections\":[\n"
	if s.begun {
		separator = ",\n"
	}
	s.begun = true
	return s.write(separator, struct {
		*custody.Entry
		Traffic *traffic `json:"traffic,omitempty"`
	}{r.Connection, r.Traffic})
}

func (s *statusJSON) end(summary *controlSummary) error {
	separator := "{\"connections\":[],\n"
	if s.begun {
		separator = "],\n"
	}
	if s.holders != nil {
		if err := s.write(separator+"\"holders\":", s.holders); err != nil {
			return err
		}
		separator = ",\n"
	}
	separator += "\"daemon\":"
	if err := s.write(separator, summary); err != nil {
		return err
	}
	_, err := io.WriteString(s.w, "}\n")
	return err
}

func (s *statusJSON) write(before string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(s.w, "%s%s", before, b)
	return err
}
