// SPDX-License-Identifier: Apache-2.0

// Bench measures offloadd and its peers in a virtual machine. It is the guest's side of `vm bench`: it starts servers,
// each in a control group of its own, has the same client ask each the same, in turn, and writes what that cost as
// events, one a line. It knows offloadd as a program only, as it knows nginx.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"sync"

	"github.com/offloadd/offloadd/test/vm/bench/result"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

// options of one run.
type options struct {
	offloadd string
	mode     string
	quick    bool
	gate     bool
	only     *regexp.Regexp
	repeat   int
}

func run(args []string, out io.Writer) error {
	o := options{}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&o.offloadd, "offloadd", "/usr/bin/offloadd", "the program that is measured")
	flags.StringVar(&o.mode, "mode", result.Instructions, "what the clock of this machine counts")
	flags.BoolVar(&o.quick, "quick", false, "less work, fewer repetitions")
	flags.BoolVar(&o.gate, "gate", false, "only what the gate looks at")
	only := flags.String("only", "", "only rows whose DISCIPLINE/ROW matches this expression")
	flags.IntVar(&o.repeat, "repeat", 0, "how often each row is measured")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var err error
	if o.only, err = regexp.Compile(*only); err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	b, err := newBench(o, out)
	if err != nil {
		return err
	}
	return b.run(o.disciplines())
}

// A bench has what all measurements need.
type bench struct {
	options
	files *files
	lock  sync.Mutex
	out   *json.Encoder
}

func newBench(o options, out io.Writer) (*bench, error) {
	settings, err := prepareGuest()
	if err != nil {
		return nil, err
	}
	files, err := makeFiles()
	if err != nil {
		return nil, err
	}
	b := &bench{options: o, files: files, out: json.NewEncoder(out)}
	return b, b.say(result.Event{Settings: append(settings, o.settings()...)})
}

func (b *bench) say(event result.Event) error {
	b.lock.Lock()
	defer b.lock.Unlock()
	return b.out.Encode(event)
}

// run measures one discipline after the other. A row that fails is told, and the others go on.
func (b *bench) run(all []discipline) error {
	var chosen []discipline
	planned := 0
	for _, d := range all {
		d.rows = b.chosen(d)
		if len(d.rows) > 0 {
			chosen = append(chosen, d)
			planned += len(d.rows) * d.repetitions(b.options)
		}
	}
	if len(chosen) == 0 {
		return fmt.Errorf("no row matches -only %s", b.only)
	}
	if err := b.say(result.Event{Planned: planned}); err != nil {
		return err
	}
	for _, d := range chosen {
		if err := b.measure(d); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) chosen(d discipline) (rows []row) {
	for _, one := range d.rows {
		if b.only.MatchString(d.Name+"/"+one.Name) && (!b.gate || one.gate) {
			rows = append(rows, one)
		}
	}
	return rows
}
