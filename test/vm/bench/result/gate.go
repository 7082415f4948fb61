// SPDX-License-Identifier: Apache-2.0

package result

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
)

// A Baseline is what the costs of some rows were, each as a ratio to a reference that was measured in the same boot.
//
// A ratio, because the kernel under it changes every few weeks, by Debian's packages, and its costs with it: those fall
// on both. The instructions themselves are recorded too, for whoever looks into a difference, and not judged.
type Baseline struct {
	Kernel string        `json:"kernel"`
	Rows   []BaselineRow `json:"rows"`
}

// A BaselineRow is one ratio and how far it may rise.
type BaselineRow struct {
	Discipline string  `json:"discipline"`
	Row        string  `json:"row"`
	Reference  string  `json:"reference"`
	Ratio      float64 `json:"ratio"`
	// Tolerance is the part by which the ratio may rise. Boots of the same differ by much less.
	Tolerance float64 `json:"tolerance"`
	Cost      float64 `json:"cost"` // instructions for each unit of work, then
}

// A Verdict compares one row.
type Verdict struct {
	BaselineRow
	Now     float64 // the ratio
	NowCost float64
	Why     string // it fails; or empty
}

// Judge compares a run with the baseline. What was not measured fails.
func (b *Baseline) Judge(run *Run) []Verdict {
	var verdicts []Verdict
	for _, row := range b.Rows {
		verdict := Verdict{BaselineRow: row, Now: run.Ratio(row.Discipline, row.Row, row.Reference, Server),
			NowCost: run.Figure(row.Discipline, row.Row, Server).Median}
		switch {
		case verdict.Now == 0:
			verdict.Why = "not measured"
		case verdict.Now > row.Ratio*(1+row.Tolerance):
			verdict.Why = "dearer"
		}
		verdicts = append(verdicts, verdict)
	}
	return verdicts
}

// Failed counts the rows that failed.
func Failed(verdicts []Verdict) (n int) {
	for _, v := range verdicts {
		if v.Why != "" {
			n++
		}
	}
	return n
}

// InBoth returns verdicts of the same rows in two boots, where only what failed in both fails.
func InBoth(first, second []Verdict) []Verdict {
	both := make([]Verdict, len(first))
	for i := range first {
		both[i] = second[i]
		if first[i].Why == "" {
			both[i] = first[i]
		}
	}
	return both
}

// PrintVerdicts writes a table, and returns an error if anything failed.
func PrintVerdicts(out io.Writer, verdicts []Verdict) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "WORK\tROW\tREFERENCE\tBASELINE\tNOW\tNOW/BASELINE\tMAY BE\tINSTRUCTIONS THEN\tNOW\t")
	failed := Failed(verdicts)
	for _, v := range verdicts {
		fmt.Fprintf(table, "%s\t%s\t%s\t%.3f\t%.3f\t%.3f\t%.3f\t%.4g\t%.4g\t%s\n", v.Discipline, v.Row, v.Reference, v.Ratio, v.Now,
			v.Now/v.Ratio, 1+v.Tolerance, v.Cost, v.NowCost, v.Why)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if len(verdicts) == 0 {
		return errors.New("the baseline has no rows; record one: make bench-baseline")
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d rows cost more of the server's CPU than they did, or were not measured; if that is meant, record it: make bench-baseline",
			failed, len(verdicts))
	}
	return nil
}
