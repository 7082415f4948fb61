// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/offloadd/offloadd/bpf"
)

func bpfCommand(env *environment) *cobra.Command {
	c := &cobra.Command{
		Use:   "bpf {load | status | unload}",
		Short: "Load the BPF programs that guard keys, look at them, remove them",
		Long: `The guards of managed sockets are BPF programs in the kernel. "load", once after boot and
as root, attaches them; from then on they act by themselves, whoever is killed, and no
process needs a right to load programs. They are kept by pins below --dir.`,
		Example: `  offloadd bpf load
  offloadd bpf status --json
  offloadd bpf unload`,
		RunE: func(_ *cobra.Command, args []string) error {
			return usageError("bpf wants load, status or unload; see %q", "offloadd bpf --help")
		},
	}
	c.PersistentFlags().String("dir", bpf.DefaultDir, "`DIRECTORY` of the pins, in a BPF file system")
	c.AddCommand(bpfLoadCommand(env), bpfStatusCommand(env), bpfUnloadCommand(env))
	return c
}

// bpfSubcommand takes no arguments and gives its report, if it has one, to a person or as JSON.
func bpfSubcommand(env *environment, c *cobra.Command, do func(dir string) (bpf.Report, error)) *cobra.Command {
	var asJSON bool
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usageError("%s takes no arguments; see %q", c.CommandPath(), c.CommandPath()+" --help")
		}
		return nil
	}
	c.RunE = func(c *cobra.Command, _ []string) error {
		dir, _ := c.Flags().GetString("dir")
		r, err := do(dir)
		if err != nil {
			return bpfError(err)
		}
		if asJSON {
			err = writeJSON(env.stdout, r)
		} else {
			err = printBPF(env.stdout, &r)
		}
		return errors.Join(err, bpfMissing(&r))
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func bpfLoadCommand(env *environment) *cobra.Command {
	var form, cgroup string
	c := &cobra.Command{
		Use:   "load",
		Short: "Attach the programs, or bring them up to date",
		Long: `Attaches all programs, tries whether they act, and pins them. Guards are attached as
programs of the BPF security module (lsm) where it is active, else by changing the return
values of kernel functions (fmod_ret).

Run again, also by another version: programs that are the same stay, others are attached
before the ones that they replace go, so there is no moment without a guard. What is
managed stays managed.

Exits with 3 if this machine cannot, and says why.`,
		Example: `  offloadd bpf load
  offloadd bpf load --form fmod_ret`,
	}
	c.Flags().StringVar(&form, "form", "", "form of the guards: lsm or fmod_ret (default: the first that works)")
	c.Flags().StringVar(&cgroup, "cgroup", "", "`DIRECTORY` of the cgroup whose sockets are guarded on their way out (default: all)")
	return bpfSubcommand(env, c, func(dir string) (bpf.Report, error) {
		if form != "" && form != string(bpf.FormLSM) && form != string(bpf.FormModifyReturn) {
			return bpf.Report{}, usageError("--form is lsm or fmod_ret, not %q", form)
		}
		return withObserver(bpf.Options{Dir: dir, Form: bpf.Form(form), Cgroup: cgroup}, bpf.Load, bpf.LoadObserver)
	})
}

func bpfStatusCommand(env *environment) *cobra.Command {
	return bpfSubcommand(env, &cobra.Command{
		Use:   "status",
		Short: "Show which programs are attached, and where",
		Long:  "Exits with 3 if nothing is loaded, or a program that guards is missing.",
		Example: `  offloadd bpf status
  offloadd bpf status --json | jq '.programs[] | select(.off)'`,
	}, func(dir string) (bpf.Report, error) { return withObserver(dir, bpf.Inspect, bpf.InspectObserver) })
}

// withObserver does the same with guards and observer, which need not each other.
func withObserver[T any](what T, guards, observer func(T) (bpf.Report, error)) (bpf.Report, error) {
	r, err := guards(what)
	seen, err2 := observer(what)
	r.Programs = append(r.Programs, seen.Programs...)
	if errors.Is(err2, bpf.ErrNotLoaded) {
		err2 = nil // of an earlier version, which had none
	}
	return r, errors.Join(err, err2)
}

func bpfUnloadCommand(env *environment) *cobra.Command {
	c := &cobra.Command{
		Use:   "unload",
		Short: "Detach all programs and remove the pins and maps",
		Long: `Nothing is left. Sockets that were managed are so no longer: whoever holds one can ask
for its keys. Stop the daemon first.`,
		Example: "  offloadd bpf unload",
	}
	c.Args = bpfSubcommand(env, &cobra.Command{}, nil).Args
	c.RunE = func(c *cobra.Command, _ []string) error {
		dir, _ := c.Flags().GetString("dir")
		err := bpf.Unload(dir)
		if errors.Is(err, bpf.ErrNotLoaded) {
			fmt.Fprintln(env.stdout, "nothing was loaded")
			return nil
		}
		if err != nil {
			return bpfError(err)
		}
		fmt.Fprintln(env.stdout, "unloaded")
		return nil
	}
	return c
}

// bpfMissing is an error if a program is off that is not optional.
func bpfMissing(r *bpf.Report) error {
	for _, p := range r.Off() {
		if !p.Optional {
			return machineError("program %s of the %s is off: %s", p.Name, p.Feature, p.Off)
		}
	}
	return nil
}

// bpfError gives an error its exit code: that of a machine that cannot, or of work that went wrong.
func bpfError(err error) error {
	var unavailable *bpf.UnavailableError
	if errors.As(err, &unavailable) || errors.Is(err, bpf.ErrNotLoaded) {
		return &exitError{exitMachine, err}
	}
	return err
}

func printBPF(w io.Writer, r *bpf.Report) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "FEATURE\tPROGRAM\tATTACHED\tHOOK\tTAG\t")
	for _, p := range r.Programs {
		if p.Off != "" {
			p.Attach, p.Change = "off", p.Off
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", p.Feature, p.Name, p.Attach, p.Hook, cmp.Or(p.Tag, "-"), p.Change)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if r.Skippable != "" {
		fmt.Fprintf(w, "\nTHESE GUARDS CAN BE OUTRUN: %s\n", r.Skippable)
	}
	_, err := fmt.Fprintf(w, "\nguards act as %s; %d sockets are managed; pins are in %s\n", cmp.Or(string(r.Form), "nothing"), r.Managed, r.Dir)
	return err
}
