// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// An apt reads Debian's package lists and downloads packages without touching the system: its own sources, lists and
// caches, and a dpkg status that says nothing is installed, so that every dependency is downloaded.
//
// The mirror, proxies and keys are the machine's own.
type apt struct {
	dir      string
	suites   []suite
	target   string // the suite whose versions are preferred
	progress *progress
}

// keyring signs every suite. It comes with the package debian-archive-keyring, which Debian always has.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// setUp writes the private configuration.
func (a *apt) setUp(ctx context.Context) error {
	for _, dir := range []string{"lists/partial", "empty/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.dir, dir), 0o755); err != nil {
			return err
		}
	}
	mirrors, err := a.findMirrors(ctx)
	if err != nil {
		return err
	}
	for name, content := range map[string]string{
		"status":       "",
		"sources.list": sourcesList(mirrors, fileExists(keyring), a.suites),
		"apt.conf":     a.configuration(),
	} {
		if err := os.WriteFile(filepath.Join(a.dir, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// configuration is read after the machine's own, so it must undo that one's hooks, which may be programs.
func (a *apt) configuration() string {
	return fmt.Sprintf(`#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
Dir::Etc::sourcelist "%[1]s/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "%[1]s";
Dir::State::lists "%[1]s/lists";
Dir::State::status "%[1]s/status";
Dir::Cache "%[1]s/cache";
Dir::Cache::archives "%[1]s/cache/archives";
Dir::Cache::pkgcache "%[1]s/cache/pkgcache.bin";
Dir::Cache::srcpkgcache "";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
APT::Get::Assume-Yes "true";
Acquire::Retries "2";
Acquire::http::Timeout "30";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
`, a.dir)
}

type mirrors struct{ main, security string }

// releaseURI matches apt's list of what an update would fetch.
var releaseURI = regexp.MustCompile(`^'([^']+)/dists/([^']+)/InRelease' `)

// debianSuite is what Debian calls a suite. Third parties use the bare code names too, but none has -updates.
var debianSuite = regexp.MustCompile(`^([a-z]+)(-updates|-backports|-security|/updates)?$`)

// findMirrors asks apt which mirrors this machine uses. An update that only prints addresses needs no network, and
// works where no list was ever fetched.
func (a *apt) findMirrors(ctx context.Context) (mirrors, error) {
	command := exec.CommandContext(ctx, "apt-get", "update", "--print-uris",
		"-o", "Dir::State::lists="+filepath.Join(a.dir, "empty"))
	output, err := command.Output()
	if err != nil {
		return mirrors{}, fmt.Errorf("ask apt-get for this machine's mirror: %w%s; packages come from Debian through apt",
			err, stderrOf(err))
	}
	found := parseMirrors(string(output))
	if found.main == "" {
		return mirrors{}, errors.New("this machine's apt configuration names no Debian mirror (a suite with -updates or " +
			"-backports, or an address that ends in /debian); add one to /etc/apt/sources.list.d")
	}
	return found, nil
}

func parseMirrors(output string) mirrors {
	var found mirrors
	var guess string
	for line := range strings.Lines(output) {
		match := releaseURI.FindStringSubmatch(line)
		if match == nil {
			continue
		}
		uri, name := match[1], debianSuite.FindStringSubmatch(match[2])
		switch {
		case name == nil:
		case name[2] == "-security" || name[2] == "/updates":
			found.security = cmp.Or(found.security, uri)
		case name[2] != "":
			found.main = cmp.Or(found.main, uri)
		case strings.HasSuffix(strings.TrimSuffix(uri, "/"), "/debian"):
			guess = cmp.Or(guess, uri)
		}
	}
	found.main = cmp.Or(found.main, guess)
	return found
}

func sourcesList(from mirrors, signed bool, suites []suite) string {
	var list strings.Builder
	options := "[arch=amd64]"
	if signed {
		options = "[arch=amd64 signed-by=" + keyring + "]"
	}
	for _, suite := range suites {
		uri := from.main
		if suite.security {
			uri = from.security
		}
		if uri != "" {
			fmt.Fprintf(&list, "deb %s %s %s main\n", options, uri, suite.name)
		}
	}
	return list.String()
}

// update fetches the package lists.
func (a *apt) update(ctx context.Context) error {
	a.progress.step("package lists")
	if err := a.setUp(ctx); err != nil {
		return err
	}
	if err := a.run(ctx, a.dir, "apt-get", "update", "-o", "APT::Update::Error-Mode=any"); err != nil {
		return fmt.Errorf("fetch package lists: %w", err)
	}
	a.progress.done(fmt.Sprintf("%d suites", len(a.suites)))
	return nil
}

// install downloads packages of the preferred suite with all their dependencies into dir.
func (a *apt) install(ctx context.Context, dir string, packages []string) error {
	if err := os.MkdirAll(filepath.Join(dir, "partial"), 0o755); err != nil {
		return err
	}
	arguments := append([]string{"install", "--download-only", "-t", a.target,
		"-o", "Dir::Cache::archives=" + dir}, packages...)
	return a.run(ctx, dir, "apt-get", arguments...)
}

// download gets exactly these packages, each as name=version, into dir.
func (a *apt) download(ctx context.Context, dir string, packages []string) error {
	return a.run(ctx, dir, "apt-get", append([]string{"download"}, packages...)...)
}

// show returns every known version of the packages.
func (a *apt) show(ctx context.Context, packages ...string) ([]stanza, error) {
	arguments := append([]string{"-c", filepath.Join(a.dir, "apt.conf"), "show"}, packages...)
	output, err := exec.CommandContext(ctx, "apt-cache", arguments...).Output()
	if err != nil {
		return nil, fmt.Errorf("apt-cache show %s: %w%s", strings.Join(packages, " "), err, stderrOf(err))
	}
	return parseStanzas(string(output)), nil
}

// run starts an apt program and shows its progress, which apt reports on a descriptor of our choice.
func (a *apt) run(ctx context.Context, dir, program string, arguments ...string) error {
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	defer reader.Close()
	arguments = append([]string{"-c", filepath.Join(a.dir, "apt.conf"), "-q", "-o", "APT::Status-Fd=3"}, arguments...)
	command := exec.CommandContext(ctx, program, arguments...)
	var said bytes.Buffer
	command.Dir, command.Stderr, command.ExtraFiles = dir, &said, []*os.File{writer}
	err = command.Start()
	writer.Close()
	if err != nil {
		return fmt.Errorf("%s: %w; this needs a Debian machine with apt", program, err)
	}
	a.follow(reader)
	if err := command.Wait(); err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(said.String()))
	}
	return nil
}

func (a *apt) follow(status io.Reader) {
	lines := bufio.NewScanner(status)
	for lines.Scan() {
		if percent, ok := parseStatus(lines.Text()); ok {
			a.progress.percent(percent)
		}
	}
}

// parseStatus reads a line like "dlstatus:1:37.9000:Retrieving file 1 of 7".
func parseStatus(line string) (percent float64, ok bool) {
	fields := strings.SplitN(line, ":", 4)
	if len(fields) != 4 || fields[0] != "dlstatus" {
		return 0, false
	}
	percent, err := strconv.ParseFloat(fields[2], 64)
	return percent, err == nil
}

// A stanza is one package's description.
type stanza map[string]string

func parseStanzas(output string) []stanza {
	var all []stanza
	for block := range strings.SplitSeq(output, "\n\n") {
		one := stanza{}
		for line := range strings.SplitSeq(block, "\n") {
			name, value, found := strings.Cut(line, ": ")
			if found && !strings.HasPrefix(line, " ") {
				one[name] = value
			}
		}
		if one["Package"] != "" {
			all = append(all, one)
		}
	}
	return all
}

// pinned is a dependency on exactly one version: "name (= version)".
var pinned = regexp.MustCompile(`^([a-z0-9][a-z0-9+.-]*) \(= ([^)]+)\)$`)

// pinnedDependencies are the packages built together with this one.
func (s stanza) pinnedDependencies() (names []string) {
	for dependency := range strings.SplitSeq(s["Depends"], ", ") {
		if match := pinned.FindStringSubmatch(dependency); match != nil && match[2] == s["Version"] {
			names = append(names, match[1])
		}
	}
	return names
}

// stderrOf is what a program that failed said, for an error message.
func stderrOf(err error) string {
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && len(exit.Stderr) > 0 {
		return ": " + strings.TrimSpace(string(exit.Stderr))
	}
	return ""
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
