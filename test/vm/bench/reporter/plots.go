// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"image/color"
	"os"
	"path/filepath"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/offloadd/offloadd/test/vm/bench/result"
)

// colours of kinds of rows, that can be told apart in grey, too.
var colours = map[string]color.Color{
	result.Ours:  color.RGBA{R: 0x0b, G: 0x5c, B: 0xad, A: 0xff},
	result.Peer:  color.RGBA{R: 0xe0, G: 0x8e, B: 0x2b, A: 0xff},
	result.Limit: color.RGBA{R: 0xb8, G: 0xb8, B: 0xb8, A: 0xff},
}

func plotName(run *result.Run, d result.Discipline) string {
	return fmt.Sprintf("%s-%s-%s.svg", d.Name, run.Series, run.Mode)
}

func drawAll(directory string, runs []*result.Run) error {
	for _, run := range runs {
		for _, d := range run.Disciplines {
			if run.Figure(d.Name, d.Baseline, d.Metric).Count == 0 {
				continue // nothing to compare with
			}
			if err := drawBars(filepath.Join(directory, plotName(run, d)), run, d); err != nil {
				return fmt.Errorf("draw %s: %w", plotName(run, d), err)
			}
		}
	}
	return nil
}

const (
	barWidth  = 0.5 * vg.Centimeter
	barPitch  = 0.8 * vg.Centimeter
	plotWidth = 18 * vg.Centimeter
)

// drawBars draws the cost of each row.
func drawBars(path string, run *result.Run, d result.Discipline) error {
	p := plot.New()
	p.Title.Text = d.Title + ", " + title(run)
	p.X.Label.Text = axis(run, d)
	p.X.Min = 0
	rows := slices.Clone(d.Rows)
	slices.Reverse(rows) // as the axis goes up
	var names []string
	for i, row := range rows {
		names = append(names, row.Name)
		bar, err := plotter.NewBarChart(plotter.Values{run.Figure(d.Name, row.Name, d.Metric).Median}, barWidth)
		if err != nil {
			return err
		}
		bar.Horizontal, bar.XMin, bar.Color, bar.LineStyle.Width = true, float64(i), colours[row.Kind], 0
		p.Add(bar)
	}
	p.NominalY(names...)
	height := vg.Length(len(rows))*barPitch + 2.5*vg.Centimeter
	canvas := vgsvg.New(plotWidth, height)
	p.Draw(draw.New(canvas))
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := canvas.WriteTo(file); err != nil {
		return err
	}
	return file.Close()
}

func axis(run *result.Run, d result.Discipline) string {
	switch {
	case d.Metric != result.Server:
		return "bytes of user memory of the server for each " + d.Unit
	case run.Mode == result.Wall:
		return "nanoseconds of the server's CPU for each " + d.Unit
	}
	return "instructions of the server for each " + d.Unit
}
