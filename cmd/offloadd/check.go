// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
)

func checkCommand(env *environment) *cobra.Command {
	var asJSON bool
	var workerUser, bpfDir string
	c := &cobra.Command{
		Use:   "check",
		Short: "Say what this machine can do, and how to fix the rest",
		Long: `Tries on loopback connections of its own what the kernel can do, and looks at what
serve needs. Nothing is decided by version numbers. Where no BPF guards are loaded, it
loads some for a moment to see whether they would act.

Exits with 0 if serve can work here, and with 3 if something it needs is missing.`,
		Example: `  offloadd check
  offloadd check --json | jq '.lines[] | select(.state != "yes")'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			report, err := check(cmd.Context(), workerUser, bpfDir)
			if err != nil {
				return err
			}
			if asJSON {
				err = writeJSON(env.stdout, report)
			} else {
				err = report.print(env.stdout)
			}
			if err == nil && !report.Ready {
				return machineError("serve cannot work here: %d of the things it needs are missing", report.missing())
			}
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	addBPFDirFlag(c.Flags(), &bpfDir)
	c.Flags().StringVar(&workerUser, "worker-user", "offloadd", "`user` that serve is to run workers as")
	return c
}

// checkReport is what check found.
type checkReport struct {
	Kernel  string        `json:"kernel"`
	Ready   bool          `json:"ready"` // nothing that serve needs is missing
	Lines   []checkLine   `json:"lines"`
	Devices []ktls.Device `json:"devices"`
}

// checkLine is one thing: there, not there, or it could not be told.
type checkLine struct {
	Name   string `json:"name"`
	State  string `json:"state"` // yes, no, unknown
	Needed bool   `json:"needed"`
	Detail string `json:"detail,omitempty"`
	Remedy string `json:"remedy,omitempty"`
}

func check(ctx context.Context, workerUser, bpfDir string) (*checkReport, error) {
	features, err := ktls.Probe(ctx)
	if err != nil {
		return nil, err
	}
	r := &checkReport{Kernel: kernelRelease(), Devices: features.Devices}
	r.add("root", nil, true, "")
	if os.Geteuid() != 0 {
		r.Lines[0].State, r.Lines[0].Remedy = "no", "start serve as root; its workers get a user of their own"
	}
	_, _, err = userID(workerUser)
	r.add("user "+workerUser, err, true, "useradd --system --no-create-home --shell /usr/sbin/nologin "+workerUser+", or serve --worker-user")
	r.add("seccomp", seccompReady(), true, "a kernel with CONFIG_SECCOMP_FILTER: workers do not start without")
	abi, err := landlockABI()
	if line := r.add("Landlock", err, false, landlockRemedy+": the second fence around workers"); err == nil {
		line.Detail = fmt.Sprintf("ABI %d: keeps workers from %s", abi, landlockScope(abi))
	}
	needed := neededFeatures()
	ulp := features.Err(ktls.FeatureULP)
	for _, f := range features.Results {
		if ulp != nil && f.Name != ktls.FeatureULP {
			continue // all else follows from that
		}
		line := r.add(f.Name, f.Err, needed[f.Name], f.Remedy)
		line.State = f.State()
		if errors.Is(f.Err, ktls.ErrNoTLS) {
			line.Detail = "this kernel offers no TLS"
			line.Remedy = "\"modprobe tls\" (serve tries that by itself); a kernel without CONFIG_TLS needs a virtual machine"
		}
	}
	if ulp == nil {
		r.addRelayed(features)
		r.addUnfollowed()
		r.addOffload(features.Devices)
		r.addGuards(bpfDir)
	}
	r.Ready = r.missing() == 0
	return r, nil
}

// addUnfollowed tells how often it mattered that keys could not change, if a daemon runs
// where one does by default.
func (r *checkReport) addUnfollowed() {
	client, err := dialControl(defaultControl)
	if err != nil {
		return
	}
	defer client.close()
	summary, err := client.ask(&controlRequest{Command: controlStatus, Sockets: []uint64{1}}, func(*controlReply) error { return nil })
	if err != nil || summary.Totals.Unfollowed == 0 {
		return
	}
	r.add("no connection lost at a KeyUpdate", fmt.Errorf("%d ended because nobody could follow the peer's KeyUpdate, since %s",
		summary.Totals.Unfollowed, summary.Started.Local().Format(time.DateTime)), false,
		"a kernel that has \"rekey rx\"; connections from before a start of the daemon end so on every kernel")
}

func (r *checkReport) addOffload(devices []ktls.Device) {
	err := errors.New("no interface has TLS offload on: the kernel encrypts in software")
	for _, d := range devices {
		if d.TX || d.RX {
			err = nil
		}
	}
	r.add("TLS in a network device", err, false, "a NIC with TLS offload (TLS 1.2, AES-GCM) and \"ethtool -K DEV tls-hw-tx-offload on tls-hw-rx-offload on\"; "+
		"where they are modules, load ctr and ghash_generic too: without them the kernel offers no write key to a device")
}

// addRelayed says which connections go to user space here, where a listener lets them.
func (r *checkReport) addRelayed(features *ktls.Features) {
	var lacking []string
	for _, s := range blob.CipherSuites() {
		if name := ktls.SuiteFeature(s); features.Err(name) != nil && !slices.Contains(lacking, name) {
			lacking = append(lacking, name)
		}
	}
	if features.Err(ktls.FeatureRekeyTX) != nil || features.Err(ktls.FeatureRekeyRX) != nil {
		lacking = append(lacking, "all of TLS 1.3 with follow_key_updates = true")
	}
	line := r.add("every connection can be the kernel's", nil, false, "")
	if len(lacking) > 0 {
		line.State = "no"
		line.Detail = "kernel_tls = \"prefer\" has a relay make the records of: " + strings.Join(lacking, ", ")
	}
}

// neededFeatures: the ULP, and every suite, since the client chooses among them
// and a connection whose suite the kernel lacks is lost.
func neededFeatures() map[string]bool {
	needed := map[string]bool{ktls.FeatureULP: true}
	for _, s := range blob.CipherSuites() {
		needed[ktls.SuiteFeature(s)] = true
	}
	return needed
}

func (r *checkReport) add(name string, err error, needed bool, remedy string) *checkLine {
	line := checkLine{Name: name, State: "yes", Needed: needed}
	if err != nil {
		line.State, line.Detail, line.Remedy = "no", err.Error(), remedy
	}
	r.Lines = append(r.Lines, line)
	return &r.Lines[len(r.Lines)-1]
}

// missing counts what serve needs and is not certainly there.
func (r *checkReport) missing() (n int) {
	for _, l := range r.Lines {
		if l.Needed && l.State != "yes" {
			n++
		}
	}
	return n
}

func (r *checkReport) print(w io.Writer) error {
	color := func(_, s string) string { return s }
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == "" {
		color = func(code, s string) string { return "\x1b[" + code + "m" + s + "\x1b[0m" }
	}
	fmt.Fprintf(w, "Linux %s\n\n", r.Kernel)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, l := range r.Lines {
		// The marks have one width each, so that colours do not disturb the columns.
		mark := color("32", "yes    ")
		switch {
		case l.State == "yes":
		case l.Needed:
			mark = color("31", "MISSING")
		case l.State == "no":
			mark = color("33", "no     ")
		default:
			mark = color("33", "unknown")
		}
		fmt.Fprintf(t, "%s %s\t%s\n", mark, l.Name, l.Detail)
		if l.Remedy != "" {
			fmt.Fprintf(t, "%s \t-> %s\n", "       ", l.Remedy)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if r.Ready {
		_, err := fmt.Fprintln(w, "\nserve can work here")
		return err
	}
	return nil
}
