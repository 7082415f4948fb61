// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"bytes"
	"crypto/tls"
	_ "embed"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

//go:embed testdata/KeyLimits.java
var keyLimits []byte

// TestLanguagesKeyUpdatesByVolume: Java changes its key after so many bytes, of its own
// accord, in the middle of what it writes; and follows ours.
func TestLanguagesKeyUpdatesByVolume(t *testing.T) {
	if _, err := exec.LookPath("java"); err != nil {
		if os.Getenv("OFFLOADD_EXPECT_LANGUAGES") != "" {
			t.Fatal(err)
		}
		t.Skip("no Java")
	}
	requireRekey(t)
	const volume = 12 << 20
	const leastUpdates = 8 // Java counts in its own way, and late
	source := filepath.Join(t.TempDir(), "KeyLimits.java")
	if err := os.WriteFile(source, keyLimits, 0o600); err != nil {
		t.Fatal(err)
	}
	l := ktlstest.Listen(t)
	cert, _, _ := newIdentity(t)
	var out bytes.Buffer
	java := exec.Command("java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", source, fmt.Sprint(l.Addr().(*net.TCPAddr).Port), fmt.Sprint(volume))
	java.Stdout, java.Stderr = &out, &out
	if err := java.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- java.Wait() }()
	t.Cleanup(func() { java.Process.Kill() })
	l.SetDeadline(time.Now().Add(time.Minute))
	tcp, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err, out.String())
	}
	defer tcp.Close()
	k := keepSession(t, tcp, blob.Server, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
	k.conn.SetDeadline(time.Now().Add(2 * time.Minute))
	block := make([]byte, 64<<10)
	for at := 0; at < volume; {
		n, err := k.conn.Read(block)
		if err != nil {
			t.Fatalf("after %d bytes: %v\n%s", at, err, out.String())
		}
		if at>>20 != (at+n)>>20 {
			if err := k.conn.UpdateKey(false); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := k.conn.Write(block[:n]); err != nil {
			t.Fatal(err)
		}
		at += n
	}
	if n, err := k.conn.Read(block); n != 0 || err != io.EOF {
		t.Errorf("%d bytes, %v; want the end", n, err)
	}
	var read, write uint32
	_, epochs, _ := strings.Cut(k.custody.String(), "epochs ")
	if _, err := fmt.Sscanf(epochs, "%d and %d", &read, &write); err != nil || read < leastUpdates || write < leastUpdates {
		t.Errorf("epochs %d and %d, want %d at least", read, write, leastUpdates)
	}
	if err := k.conn.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil || !strings.HasPrefix(out.String(), "equal") {
		t.Errorf("%v\n%s", err, out.String())
	}
}
