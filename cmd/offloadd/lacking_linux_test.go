// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// envLacks names a part of the confinement that the kernel is to lack. A filter around
// the process and its children answers the call as such a kernel does.
const envLacks = "OFFLOADD_TEST_LACKS"

func pretendToLack(part string) error {
	lacking := map[string][]rule{
		"":           nil,
		partSeccomp:  refuse(unix.ENOSYS, unix.SYS_SECCOMP),
		partLandlock: refuse(unix.EOPNOTSUPP, unix.SYS_LANDLOCK_CREATE_RULESET),
		partMemory:   refuse(unix.EPERM, unix.SYS_MLOCKALL),
	}
	list := lacking[part]
	if list == nil {
		return nil
	}
	for number := range uint32(600) { // all there are
		list = append(list, allow(number)...)
	}
	return loadFilter(list)
}

// TestWhatTheKernelLacksForConfinementIsSaid: without seccomp nothing starts, and
// without Landlock or locked memory the log says so.
func TestWhatTheKernelLacksForConfinementIsSaid(t *testing.T) {
	requireDaemon(t)
	id := sharedIdentity(t)
	t.Run("serve without seccomp", func(t *testing.T) {
		code, stderr := serveFails(t, envLacks+"="+partSeccomp, "--listen", "127.0.0.1:0", "--certificate", id.dir+"/ecdsa.pem",
			"--key", id.dir+"/ecdsa.key", "--application", openDir(t)+"/app.sock", "--worker-user", "60601")
		if code != exitMachine || !strings.Contains(stderr, "CONFIG_SECCOMP_FILTER") {
			t.Errorf("exit %d, %s", code, stderr)
		}
	})
	t.Run("a worker without seccomp", func(t *testing.T) {
		p := newPrison(t, os.Getpid())
		p.environ = append(p.environ, envLacks+"="+partSeccomp)
		if got, words := p.outcome(t, "open a file", ""); got != "exit status 1" || !strings.Contains(words, "CONFIG_SECCOMP_FILTER") {
			t.Errorf("%s\n%s", got, words)
		}
	})
	t.Run("Landlock", func(t *testing.T) {
		d := startDaemon(t, id, daemonOptions{settings: "workers = 1", lacks: partLandlock})
		d.serveApplication(echo)
		d.waitText("workers have no second fence: seccomp alone keeps them from files", errNoLandlock.Error())
		d.mustEcho()
	})
	t.Run("memory lock", func(t *testing.T) {
		d := startDaemon(t, id, daemonOptions{settings: "workers = 1", lacks: partMemory})
		d.serveApplication(echo)
		d.waitText("the memory of the daemon and its workers is not locked", "mlockall")
		d.mustEcho()
		waitAnyText(t, d, "offloadd handshake: memory is not locked")
	})
}

func TestCheckTellsWhatConfinesWorkers(t *testing.T) {
	if !ktlstest.InVM() {
		t.Skip("what this kernel has is not known")
	}
	_, out, stderr := call("", "check", "--json", "--worker-user", "60601")
	var report checkReport
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatalf("%v: %s", err, stderr)
	}
	for name, want := range map[string]checkLine{
		"seccomp": {State: "yes", Needed: true}, "Landlock": {State: "yes", Detail: "ABI "},
	} {
		i := slices.IndexFunc(report.Lines, func(l checkLine) bool { return l.Name == name })
		if i < 0 || report.Lines[i].State != want.State || report.Lines[i].Needed != want.Needed || !strings.HasPrefix(report.Lines[i].Detail, want.Detail) {
			t.Errorf("no line %s like %+v in %s", name, want, out)
		}
	}
}
