// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/offloadd/offloadd/cmd/offloadd/internal/custody"
)

func revokeCommand(env *environment) *cobra.Command {
	var all, asJSON bool
	var peer, bpfDir string
	c := &cobra.Command{
		Use:   "revoke {SOCKET... | --all | --peer ADDRESS}",
		Short: "End connections at once, whoever holds them",
		Long: `Ends connections of the daemon from outside: the peer gets a reset, and every process
that holds the socket an error (ECONNABORTED) from its next call, also one that is
stopped or stuck. No key is used again. SOCKET is a number that status shows; ADDRESS an
address, one with port, or a prefix.

In a socket that is dead the kernel keeps the keys until its last descriptor is
closed, and a holder could still ask for them. So revoke fetches the socket from whoever
holds it and overwrites them, where the kernel can change keys (Linux 6.14, TLS 1.3).
Elsewhere they stay, and revoke says with whom: end that process to have them gone.
Nothing can be sent or read with them.

Exits with 0 if every connection asked for was ended, with 1 if one was refused, and
with 4 if one was not there.`,
		Example: `  offloadd revoke 4711 4712
  offloadd revoke --peer 192.0.2.0/24`,
		RunE: func(cmd *cobra.Command, args []string) error {
			sockets, err := parseSockets(args)
			if err != nil {
				return err
			}
			chosen := 0
			for _, given := range []bool{len(sockets) > 0, all, peer != ""} {
				if given {
					chosen++
				}
			}
			if chosen != 1 {
				return usageError("revoke wants sockets, --all or --peer, one of them; see %q", "offloadd revoke --help")
			}
			if peer != "" {
				if _, err := matchPeer(peer); err != nil {
					return usageError("--peer: %v", err)
				}
			}
			path, _ := cmd.Flags().GetString("control")
			client, err := dialControl(path)
			if err != nil {
				return err
			}
			defer client.close()
			report, err := revoke(client, sockets, &controlRequest{All: all, Peer: peer})
			if err != nil {
				return err
			}
			erasing := eraseKeys(report.Sockets, bpfDir)
			if asJSON {
				err = writeJSON(env.stdout, report)
			} else {
				err = report.print(env.stdout)
			}
			if erasing != nil {
				err = errors.Join(err, fmt.Errorf("some keys may be left in sockets that are held: %w", erasing))
			}
			if err != nil {
				return err
			}
			return report.err(len(sockets) > 0, peer)
		},
	}
	f := c.Flags()
	f.BoolVar(&all, "all", false, "every live connection")
	f.StringVar(&peer, "peer", "", "the live connections of peers with this `address`")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	addControlFlag(f)
	addBPFDirFlag(f, &bpfDir)
	return c
}

// revokeReport is what became of all of them.
type revokeReport struct {
	Sockets  []*revokeResult `json:"sockets"`
	Ended    int             `json:"ended"`
	NotThere int             `json:"not_there"`
	Refused  int             `json:"refused"`
}

// revoke asks for sockets, in parts, or else for what the request chooses.
func revoke(client *controlClient, sockets []uint64, r *controlRequest) (*revokeReport, error) {
	report := &revokeReport{Sockets: []*revokeResult{}}
	add := func(reply *controlReply) error {
		result := reply.Revoked
		if result == nil {
			return fmt.Errorf("the daemon answers a revocation with something else")
		}
		report.Sockets = append(report.Sockets, result)
		switch result.Outcome {
		case custody.Ended:
			report.Ended++
		case custody.NotThere:
			report.NotThere++
		default:
			report.Refused++
		}
		return nil
	}
	r.Command = controlRevoke
	for first := true; first || len(sockets) > 0; first = false {
		r.Sockets = sockets[:min(len(sockets), maxControlSockets)]
		sockets = sockets[len(r.Sockets):]
		if _, err := client.ask(r, add); err != nil {
			return nil, err
		}
	}
	return report, nil
}

// print tells people, a line for each.
func (r *revokeReport) print(w io.Writer) error {
	for _, s := range r.Sockets {
		fmt.Fprintf(w, "%d %s%s", s.Socket, s.Outcome, optional(": ", s.Detail))
		switch s.Keys {
		case keysErased:
			fmt.Fprint(w, ", keys erased")
		case keysKept:
			fmt.Fprintf(w, ", keys stay until it is closed by %s (%s)", joined(s.Holders), s.KeysDetail)
		}
		fmt.Fprintln(w)
	}
	_, err := fmt.Fprintf(w, "%d ended, %d not there, %d refused\n", r.Ended, r.NotThere, r.Refused)
	return err
}

func joined(holders []holder) string {
	names := make([]string, 0, len(holders))
	for _, h := range holders {
		names = append(names, h.String())
	}
	return strings.Join(names, ", ")
}

// err is the exit code. A connection that --all or --peer met just when it ended was
// not asked for by name.
func (r *revokeReport) err(named bool, peer string) error {
	switch {
	case r.Refused > 0:
		return fmt.Errorf("%d connections go on", r.Refused)
	case named && r.NotThere > 0:
		return &exitError{exitNone, fmt.Errorf("%d of the connections were not there", r.NotThere)}
	case peer != "" && len(r.Sockets) == 0:
		return &exitError{exitNone, fmt.Errorf("no live connection is with %s", peer)}
	}
	return nil
}
