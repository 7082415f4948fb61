// SPDX-License-Identifier: Apache-2.0

package result

import (
	"strings"
	"testing"
)

func TestTheGateLetsThroughWhatIsWithinTheTolerance(t *testing.T) {
	for name, test := range map[string]struct {
		row  BaselineRow
		why  string
		fail bool
	}{
		"as it was":         {BaselineRow{Row: "ours", Reference: "fast", Ratio: 0.51, Tolerance: 0.05}, "", false},
		"a little dearer":   {BaselineRow{Row: "ours", Reference: "fast", Ratio: 0.49, Tolerance: 0.05}, "", false},
		"dearer":            {BaselineRow{Row: "ours", Reference: "fast", Ratio: 0.48, Tolerance: 0.05}, "dearer", true},
		"cheaper":           {BaselineRow{Row: "ours", Reference: "fast", Ratio: 0.9, Tolerance: 0.05}, "", false},
		"not measured":      {BaselineRow{Row: "absent", Reference: "fast", Ratio: 1, Tolerance: 0.05}, "not measured", true},
		"without reference": {BaselineRow{Row: "ours", Reference: "absent", Ratio: 1, Tolerance: 0.05}, "not measured", true},
	} {
		test.row.Discipline = "d"
		verdicts := (&Baseline{Rows: []BaselineRow{test.row}}).Judge(testRun())
		var table strings.Builder
		err := PrintVerdicts(&table, verdicts)
		if verdicts[0].Why != test.why || (err != nil) != test.fail || !strings.Contains(table.String(), test.row.Row) {
			t.Errorf("%s: %+v, %v", name, verdicts, err)
		}
	}
	if err := PrintVerdicts(&strings.Builder{}, nil); err == nil {
		t.Error("a baseline without rows passes")
	}
}

func TestARowFailsOnlyIfItDoesInTwoBoots(t *testing.T) {
	verdicts := func(whys ...string) (all []Verdict) {
		for _, why := range whys {
			all = append(all, Verdict{Why: why})
		}
		return all
	}
	both := InBoth(verdicts("", "", "dearer", "dearer"), verdicts("", "dearer", "", "not measured"))
	for i, want := range []string{"", "", "", "not measured"} {
		if both[i].Why != want {
			t.Errorf("row %d: %q, want %q", i, both[i].Why, want)
		}
	}
	if n := Failed(both); n != 1 {
		t.Errorf("%d failed", n)
	}
}
