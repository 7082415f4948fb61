// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
)

// TestRevokingErasesTheKeysWhereTheKernelCan: in the socket that an application still
// holds; elsewhere it says with whom they stay, and why.
func TestRevokingErasesTheKeysWhereTheKernelCan(t *testing.T) {
	requireDaemon(t)
	features, err := ktls.Probe(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	d := startDaemon(t, sharedIdentity(t), daemonOptions{})
	held := make(chan *ktls.Conn, 2)
	d.serveApplication(func(c net.Conn) { held <- c.(*ktls.Conn) })
	for i, version := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			config := d.clientConfig()
			only(t, map[uint16]blob.CipherSuite{
				tls.VersionTLS13: blob.TLS_AES_128_GCM_SHA256, tls.VersionTLS12: blob.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
			}[version], config)
			c, err := d.dial(config)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			conn := <-held
			defer conn.Close()
			before := [][]byte{cryptoInfoOf(t, conn, optionTX, 40), cryptoInfoOf(t, conn, optionRX, 40)}
			socket := d.waitFor("installed", i+1).number("socket")
			code, out, stderr := call("", "revoke", "--control", d.control, "--json", fmt.Sprint(socket))
			var report revokeReport
			if err := json.Unmarshal([]byte(out), &report); code != exitOK || err != nil || len(report.Sockets) != 1 {
				t.Fatalf("exit %d, %v: %s%s", code, err, out, stderr)
			}
			r := report.Sockets[0]
			if len(r.Holders) != 1 || r.Holders[0].PID != os.Getpid() {
				t.Errorf("the holders are %v, not process %d", r.Holders, os.Getpid())
			}
			erased := version == tls.VersionTLS13 && features.Err(ktls.FeatureRekeyTX) == nil
			if want := map[bool]string{true: keysErased, false: keysKept}[erased]; r.Keys != want || (r.KeysDetail == "") != erased {
				t.Errorf("keys %q (%s), want %q", r.Keys, r.KeysDetail, want)
			}
			for j, option := range []int{optionTX, optionRX} {
				// struct tls12_crypto_info_aes_gcm_128: the key is at 12.
				same := bytes.Equal(before[j][12:28], cryptoInfoOf(t, conn, option, 40)[12:28])
				if same == erased {
					t.Errorf("option %d: the key is the same: %v", option, same)
				}
			}
		})
	}
}

// TestTheHolderOfARevokedSocketIsNamed: here the daemon itself, which waits for an
// application. (Under guard the command could not look into it.)
func TestTheHolderOfARevokedSocketIsNamed(t *testing.T) {
	requireDaemon(t)
	d := startDaemon(t, sharedIdentity(t), daemonOptions{settings: "guard = \"off\"\napplication_timeout = \"3s\""})
	c, err := d.dial(d.clientConfig()) // no application takes it
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	socket := fmt.Sprint(d.wait("installed").number("socket"))
	time.Sleep(50 * time.Millisecond)
	code, out, stderr := call("", "revoke", "--control", d.control, socket)
	if code != exitOK || !strings.Contains(out, socket+" ended, keys ") {
		t.Errorf("exit %d: %s%s", code, out, stderr)
	}
	if pid := fmt.Sprintf(" pid %d (", d.cmd.Process.Pid); !strings.Contains(out, pid) && !strings.Contains(out, "erased") {
		t.Errorf("the daemon holds the socket, and is not named: %s", out)
	}
}
