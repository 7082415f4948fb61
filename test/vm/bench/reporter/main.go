// SPDX-License-Identifier: Apache-2.0

// Reporter makes REPORT.md and its plots of what `vm bench` has measured: of all runs in a directory, which it is given.
// It is a program of its own, as what draws would make each virtual machine's init larger.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/offloadd/offloadd/test/vm/bench/result"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: reporter DIRECTORY, that holds what vm bench wrote")
		os.Exit(2)
	}
	if err := report(os.Args[1]); err != nil {
		fmt.Fprintf(os.Stderr, "reporter: %v\n", err)
		os.Exit(1)
	}
}

func report(directory string) error {
	runs, err := readRuns(directory)
	if err != nil {
		return err
	}
	if err := drawAll(directory, runs); err != nil {
		return err
	}
	path := filepath.Join(directory, "REPORT.md")
	if err := os.WriteFile(path, []byte(write(runs)), 0o644); err != nil {
		return err
	}
	fmt.Println(path)
	return nil
}

// readRuns returns them in the order of their kernels' age; what counted instructions comes first.
func readRuns(directory string) (runs []*result.Run, err error) {
	files, err := filepath.Glob(filepath.Join(directory, "*.json"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		run := &result.Run{}
		if err := json.Unmarshal(data, run); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if run.Schema != result.Schema {
			return nil, fmt.Errorf("%s has schema %d, not %d: measure anew", file, run.Schema, result.Schema)
		}
		runs = append(runs, run)
	}
	if len(runs) == 0 {
		return nil, errors.New("no run of vm bench in " + directory)
	}
	slices.SortFunc(runs, func(a, b *result.Run) int {
		if a.Mode != b.Mode {
			return strings.Compare(a.Mode, b.Mode)
		}
		return len(b.Series) - len(a.Series) // 6.12, 6.1, 7
	})
	return runs, nil
}
