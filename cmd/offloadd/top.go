// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/offloadd/offloadd/bpf"
)

// minTopInterval keeps a machine with many sockets from being busy with looking.
const minTopInterval = 100 * time.Millisecond

func topCommand(env *environment) *cobra.Command {
	var (
		asJSON   bool
		interval time.Duration
		count    int
		alarm    float64
		dir      string
	)
	c := &cobra.Command{
		Use:   "top",
		Short: "Watch all kernel TLS sockets of the machine live",
		Long: `Shows every kernel TLS socket of this network namespace, the daemon's with listener and
application, and those of other programs as foreign: rates and sums of each direction,
sequence numbers, path, errors, and how much of what a key may protect is spent. It reads
no key, and disturbs nobody. The key ? explains the others.

Without a terminal, or with --json, it prints one JSON object per interval. Rates are
there from the second one on.

It reads what "offloadd bpf load" has pinned, as root. Sockets that had their keys before
that are shown with TCP's counters.`,
		Example: `  offloadd top
  offloadd top --json --count 1 | jq '.sockets[] | select(.foreign) | .peer'
  offloadd top --json --interval 10s | jq -c '.alarms'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			control, _ := cmd.Flags().GetString("control")
			switch {
			case interval < minTopInterval:
				return usageError("--interval=%v, want at least %v", interval, minTopInterval)
			case count < 0:
				return usageError("--count=%d, want 0, for no end, or more", count)
			case alarm <= 0:
				return usageError("--alarm=%v, want a percentage above 0", alarm)
			}
			observer, err := openObserver(dir)
			if err != nil {
				return err
			}
			defer observer.Close()
			source := &topSource{observer: observer, control: control, threshold: alarm / 100}
			if output, ok := env.stdout.(*os.File); ok && !asJSON && term.IsTerminal(int(output.Fd())) {
				return topScreen(cmd.Context(), env, output, source, interval)
			}
			return topLines(cmd.Context(), env.stdout, source.sample, interval, count)
		},
	}
	f := c.Flags()
	f.BoolVar(&asJSON, "json", false, "print JSON, one object per interval")
	f.DurationVar(&interval, "interval", 2*time.Second, "`time` between two looks")
	f.IntVar(&count, "count", 0, "end after this `number` of JSON objects; 0: never")
	f.Float64Var(&alarm, "alarm", defaultAlarm, "alarm when this `percentage` of what a key may protect is spent")
	f.StringVar(&dir, "dir", bpf.DefaultDir, "`directory` where \"offloadd bpf load\" pinned the observer")
	addControlFlag(f)
	return c
}

// defaultAlarm is a percentage that leaves time for a new key: at 40 Gbit/s it takes a
// minute to reach it, and then there is a quarter of one.
const defaultAlarm = 80

// openObserver says what to do if it cannot.
func openObserver(dir string) (*bpf.Observer, error) {
	observer, err := bpf.OpenObserver(dir)
	switch {
	case errors.Is(err, bpf.ErrNotLoaded):
		return nil, machineError("%w", err)
	case errors.Is(err, os.ErrPermission):
		return nil, machineError("%w: only root may look at all sockets", err)
	}
	return observer, err
}

// topScreen runs until the user quits.
func topScreen(ctx context.Context, env *environment, output *os.File, source *topSource, interval time.Duration) error {
	program := tea.NewProgram(newTopModel(source.sample, interval), tea.WithContext(ctx), tea.WithInput(env.stdin), tea.WithOutput(output))
	_, err := program.Run()
	if errors.Is(err, tea.ErrInterrupted) || ctx.Err() != nil {
		return nil
	}
	return err
}

// topLines prints samples until ctx ends or there are count of them.
func topLines(ctx context.Context, w io.Writer, take func() (*topSample, error), interval time.Duration, count int) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var before *topSample
	for n := 1; ; n++ {
		sample, err := take()
		if err != nil {
			return err
		}
		sample.since(before)
		if err := json.NewEncoder(w).Encode(sample); err != nil {
			return err
		}
		if n == count {
			return nil
		}
		before = sample
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
