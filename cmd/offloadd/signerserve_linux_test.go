// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/tls"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/cmd/offloadd/internal/token/tokentest"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// TestServeWithAKeyInATPM: the whole way, with keys in the kernel. Connections live
// through the death of the signer, and the TPM keeps what it has through everything.
func TestServeWithAKeyInATPM(t *testing.T) {
	requireDaemon(t)
	i := newIssuer(t)
	tpm := tokentest.StartTPM(t)
	reference, public := tpm.Make(tokentest.P256, "")
	before := tpm.Objects()
	options := daemonOptions{
		settings: fmt.Sprintf("workers = 1\nworker_connections = 3\nsigner_user = \"%d\"", testSignerUID),
		listener: fmt.Sprintf("[[listener.certificate]]\nchain = %q\nkey = %q", i.chain(t, "tpm.test", public), reference),
	}
	d := startDaemon(t, sharedIdentity(t), options)
	d.serveApplication(echo)
	capture := ktlstest.StartCapture(t, d.port())
	connect := func(version uint16) *tls.Conn {
		t.Helper()
		c, err := d.dial(&tls.Config{RootCAs: i.roots, ServerName: "tpm.test", MinVersion: version, MaxVersion: version})
		if err == nil {
			t.Cleanup(func() { c.Close() })
			err = echoOnce(c)
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, d.log.dump())
		}
		return c
	}
	connect(tls.VersionTLS12)
	bystander := connect(tls.VersionTLS13)
	d.mustEcho() // with a key in a file; the worker's last
	d.waitFor("worker left", 1)
	unix.Kill(int(d.waitFor("signer ready", 1).number("signer_pid")), unix.SIGKILL)
	d.waitFor("signer ready", 2)
	connect(tls.VersionTLS12)
	connect(tls.VersionTLS13)
	if err := echoOnce(bystander); err != nil {
		t.Errorf("a connection from before: %v", err)
	}
	d.stop()
	if left := d.wait("signer left"); left.number("signed") != 2 || left.number("failed") != 0 {
		t.Errorf("the signer counts %v", left)
	}
	if n := d.log.count("worker died"); n != 0 {
		t.Errorf("%d workers died", n)
	}
	capture.AssertNoPlaintext(t, marker)

	// A daemon that is killed takes its signer with it.
	d = startDaemon(t, sharedIdentity(t), options)
	pid := int(d.wait("signer ready").number("signer_pid"))
	d.cmd.Process.Kill()
	expectExit(t, pid)
	if after := tpm.Objects(); after != before {
		t.Errorf("objects before:\n%safter:\n%s", before, after)
	}
}
