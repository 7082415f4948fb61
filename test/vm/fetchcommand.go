// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

func fetchCommand() *cobra.Command {
	var kernels []string
	var languages bool
	command := &cobra.Command{
		Use:     "fetch",
		Short:   "Download and build everything needed, and ask the mirror for newer kernels",
		Example: "  go run ./test/vm fetch\n  go run ./test/vm fetch -kernels 6.12",
		Args:    cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			fetcher, err := newFetcher()
			if err != nil {
				return err
			}
			if err := fetcher.fetchAll(command.Context(), kernels); err != nil || !languages {
				return err
			}
			_, err = fetcher.languages(command.Context())
			return err
		},
	}
	command.Flags().BoolVar(&languages, "languages", false, "the disk of --languages, too")
	command.Flags().StringSliceVar(&kernels, "kernels", kernelSeries, "`SERIES` to fetch, separated by commas")
	return command
}

func (f *fetcher) fetchAll(ctx context.Context, kernels []string) error {
	if err := f.renewIndex(ctx); err != nil {
		return err
	}
	for _, word := range kernels {
		booted, err := f.images(ctx, word)
		if err != nil {
			return err
		}
		fmt.Printf("%s\t%s\n", booted.kernel.Series, booted.kernel.Release)
	}
	return nil
}

func (f *fetcher) renewIndex(ctx context.Context) error {
	unlock, err := f.cache.lock(f.progress)
	if err != nil {
		return err
	}
	defer unlock()
	_, err = f.kernelIndex(ctx, true)
	return err
}

func kernelsCommand() *cobra.Command {
	var asJSON bool
	command := &cobra.Command{
		Use:   "kernels",
		Short: "List the kernels that the mirror offers and those that are cached",
		Args:  cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			fetcher, err := newFetcher()
			if err != nil {
				return err
			}
			rows, err := fetcher.kernelRows(command.Context())
			if err != nil {
				return err
			}
			if asJSON {
				encoder := json.NewEncoder(os.Stdout)
				encoder.SetIndent("", "\t")
				return encoder.Encode(rows)
			}
			printKernels(rows)
			return nil
		},
	}
	command.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return command
}

// A kernelRow is one line of the table.
type kernelRow struct {
	Series  string `json:"series"`
	Version string `json:"version"`
	Release string `json:"release"`
	Package string `json:"package"`
	Cached  bool   `json:"cached"`
	Newest  bool   `json:"newest"` // of its series: what the series means as a parameter
}

// kernelRows joins what is offered and what is cached, newest first.
func (f *fetcher) kernelRows(ctx context.Context) ([]kernelRow, error) {
	unlock, err := f.cache.lock(f.progress)
	if err != nil {
		return nil, err
	}
	defer unlock()
	index, err := f.kernelIndex(ctx, false)
	if err != nil {
		f.progress.warn("only what is cached is listed, as the mirror cannot be asked: %v", err)
	}
	cached, err := f.cache.cachedKernels()
	if err != nil {
		return nil, err
	}
	return joinKernels(index.Kernels, cached), nil
}

func joinKernels(offered, cached []*kernel) (rows []kernelRow) {
	inCache, listed, series := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, k := range cached {
		inCache[k.Release] = true
	}
	for _, k := range sortKernels(append(append([]*kernel{}, offered...), cached...)) {
		if listed[k.Release] {
			continue
		}
		rows = append(rows, kernelRow{Series: k.Series, Version: k.Version, Release: k.Release, Package: k.Package,
			Cached: inCache[k.Release], Newest: !series[k.Series]})
		listed[k.Release], series[k.Series] = true, true
	}
	return rows
}

func printKernels(rows []kernelRow) {
	table := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "SERIES\tVERSION\tPACKAGE\tCACHED\tNEWEST")
	word := map[bool]string{true: "yes", false: "-"}
	for _, row := range rows {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", row.Series, row.Version, row.Package, word[row.Cached], word[row.Newest])
	}
	table.Flush()
}
