// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// readDebs calls visit for every file of the packages in dir. The path has no leading slash, and /bin, /sbin, /lib and
// /lib64 are where merged-/usr systems have them.
func readDebs(ctx context.Context, dir string, visit func(name string, header *tar.Header, body io.Reader) error) error {
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return err
	}
	if len(debs) == 0 {
		return fmt.Errorf("no packages in %s: the download gave nothing", dir)
	}
	for _, deb := range debs {
		if err := readDeb(ctx, deb, visit); err != nil {
			return fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
		}
	}
	return nil
}

// readDeb lets dpkg-deb do the decompression, as every machine with apt has it.
func readDeb(ctx context.Context, deb string, visit func(string, *tar.Header, io.Reader) error) error {
	command := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	pipe, err := command.StdoutPipe()
	if err != nil {
		return err
	}
	if err := command.Start(); err != nil {
		return err
	}
	err = readTar(pipe, func(header *tar.Header, body io.Reader) error {
		return visit(mergedUsr(header.Name), header, body)
	})
	if err == nil {
		_, err = io.Copy(io.Discard, pipe) // the padding; otherwise dpkg-deb dies of a broken pipe
	}
	return errors.Join(err, command.Wait())
}

// unpackDebs unpacks the packages in one directory into another, and removes them.
func unpackDebs(ctx context.Context, from, into string) error {
	debs, err := filepath.Glob(filepath.Join(from, "*.deb"))
	if err != nil {
		return err
	}
	if len(debs) == 0 {
		return fmt.Errorf("no packages in %s: the download gave nothing", from)
	}
	for _, deb := range debs {
		if output, err := exec.CommandContext(ctx, "dpkg-deb", "-x", deb, into).CombinedOutput(); err != nil {
			return fmt.Errorf("unpack %s: %w: %s", filepath.Base(deb), err, output)
		}
		if err := os.Remove(deb); err != nil {
			return err
		}
	}
	return nil
}

func readTar(in io.Reader, visit func(*tar.Header, io.Reader) error) error {
	archive := tar.NewReader(in)
	for {
		header, err := archive.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := visit(header, archive); err != nil {
			return err
		}
	}
}

func mergedUsr(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	first, _, below := strings.Cut(name, "/")
	switch first {
	case "bin", "sbin", "lib", "lib64":
		if below {
			return "usr/" + name
		}
	}
	return name
}

// debVersions are name_version of the packages in dir, for reports.
func debVersions(dir string) (versions []string) {
	debs, _ := filepath.Glob(filepath.Join(dir, "*.deb")) // the pattern is sound
	for _, deb := range debs {
		parts := strings.Split(filepath.Base(deb), "_")
		if len(parts) == 3 {
			versions = append(versions, parts[0]+" "+strings.ReplaceAll(parts[1], "%3a", ":"))
		}
	}
	return versions
}
