// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/offloadd/offloadd/blob/handoff"
)

// TestTheApplicationSocketIsForItsUser: nobody else, beside root, is given a
// connection, and being refused disturbs nobody.
func TestTheApplicationSocketIsForItsUser(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{listener: `application_user = "60602"`})
	for uid, want := range map[uint32]string{60602: "connected", 60603: "permission denied", 60601: "permission denied"} {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestApplicationOfAnotherUserProcess$")
		cmd.Env = append(os.Environ(), "OFFLOADD_TEST_DIAL="+d.socket)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := startUnprivileged(cmd, uid, uid); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil || !strings.Contains(out.String(), want) {
			t.Errorf("uid %d: %v, %s; want %q", uid, err, out.String(), want)
		}
	}
	d.wait("application gone")
	if n := d.log.count("application connected"); n != 1 {
		t.Errorf("%d applications were let in\n%s", n, d.log.dump())
	}
	d.serveApplication(echo)
	d.mustEcho()
}

// TestApplicationOfAnotherUserProcess is the process that connects.
func TestApplicationOfAnotherUserProcess(t *testing.T) {
	path := os.Getenv("OFFLOADD_TEST_DIAL")
	if path == "" {
		return
	}
	said := "connected"
	if c, err := handoff.Dial(path); err != nil {
		said = err.Error()
	} else {
		c.Close()
	}
	fmt.Println(said)
}
