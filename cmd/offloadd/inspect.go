// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/offloadd/offloadd/blob"
)

func inspectCommand(env *environment) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "inspect FILE...",
		Short: "Show the public header of a blob",
		Long: `Shows what an OPAQUEKEYBLOB says about itself: which key of which socket, for which
daemon, until when. The key stays sealed, and only opening would prove the header.
A file holds one blob, as bytes or in hexadecimal; "-" is standard input.

Exits with 1 if a file is no blob.`,
		Example: `  offloadd inspect captured.blob
  xclip -o | offloadd inspect --json -`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, files []string) error {
			var reports []blobReport
			for _, name := range files {
				r, err := inspectFile(env, name)
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				reports = append(reports, *r)
			}
			if asJSON {
				return writeJSON(env.stdout, reports)
			}
			for _, r := range reports {
				if err := r.print(env.stdout); err != nil {
					return err
				}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// blobReport is a header for people and as JSON.
type blobReport struct {
	File      string    `json:"file"`
	Bytes     int       `json:"bytes"`
	Kind      string    `json:"kind"`
	Role      string    `json:"role"`
	Direction string    `json:"direction"`
	Version   string    `json:"version"`
	Suite     string    `json:"suite"`
	Epoch     uint32    `json:"epoch"`
	Index     uint32    `json:"index"`
	Instance  string    `json:"instance"`
	Sealer    string    `json:"sealer"`
	Socket    uint64    `json:"socket"`
	Expiry    time.Time `json:"expiry"`
	Expired   bool      `json:"expired"`
}

func inspectFile(env *environment, name string) (*blobReport, error) {
	in := env.stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	// Twice and a bit: the longest blob in hexadecimal with white space around.
	b, err := io.ReadAll(io.LimitReader(in, 3*blob.MaxSize))
	if err != nil {
		return nil, err
	}
	if text, err := hex.DecodeString(string(bytes.Join(bytes.Fields(b), nil))); err == nil && len(text) > 0 {
		b = text
	}
	h, err := blob.Inspect(b)
	if err != nil {
		return nil, err
	}
	return &blobReport{
		File: name, Bytes: len(b), Kind: h.Kind.String(), Role: h.Role.String(), Direction: h.Direction.String(),
		Version: h.Version.String(), Suite: h.Suite.String(), Epoch: h.Epoch, Index: h.Index,
		Instance: h.Instance.String(), Sealer: h.Sealer.String(), Socket: h.Cookie,
		Expiry: h.Expiry.UTC(), Expired: !time.Now().Before(h.Expiry),
	}, nil
}

func (r *blobReport) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	expired := ""
	if r.Expired {
		expired = " (expired)"
	}
	fmt.Fprintf(t, "%s\t%d bytes, %s\n", r.File, r.Bytes, r.Kind)
	fmt.Fprintf(t, "  key\t%s %s, %s, %s, epoch %d\n", r.Role, r.Direction, r.Version, r.Suite, r.Epoch)
	fmt.Fprintf(t, "  socket\t%d\n", r.Socket)
	fmt.Fprintf(t, "  for\tinstance %s\n", r.Instance)
	fmt.Fprintf(t, "  from\tsealer %s, its blob %d\n", r.Sealer, r.Index)
	fmt.Fprintf(t, "  until\t%s%s\n", r.Expiry.Format(time.RFC3339Nano), expired)
	return t.Flush()
}
