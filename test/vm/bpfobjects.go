// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

// bpfSuffix is that of a source of which one object is made.
const bpfSuffix = ".bpf.c"

func bpfCommand() *cobra.Command {
	var check bool
	command := &cobra.Command{
		Use:   "bpf [--check] DIRECTORY",
		Short: "Build the BPF objects of a directory",
		Long: `Makes DIRECTORY/NAME.o of each DIRECTORY/src/NAME.bpf.c, always the same bytes of the same source: with one compiler,
fetched as all else is, in a root directory of its own. Needs root.`,
		Example: "  go run ./test/vm bpf ./bpf\n  go run ./test/vm bpf --check ./bpf",
		Args:    cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			fetcher, err := newFetcher()
			if err != nil {
				return err
			}
			objects, err := fetcher.bpfObjects(command.Context(), filepath.Join(args[0], "src"))
			if err != nil {
				return err
			}
			if check {
				return compareObjects(args[0], objects)
			}
			return writeObjects(args[0], objects)
		},
	}
	command.Flags().BoolVar(&check, "check", false, "compare with the objects that are there, and change nothing")
	return command
}

// writeObjects leaves files that are as they should be, for the sake of make.
func writeObjects(dir string, objects map[string][]byte) error {
	for name, object := range objects {
		file := filepath.Join(dir, name)
		if there, err := os.ReadFile(file); err == nil && bytes.Equal(there, object) {
			continue
		}
		if err := os.WriteFile(file, object, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// compareObjects wants exactly these objects to be in a directory.
func compareObjects(dir string, objects map[string][]byte) error {
	there, err := filepath.Glob(filepath.Join(dir, "*.o"))
	if err != nil {
		return err
	}
	for _, file := range there {
		if objects[filepath.Base(file)] == nil {
			return &exitError{code: 1, err: fmt.Errorf("%s has no source; remove it", file)}
		}
	}
	for name, object := range objects {
		file := filepath.Join(dir, name)
		committed, err := os.ReadFile(file)
		if err != nil {
			return &exitError{code: 1, err: fmt.Errorf("%w; run: make bpf", err)}
		}
		if !bytes.Equal(committed, object) {
			return &exitError{code: 1, err: fmt.Errorf("%s is not what its source compiles to; run: make bpf", file)}
		}
	}
	return nil
}

// bpfObjects compiles every source in a directory and returns the objects by name.
func (f *fetcher) bpfObjects(ctx context.Context, sources string) (map[string][]byte, error) {
	files, err := readFiles(sources, "*.[ch]")
	if err != nil {
		return nil, err
	}
	tools, err := f.compiler(ctx)
	if err != nil {
		return nil, err
	}
	place, err := os.MkdirTemp(filepath.Join(tools.root, "build"), "bpf-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(place)
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(place, name), text, 0o644); err != nil {
			return nil, err
		}
	}
	objects := map[string][]byte{}
	for name := range files {
		if stem, ok := strings.CutSuffix(name, bpfSuffix); ok {
			if objects[stem+".o"], err = tools.compileBPF(ctx, place, name, stem+".o"); err != nil {
				return nil, err
			}
		}
	}
	if len(objects) == 0 {
		return nil, fmt.Errorf("%s: no file in it ends in %s", sources, bpfSuffix)
	}
	return objects, nil
}

func (f *fetcher) compiler(ctx context.Context) (*toolchain, error) {
	unlock, err := f.cache.lock(f.progress)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return f.toolchain(ctx, compilerPackages)
}

// compileBPF compiles one file in a directory below the toolchain's root. The object keeps its BTF and loses its other
// debugging information. Its lines name the source by a path that is the same everywhere.
func (t *toolchain) compileBPF(ctx context.Context, place, source, object string) ([]byte, error) {
	inside := "/build/" + filepath.Base(place) + "/"
	// Instructions of version 3 are those of all kernels since 5.1.
	if err := t.run(ctx, "clang-19", "--target=bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter",
		"-ffile-prefix-map="+inside+"=", "-c", inside+source, "-o", inside+object); err != nil {
		return nil, err
	}
	if err := t.run(ctx, "llvm-strip-19", "--strip-debug", inside+object); err != nil {
		return nil, err
	}
	return os.ReadFile(filepath.Join(place, object))
}

// readFiles reads the files of a directory whose names match.
func readFiles(dir, pattern string) (map[string][]byte, error) {
	names, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for _, name := range names {
		if files[filepath.Base(name)], err = os.ReadFile(name); err != nil {
			return nil, err
		}
	}
	return files, nil
}
