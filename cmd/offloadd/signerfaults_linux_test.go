// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/cmd/offloadd/internal/signer"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/token/tokentest"
)

// withPIN writes a PIN file and names it in a reference.
func withPIN(t *testing.T, i *issuer, reference, pin string) (string, string) {
	t.Helper()
	path := filepath.Join(i.dir, "pin-"+t.Name()[strings.LastIndexByte(t.Name(), '/')+1:])
	if err := os.WriteFile(path, []byte(pin+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return reference + "?pin-source=file:" + path, path
}

func TestAKeyThatCannotBeUsedStopsTheStart(t *testing.T) {
	requireHost(t)
	i := newIssuer(t)
	tpm := tokentest.StartTPM(t)
	reference, public := tpm.Make(tokentest.P256, tokentest.PIN)
	open, other := tpm.Make(tokentest.P256, "")
	chain, otherChain := i.chain(t, "web.test", public), i.chain(t, "web.test", other)
	empty := filepath.Join(i.dir, "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wrong, _ := withPIN(t, i, reference, tokentest.WrongPIN)
	cases := []struct {
		name        string
		certificate certificateConfig
		want        string // in the error
		said        string // by a worker
	}{
		{"wrong PIN", certificateConfig{chain, wrong}, "refused the PIN", ""},
		{"no PIN", certificateConfig{chain, reference}, "refused the PIN", ""},
		{"no PIN file", certificateConfig{chain, reference + "?pin-source=file:/none"}, "open /none: no such file", ""},
		{"an empty PIN file", certificateConfig{chain, reference + "?pin-source=file:/dev/null"}, "want one line of 1 to 255 bytes", ""},
		{"no object", certificateConfig{chain, "tpm:handle=0x81000777;device=" + tpm.Socket}, "no object with this handle", ""},
		{"no TPM", certificateConfig{chain, open + "-none"}, "no such file", ""},
		{"the certificate of another key", certificateConfig{chain, open}, "did not get ready", "the key in the token is not that of the certificate"},
		{"an empty chain", certificateConfig{empty, open}, "did not get ready", "no PEM certificate"},
	}
	if hasPKCS11(t) {
		hsm := tokentest.NewSoftHSM(t, testSignerUID)
		hsm.MakeToken("web")
		hsm.Import("web", "tls", "01", newECDSA(t))
		hsm.Import("web", "tls", "02", newECDSA(t))
		right := hsm.PINFile(tokentest.PIN)
		uri := func(path string) certificateConfig { return certificateConfig{chain, hsm.URI(path, right)} }
		cases = append(cases, []struct {
			name        string
			certificate certificateConfig
			want        string
			said        string
		}{
			{"PKCS#11, wrong PIN", certificateConfig{chain, hsm.URI("token=web;id=%01", hsm.PINFile(tokentest.WrongPIN))}, "refused the PIN", ""},
			{"PKCS#11, no token", uri("token=wob;id=%01"), "none of the", ""},
			{"PKCS#11, no object", uri("token=web;id=%03"), "no such private key", ""},
			{"PKCS#11, two objects", uri("token=web;object=tls"), "more than one private key", ""},
			{"PKCS#11, the certificate of another key", uri("token=web;id=%01"), "did not get ready", "the key in the token is not that of the certificate"},
			{"PKCS#11, no module", certificateConfig{chain, "pkcs11:token=web;id=%01?module-path=/none.so"}, "/none.so cannot be loaded", ""},
		}...)
	}
	before := tpm.Objects()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s, err := trySigningPool(t, i, nil, c.certificate)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want an error with %q", err, c.want)
			}
			if said := s.log.dump(); !strings.Contains(said, c.said) {
				t.Errorf("nobody said %q but\n%s", c.said, said)
			}
			noPINs(t, s.log.dump()+err.Error())
		})
	}
	if after := tpm.Objects(); after != before {
		t.Errorf("objects before:\n%safter:\n%s", before, after)
	}
	if c, err := trySigningPool(t, i, nil, certificateConfig{otherChain, open}); err != nil {
		t.Errorf("the right one: %v\n%s", err, c.log.dump())
	}
}

func noPINs(t *testing.T, text string) {
	t.Helper()
	for _, pin := range []string{tokentest.PIN, tokentest.WrongPIN} {
		if strings.Contains(text, pin) {
			t.Errorf("a PIN is told:\n%s", text)
		}
	}
}

func TestSignerUserIsAUserOfItsOwn(t *testing.T) {
	requireHost(t)
	i := newIssuer(t)
	for _, user := range []string{"0", "60601", "no-such-user"} {
		_, err := trySigningPool(t, i, func(c *config) { c.SignerUser = user }, certificateConfig{"/c", "tpm:handle=0x81000001"})
		if err == nil || !strings.Contains(err.Error(), "signer_user") {
			t.Errorf("signer_user %s: %v", user, err)
		}
	}
	if s, err := trySigningPool(t, i, func(c *config) { c.SignerUser = "no-such-user" }, i.file(t, "file.test")); err != nil || s.signers != nil {
		t.Errorf("keys in files need no signer: %v", err)
	}
}

// mixedPool serves tpm.test with a key in a TPM and file.test with one in a file.
func mixedPool(t *testing.T, change func(*config)) (*signingPool, *tokentest.TPM) {
	t.Helper()
	requireHost(t)
	i := newIssuer(t)
	tpm := tokentest.StartTPM(t)
	reference, public := tpm.Make(tokentest.P256, "")
	return startSigningPool(t, i, change, certificateConfig{i.chain(t, "tpm.test", public), reference}, i.file(t, "file.test")), tpm
}

func (s *signingPool) clientConfig(host string) *tls.Config {
	return &tls.Config{RootCAs: s.issuer.roots, ServerName: host}
}

// stopProcess returns when the process runs no more.
func stopProcess(t *testing.T, pid int) {
	t.Helper()
	unix.Kill(pid, unix.SIGSTOP)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("process %d does not stop: %v", pid, err)
		}
		if strings.Contains(string(status), "State:\tT") {
			return
		}
	}
}

// TestASignerKilledInUseHarmsNobodyElse: who needed it gets an error at once; a
// connection under way that does not need it goes on with its old worker.
func TestASignerKilledInUseHarmsNobodyElse(t *testing.T) {
	s, tpm := mixedPool(t, nil)
	before := tpm.Objects()
	victim, err := s.offer()
	if err != nil {
		t.Fatal(err)
	}
	idle, err := s.offer()
	if err != nil {
		t.Fatal(err)
	}
	bystander, err := s.offer()
	if err != nil {
		t.Fatal(err)
	}
	pid := int(s.waitFor("signer ready", 1).number("signer_pid"))
	stopProcess(t, pid) // so that the request is with it when it dies
	failed := make(chan error)
	go func() {
		_, err := victim.handshake(s.clientConfig("tpm.test"))
		failed <- err
	}()
	select {
	case err := <-failed:
		t.Fatalf("without a signer: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	unix.Kill(pid, unix.SIGKILL)
	start := time.Now()
	if err := <-failed; err == nil || !strings.Contains(err.Error(), signer.ErrGone.Error()) || time.Since(start) > 2*time.Second {
		t.Errorf("%v after %v, want %v at once", err, time.Since(start), signer.ErrGone)
	}
	s.waitFor("signer ready", 2)
	s.waitFor("worker ready", 2)
	s.mustConnect("tpm.test", tls.VersionTLS13)
	if _, err := bystander.handshake(s.clientConfig("file.test")); err != nil {
		t.Errorf("a connection from before, with a key in a file: %v", err)
	}
	if _, err := idle.handshake(s.clientConfig("tpm.test")); err == nil || !strings.Contains(err.Error(), signer.ErrGone.Error()) {
		t.Errorf("a connection from before, with a key in the TPM: %v, want %v", err, signer.ErrGone)
	}
	s.waitFor("worker left", 1)
	if n := s.log.count("worker died"); n != 0 {
		t.Errorf("%d workers died", n)
	}
	if after := tpm.Objects(); after != before {
		t.Errorf("objects before:\n%safter:\n%s", before, after)
	}
}

// TestASignerThatDiesAgainAndAgainIsReplacedWithPauses: and nothing of it is left.
func TestASignerThatDiesAgainAndAgainIsReplacedWithPauses(t *testing.T) {
	s, _ := mixedPool(t, nil)
	descriptors := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := 0
	const deaths = 4
	start := time.Now()
	for n := 1; n <= deaths; n++ {
		unix.Kill(int(s.waitFor("signer ready", n).number("signer_pid")), unix.SIGKILL)
		s.waitFor("signer ready", n+1)
		s.waitFor("worker ready", n+1)
		s.waitFor("worker left", n)
		if n == 1 {
			before = descriptors()
		}
	}
	if want := restartFirst * (1<<deaths - 1); time.Since(start) < want {
		t.Errorf("%d signers in %v, want pauses of %v together", deaths, time.Since(start), want)
	}
	for deadline := time.Now().Add(10 * time.Second); descriptors() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors, %d before", descriptors(), before)
		}
	}
	s.mustConnect("tpm.test", tls.VersionTLS13)
}

// TestASignerThatDoesNotAnswerIsWaitedForALimitedTime: and only by who needs it.
func TestASignerThatDoesNotAnswerIsWaitedForALimitedTime(t *testing.T) {
	s, _ := mixedPool(t, func(c *config) { c.HandshakeTimeout = duration(700 * time.Millisecond) })
	pid := int(s.waitFor("signer ready", 1).number("signer_pid"))
	stopProcess(t, pid)
	defer unix.Kill(pid, unix.SIGCONT)
	s.mustConnect("file.test", tls.VersionTLS13)
	if _, err := s.connect("tpm.test", tls.VersionTLS13); err == nil {
		t.Error("signed by a process that is stopped")
	}
	unix.Kill(pid, unix.SIGCONT)
	s.mustConnect("tpm.test", tls.VersionTLS13)
}

// TestATokenThatIsAwayIsMissedByItsOwnCertificatesOnly: also by workers that start
// meanwhile, and only until it is back.
func TestATokenThatIsAwayIsMissedByItsOwnCertificatesOnly(t *testing.T) {
	s, tpm := mixedPool(t, func(c *config) { c.WorkerConnections = 2 })
	before := tpm.Objects()
	s.mustConnect("tpm.test", tls.VersionTLS12)
	tpm.Stop()
	for n := range 3 {
		if _, err := s.connect("tpm.test", tls.VersionTLS13); err == nil || !strings.Contains(err.Error(), "the token failed") {
			t.Errorf("without a TPM: %v", err)
		}
		s.mustConnect("file.test", tls.VersionTLS13)
		s.waitFor("worker ready", n+2)
	}
	s.waitFor("signer: cannot find the key again", 1)
	if e := s.waitFor("signer: cannot sign", 1); !strings.Contains(e.text("error"), "no such file") {
		t.Errorf("the log says %v", e)
	}
	tpm.Start()
	s.mustConnect("tpm.test", tls.VersionTLS13)
	if n := s.log.count("signer died"); n != 0 {
		t.Errorf("%d signers died", n)
	}
	if after := tpm.Objects(); after != before {
		t.Errorf("objects before:\n%safter:\n%s", before, after)
	}
}

// TestARenewedKeyIsUsedByNewWorkers: as a renewed file is. The signer goes on.
func TestARenewedKeyIsUsedByNewWorkers(t *testing.T) {
	requireHost(t)
	i := newIssuer(t)
	tpm := tokentest.StartTPM(t)
	reference, public := tpm.Make(tokentest.P256, "")
	chain := i.chain(t, "tpm.test", public)
	s := startSigningPool(t, i, nil, certificateConfig{chain, reference})
	s.mustConnect("tpm.test", tls.VersionTLS13)
	renewed := tpm.Renew(reference, tokentest.RSA)
	writePEM(t, chain, "CERTIFICATE", issue(t, "tpm.test", publicOnly{renewed}, i.ca.Leaf, i.key).Certificate[0])
	unix.Kill(int(s.waitFor("worker ready", 1).number("worker_pid")), unix.SIGKILL)
	s.waitFor("worker ready", 2)
	state, err := s.connect("tpm.test", tls.VersionTLS13)
	if err != nil {
		t.Fatal(err)
	}
	if !state.PeerCertificates[0].PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(renewed) {
		t.Error("the old key is in use")
	}
	if n := s.log.count("signer ready"); n != 1 {
		t.Errorf("%d signers", n)
	}
}

// TestAPINThatBecameWrongIsTriedOnce: the start of a new signer must not lock the token.
func TestAPINThatBecameWrongIsTriedOnce(t *testing.T) {
	requireHost(t)
	i := newIssuer(t)
	tpm := tokentest.StartTPM(t)
	reference, public := tpm.Make(tokentest.P256, tokentest.PIN)
	reference, path := withPIN(t, i, reference, tokentest.PIN)
	s := startSigningPool(t, i, nil, certificateConfig{i.chain(t, "tpm.test", public), reference})
	s.mustConnect("tpm.test", tls.VersionTLS13)
	if err := os.WriteFile(path, []byte(tokentest.WrongPIN), 0o600); err != nil {
		t.Fatal(err)
	}
	unix.Kill(int(s.waitFor("signer ready", 1).number("signer_pid")), unix.SIGKILL)
	s.waitFor("no more signers", 1)
	s.waitFor("cannot start a worker", 3)
	if _, _, err := s.signers.channel(); !errors.Is(err, errPINRefused) {
		t.Error(err)
	}
	if n := tpm.LockoutCounter(); n != 1 {
		t.Errorf("the TPM counts %d wrong PINs, want 1", n)
	}
	s.stop()
	noPINs(t, s.log.dump())
}

// TestAWorkerThatSendsNoiseToTheSignerIsKilled: and others keep their channels.
func TestAWorkerThatSendsNoiseToTheSignerIsKilled(t *testing.T) {
	s, _ := mixedPool(t, func(c *config) { c.Workers = 2 })
	channel, g, err := s.signers.channel() // a third channel, as if it were the first worker's
	if err != nil {
		t.Fatal(err)
	}
	defer channel.Close()
	s.pool.mu.Lock()
	var bad *workerProcess
	for w := range s.pool.workers {
		bad = w
	}
	s.pool.mu.Unlock()
	go bad.watch(g)
	if _, err := channel.Write([]byte("noise")); err != nil {
		t.Fatal(err)
	}
	e := s.waitFor("worker killed for what it sent to the signer", 1)
	if int(e.number("worker_pid")) != bad.cmd.Process.Pid || !strings.Contains(e.text("error"), "malformed") {
		t.Errorf("the log says %v", e)
	}
	s.waitFor("worker died", 1)
	s.waitFor("worker ready", 3)
	for range 4 {
		s.mustConnect("tpm.test", tls.VersionTLS13)
	}
	if n := s.log.count("signer died"); n != 0 {
		t.Errorf("%d signers died", n)
	}
}
