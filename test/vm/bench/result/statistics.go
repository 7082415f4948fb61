// SPDX-License-Identifier: Apache-2.0

package result

import "slices"

// A Figure is what several measurements of the same say.
type Figure struct {
	Median float64
	// Spread is half of the range, as a part of the median.
	Spread float64
	Count  int
}

// Summarize of nothing is the zero Figure.
func Summarize(values []float64) Figure {
	if len(values) == 0 {
		return Figure{}
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	figure := Figure{Median: sorted[middle], Count: len(sorted)}
	if len(sorted)%2 == 0 {
		figure.Median = (sorted[middle-1] + sorted[middle]) / 2
	}
	if figure.Median != 0 {
		figure.Spread = (sorted[len(sorted)-1] - sorted[0]) / 2 / figure.Median
	}
	return figure
}

// Values are those of a row in all its repetitions. A metric in microseconds of CPU or time is given as nanoseconds for
// each unit of work, which are instructions where the clock counts these.
func (r *Run) Values(discipline, row, metric string) (values []float64) {
	for _, sample := range r.Samples {
		value, measured := sample.Values[metric]
		if sample.Discipline != discipline || sample.Row != row || !measured {
			continue
		}
		if perUnit(metric) {
			value *= 1000 / sample.Values[Units]
		}
		values = append(values, value)
	}
	return values
}

func perUnit(metric string) bool {
	return slices.Contains([]string{Server, ServerUser, Application, Client, Backend, Elapsed, All}, metric)
}

// All is the sum of all CPU, for Figure only: work moves between the ends of a connection, as the kernel charges what
// arrives on the loopback device to whoever sent it.
const All = "all_us"

// Figure summarizes a row.
func (r *Run) Figure(discipline, row, metric string) Figure {
	if metric != All {
		return Summarize(r.Values(discipline, row, metric))
	}
	var sums []float64
	for _, part := range []string{Server, Application, Client, Backend} {
		for i, value := range r.Values(discipline, row, part) {
			if i == len(sums) {
				sums = append(sums, 0)
			}
			sums[i] += value
		}
	}
	return Summarize(sums)
}

// Ratio is one row's median as a part of another's, or 0 if either was not measured.
func (r *Run) Ratio(discipline, row, to, metric string) float64 {
	one, other := r.Figure(discipline, row, metric), r.Figure(discipline, to, metric)
	if other.Median == 0 {
		return 0
	}
	return one.Median / other.Median
}

// Best is the peer that costs least, and what it costs.
func (r *Run) Best(discipline Discipline, metric string) (Row, Figure) {
	var best Row
	var least Figure
	for _, row := range discipline.Rows {
		figure := r.Figure(discipline.Name, row.Name, metric)
		if row.Kind == Peer && figure.Count > 0 && (best.Name == "" || figure.Median < least.Median) {
			best, least = row, figure
		}
	}
	return best, least
}
