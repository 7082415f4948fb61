// SPDX-License-Identifier: Apache-2.0

package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/offloadd/offloadd/test/vm/bench/result"
)

// The committed baseline is of the rows that the gate measures, and of no others.
func TestTheBaselineIsOfTheGatesRows(t *testing.T) {
	var baseline result.Baseline
	if found, err := readJSON(filepath.Join("bench", "baseline.json"), &baseline); err != nil || !found {
		t.Fatalf("no baseline: %v", err)
	}
	if len(baseline.Rows) != len(gatedRows) {
		t.Errorf("%d rows, and the gate has %d", len(baseline.Rows), len(gatedRows))
	}
	for i, row := range baseline.Rows {
		if i < len(gatedRows) && (row.Discipline != gatedRows[i].Discipline || row.Row != gatedRows[i].Row || row.Reference != gatedRows[i].Reference) {
			t.Errorf("row %d is %+v, and the gate's is %+v", i, row, gatedRows[i])
		}
		if row.Ratio <= 0 || row.Cost <= 0 || row.Tolerance < minTolerance || row.Tolerance > 0.2 {
			t.Errorf("%+v: with such figures the gate lets through what it should not", row)
		}
	}
}

func TestBenchRefusesWhatItCannotDo(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"nothing to do":       {[]string{"bench"}, "--out, --gate and --record"},
		"two things":          {[]string{"bench", "--out", "x", "--gate", "y"}, "--out, --gate and --record"},
		"another mode":        {[]string{"bench", "--out", "x", "--mode", "guess"}, "guess"},
		"a gate by the clock": {[]string{"bench", "--gate", "x", "--mode", "wall"}, "varies"},
	} {
		root := rootCommand()
		root.SetArgs(test.args)
		if err := root.Execute(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
