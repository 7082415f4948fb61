// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
)

// demoReport is the story of a demo, for people and as JSON.
type demoReport struct {
	Kernel    string            `json:"kernel"`
	Guards    demoGuards        `json:"guards"`
	Processes []demoProcess     `json:"processes"`
	Transfers []demoTransfer    `json:"transfers"`
	Before    map[string]uint64 `json:"tls_stat_before"`
	After     map[string]uint64 `json:"tls_stat_after"`
}

// demoGuards is how the BPF guards act, or why there are none.
type demoGuards struct {
	Form string `json:"form,omitempty"`
	Off  string `json:"off,omitempty"`
}

type demoProcess struct {
	Name  string `json:"name"`
	PID   int64  `json:"pid"`
	UID   int64  `json:"uid"`
	Holds string `json:"holds"`
}

type demoTransfer struct {
	Client     string  `json:"client"`
	File       string  `json:"file"`
	Bytes      int64   `json:"bytes"`
	Seconds    float64 `json:"seconds"`
	SHA256     string  `json:"sha256"`
	WantSHA256 string  `json:"want_sha256"`

	Version    string `json:"version"`
	Suite      string `json:"suite"`
	Group      string `json:"group"`
	TX         string `json:"tx"`
	RX         string `json:"rx"`
	PathReason string `json:"path_reason"`

	ReadBlobBytes                   int64 `json:"read_blob_bytes"`
	WriteBlobBytes                  int64 `json:"write_blob_bytes"`
	OpenMicroseconds                int64 `json:"open_us"`
	InstallMicroseconds             int64 `json:"install_us"`
	AcceptToApplicationMicroseconds int64 `json:"accept_to_application_us"`

	// KeyAsked is what the kernel answered when root asked for the key.
	KeyAsked string `json:"key_asked"`
}

// paths names the modes of the kernel for people.
var paths = map[string]string{"sw": "kernel software", "hw": "network device", "unknown": "kernel, it does not say how"}

func (r *demoReport) print(w io.Writer) error {
	fmt.Fprintf(w, "Kernel TLS on Linux %s\n\n", r.Kernel)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "PROCESS\tPID\tUID\tHOLDS")
	for _, p := range r.Processes {
		fmt.Fprintf(t, "%s\t%d\t%d\t%s\n", p.Name, p.PID, p.UID, p.Holds)
	}
	t.Flush()
	if r.Guards.Off != "" {
		fmt.Fprintf(w, "\nNo BPF guards: %s\n", r.Guards.Off)
	} else {
		fmt.Fprintf(w, "\nBPF guards act, as %s\n", r.Guards.Form)
	}
	for _, x := range r.Transfers {
		x.print(w)
	}
	fmt.Fprintln(w)
	fmt.Fprintln(t, "/proc/net/tls_stat\tBEFORE\tAFTER")
	for _, name := range slices.Sorted(maps.Keys(r.After)) {
		if r.Before[name] != 0 || r.After[name] != 0 || name == "TlsDecryptError" {
			fmt.Fprintf(t, "%s\t%d\t%d\n", name, r.Before[name], r.After[name])
		}
	}
	return t.Flush()
}

func (x *demoTransfer) print(w io.Writer) {
	mib := float64(x.Bytes) / (1 << 20)
	fmt.Fprintf(w, "\n%s fetched %s: %.0f MiB in %.1f s, %.0f MiB/s, SHA-256 equal\n", x.Client, x.File, mib, x.Seconds, mib/x.Seconds)
	fmt.Fprintf(w, "  sha256     %s\n", x.SHA256)
	fmt.Fprintf(w, "  handshake  %s, %s, %s\n", x.Version, x.Suite, x.Group)
	fmt.Fprintf(w, "  keys       read blob %d bytes, write blob %d bytes; opened in %d µs, installed in %d µs\n",
		x.ReadBlobBytes, x.WriteBlobBytes, x.OpenMicroseconds, x.InstallMicroseconds)
	fmt.Fprintf(w, "  guard      root asked the kernel for the key in mid-transfer: %s\n", x.KeyAsked)
	fmt.Fprintf(w, "  path       sending: %s; receiving: %s\n", paths[x.TX], paths[x.RX])
	if x.PathReason != "" {
		fmt.Fprintf(w, "             %s\n", x.PathReason)
	}
	fmt.Fprintf(w, "  hand-over  %.1f ms from accept to the application\n", float64(x.AcceptToApplicationMicroseconds)/1000)
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
