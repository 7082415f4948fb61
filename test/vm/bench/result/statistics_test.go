// SPDX-License-Identifier: Apache-2.0

package result

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
)

func near(a, b float64) bool { return math.Abs(a-b) < 1e-9 }

func TestSummarizeIsMedianAndHalfRange(t *testing.T) {
	for name, test := range map[string]struct {
		values []float64
		want   Figure
	}{
		"nothing":         {nil, Figure{}},
		"one":             {[]float64{7}, Figure{7, 0, 1}},
		"odd, not sorted": {[]float64{3, 1, 2}, Figure{2, 0.5, 3}},
		"even":            {[]float64{4, 1, 2, 3}, Figure{2.5, 0.6, 4}},
		"an outlier":      {[]float64{100, 100, 100, 100, 300}, Figure{100, 1, 5}},
		"all zero":        {[]float64{0, 0}, Figure{0, 0, 2}},
	} {
		if got := Summarize(test.values); !near(got.Median, test.want.Median) || !near(got.Spread, test.want.Spread) || got.Count != test.want.Count {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
	values := []float64{2, 1}
	if Summarize(values); values[0] != 2 {
		t.Error("the caller's values were sorted")
	}
}

func sample(row string, repetition int, server, client float64) Sample {
	return Sample{Discipline: "d", Row: row, Repetition: repetition,
		Values: map[string]float64{Server: server, Client: client, Units: 1000, "p50_us": 5}}
}

func testRun() *Run {
	return &Run{
		Disciplines: []Discipline{{Name: "d", Rows: []Row{{Name: "ours", Kind: Ours}, {Name: "slow", Kind: Peer},
			{Name: "fast", Kind: Peer}, {Name: "floor", Kind: Limit}, {Name: "absent", Kind: Peer}}}},
		Samples: []Sample{sample("ours", 1, 100, 50), sample("slow", 1, 300, 50), sample("fast", 1, 200, 50),
			sample("floor", 1, 10, 50), sample("ours", 2, 104, 60), {Discipline: "other", Row: "ours", Values: map[string]float64{Server: 9e9, Units: 1}}},
	}
}

func TestFiguresAreOfOneRowAndOneUnit(t *testing.T) {
	run := testRun()
	if got := run.Figure("d", "ours", Server); !near(got.Median, 102) || got.Count != 2 {
		t.Errorf("102 us for 1000 units are 102 ns each: %+v", got)
	}
	if got := run.Figure("d", "ours", All); !near(got.Median, 157) {
		t.Errorf("server and client together: %+v", got)
	}
	if got := run.Figure("d", "ours", "p50_us"); !near(got.Median, 5) {
		t.Errorf("a percentile is not divided: %+v", got)
	}
	if got := run.Ratio("d", "ours", "fast", Server); !near(got, 0.51) {
		t.Errorf("ratio %v", got)
	}
	if got := run.Ratio("d", "ours", "absent", Server); got != 0 {
		t.Errorf("ratio %v to what was not measured", got)
	}
	if best, figure := run.Best(run.Disciplines[0], Server); best.Name != "fast" || !near(figure.Median, 200) {
		t.Errorf("the best peer is %+v, %+v", best, figure)
	}
}

func TestEventsMakeTheRun(t *testing.T) {
	var lines strings.Builder
	encoder := json.NewEncoder(&lines)
	want := sample("ours", 1, 1, 2)
	for _, event := range []Event{{Planned: 7}, {Settings: []string{"one"}}, {Discipline: &Discipline{Name: "d"}}, {Sample: &want},
		{Failure: &Failure{Row: "x", Why: "y"}}} {
		if err := encoder.Encode(event); err != nil {
			t.Fatal(err)
		}
	}
	run := &Run{}
	planned := 0
	if err := ReadEvents(strings.NewReader(lines.String()), func(e Event) { run.Add(e); planned += e.Planned }); err != nil {
		t.Fatal(err)
	}
	if planned != 7 || len(run.Settings) != 1 || len(run.Disciplines) != 1 || len(run.Failures) != 1 || len(run.Samples) != 1 || run.Samples[0].Values[Client] != 2 {
		t.Errorf("%d, %+v", planned, run)
	}
	if err := ReadEvents(strings.NewReader("panic: no event\n"), run.Add); err == nil || !strings.Contains(err.Error(), "panic: no event") {
		t.Errorf("a line that is no event: %v", err)
	}
}
