// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
)

// call runs a command in this process.
func call(stdin string, args ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	env := &environment{stdin: strings.NewReader(stdin), stdout: &out, stderr: &err, reached: func(step) {}}
	code = run(env, args)
	return code, out.String(), err.String()
}

func TestEveryCommandExplainsItselfWithAnExample(t *testing.T) {
	code, help, _ := call("", "--help")
	if code != exitOK {
		t.Fatalf("offloadd --help exits with %d", code)
	}
	for _, c := range []string{"bench", "bpf", "check", "demo", "handshake", "inetd", "inspect", "relay", "revoke", "serve", "sign", "status"} {
		if !strings.Contains(help, "\n  "+c+" ") {
			t.Errorf("offloadd --help does not name %s", c)
		}
		code, out, _ := call("", c, "--help")
		if code != exitOK || !strings.Contains(out, "Examples:\n  ") || !strings.Contains(out, "offloadd "+c) {
			t.Errorf("%s --help exits with %d and says:\n%s", c, code, out)
		}
	}
}

func TestWrongUseIsExplained(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	listener := "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:0\"\napplication = \"/tmp/a.sock\"\n"
	certificate := "[[listener.certificate]]\nchain = \"c\"\nkey = \"k\"\n"
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"unknown command", []string{"sever"}, `unknown command "sever"`},
		{"unknown flag", []string{"serve", "--lissten", "x"}, "unknown flag: --lissten"},
		{"surplus argument", []string{"check", "now"}, `"offloadd check --help"`},
		{"no subcommand", []string{"bpf"}, "load, status or unload"},
		{"unknown subcommand", []string{"bpf", "lode"}, "load, status or unload"},
		{"surplus argument of a subcommand", []string{"bpf", "load", "now"}, `"offloadd bpf load --help"`},
		{"no discipline", []string{"bench"}, "server, client, proxy or handover"},
		{"path of a bench", []string{"bench", "server", "--path", "https"}, "plain-write, plain-sendfile, tls,"},
		{"path of a proxy", []string{"bench", "proxy", "--path", "userspace", "--target", "x"}, "plain, tls, ktls"},
		{"proxy to nowhere", []string{"bench", "proxy", "--path", "tls"}, "--target"},
		{"handed by nobody", []string{"bench", "server", "--path", "handed"}, "--application"},
		{"application without a daemon", []string{"bench", "server", "--path", "tls", "--application", "/x"}, "--path=handed"},
		{"half a certificate", []string{"bench", "server", "--path", "tls", "--cert", "x"}, "needs its key"},
		{"size of writes", []string{"bench", "server", "--path", "tls", "--size-of-writes", "0"}, "1 byte to 64 MiB"},
		{"no number of bytes", []string{"bench", "client", "h:1", "-n", "many"}, "256KiB"},
		{"no time", []string{"bench", "client", "h:1", "-t", "soon"}, "500ms"},
		{"no record layer", []string{"bench", "client", "h:1", "--tls", "ssl"}, "crypto-tls, ktls, discard, none"},
		{"discarding an upload", []string{"bench", "client", "h:1", "--tls", "discard"}, "only download"},
		{"no server to measure", []string{"bench", "client"}, `"offloadd bench client --help"`},
		{"no hand-over", []string{"bench", "handover", "--count", "0"}, "--count=0"},
		{"form of guards", []string{"bpf", "load", "--form", "lms"}, "lsm or fmod_ret"},
		{"no listener", []string{"serve"}, "--listen, --certificate and --key"},
		{"flags and file", []string{"serve", "-c", "x", "--listen", ":1"}, "write the listener into the file"},
		{"no file", []string{"serve", "-c", filepath.Join(dir, "none")}, "no such file"},
		{"log format", []string{"serve", "--listen", ":1", "--certificate", "c", "--key", "k", "--log", "xml"}, "want text or json"},
		{"unknown key", []string{"serve", "-c", file("unknown", "workers = 2\nworkerz = 3\n")}, `unknown:2: unknown key "workerz"`},
		{"unknown key in a listener", []string{"serve", "-c", file("deep", listener+"adress = \"x\"\n")}, `deep:5: unknown key "listener.adress"`},
		{"no TOML", []string{"serve", "-c", file("broken", "workers = = 2\n")}, "broken:1:"},
		{"wrong type", []string{"serve", "-c", file("type", "workers = \"two\"\n")}, "type:1:"},
		{"bad duration", []string{"serve", "-c", file("duration", "\nworker_lifetime = \"5 minutes\"\n")}, `"5m"`},
		{"no listeners", []string{"serve", "-c", file("empty", "workers = 2\n")}, "no [[listener]]"},
		{"no certificate", []string{"serve", "-c", file("nocert", listener)}, "no [[listener.certificate]]"},
		{"relative socket", []string{"serve", "-c", file("relative", strings.Replace(listener, "/tmp/", "", 1)+certificate)}, "absolute path"},
		{"bad address", []string{"serve", "-c", file("address", strings.Replace(listener, "127.0.0.1:0", "443", 1)+certificate)}, "0.0.0.0:443"},
		{"old TLS", []string{"serve", "-c", file("old", listener+"min_version = \"1.1\"\n"+certificate)}, `want "1.2" or "1.3"`},
		{"verify without roots", []string{"serve", "-c", file("roots", listener+"client_auth = \"verify\"\n"+certificate)}, "verifying needs roots"},
		{"twice the same", []string{"serve", "-c", file("twice", listener+certificate+listener+certificate)}, "another listener's as well"},
		{"workers", []string{"serve", "-c", file("workers", "workers = 0\n"+listener+certificate)}, "want 1 to 256"},
		{"relative ledger", []string{"serve", "-c", file("ledger", "ledger = \"run/ledger\"\n"+listener+certificate)}, "absolute path"},
		{"control", []string{"serve", "-c", file("control", "control = \"c.sock\"\n"+listener+certificate)}, "control = \"c.sock\", want an absolute path"},
		{"control and application", []string{"serve", "-c", file("both", "control = \"/tmp/a.sock\"\n"+listener+certificate)}, "or the control socket"},
		{"revoke nothing", []string{"revoke"}, "one of them"},
		{"revoke two things", []string{"revoke", "--all", "4711"}, "one of them"},
		{"revoke a word", []string{"revoke", "everything"}, "\"everything\" is no socket"},
		{"revoke nobody's peer", []string{"revoke", "--peer", "localhost"}, "192.0.2.0/24"},
		{"status of no socket", []string{"status", "0"}, "\"0\" is no socket"},
		{"PIN in the configuration", []string{"serve", "-c", file("pin", listener+strings.Replace(certificate, "\"k\"", "\"pkcs11:token=t;object=o?module-path=/m&pin-value=1234\"", 1))}, "pin-value would put the PIN where"},
		{"TPM handle", []string{"serve", "--listen", ":1", "--certificate", "c", "--key", "tpm:handle=1"}, "certificate c: key: handle must be"},
		{"no signer", []string{"serve", "-c", file("signer", "signer_user = \"\"\n"+listener+certificate)}, "signer_user is empty"},
		{"inetd without a program", []string{"inetd", "--application", "/tmp/a.sock"}, "--application and a program"},
		{"inetd without room", []string{"inetd", "--application", "/tmp/a.sock", "--max", "0", "true"}, "want 1 to 65536"},
		{"worker by hand", []string{"handshake"}, "root"},
		{"signer by hand", []string{"sign"}, "root"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, out, stderr := call("", c.args...)
			if (code != exitUsage && !strings.HasSuffix(c.name, " by hand")) || code == exitOK || out != "" || !strings.Contains(stderr, c.want) {
				t.Errorf("exit %d, stdout %q, stderr %q; want exit %d and %q", code, out, stderr, exitUsage, c.want)
			}
		})
	}
}

func TestInspectShowsTheHeaderAndNoSecret(t *testing.T) {
	key, err := blob.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	sealer, _, err := blob.NewSealer(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	state, err := blob.NewState13(blob.TLS_AES_128_GCM_SHA256, blob.Server, blob.Write, blob.NewSecret(bytes.Repeat([]byte{7}, 32)))
	if err != nil {
		t.Fatal(err)
	}
	state.Cookie = 4711
	b, err := sealer.Seal(state, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "b.blob")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, stderr := call("", "inspect", path)
	if code != exitOK {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	for _, want := range []string{"server write, TLS 1.3, TLS_AES_128_GCM_SHA256, epoch 0", "4711", key.Instance().String()} {
		if !strings.Contains(out, want) {
			t.Errorf("output lacks %q:\n%s", want, out)
		}
	}
	var hexText strings.Builder
	for _, c := range []byte(b) {
		hexText.WriteString(strings.ToUpper(string("0123456789abcdef"[c>>4]) + string("0123456789abcdef"[c&15])))
	}
	code, out, stderr = call(hexText.String()+"\n", "inspect", "--json", "-")
	var reports []blobReport
	if err := json.Unmarshal([]byte(out), &reports); code != exitOK || err != nil || len(reports) != 1 || reports[0].Socket != 4711 || reports[0].Expired {
		t.Errorf("exit %d, error %v, %s: %s", code, err, stderr, out)
	}
	if code, _, stderr := call("no blob", "inspect", "-"); code != exitFailed || !strings.Contains(stderr, blob.ErrMalformed.Error()) {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

// TestWithoutKernelTLS: on a kernel without TLS everything says what is missing
// and what to do, and exits with a code that scripts can use.
func TestWithoutKernelTLS(t *testing.T) {
	if kernelReady() == nil {
		if os.Getenv("OFFLOADD_EXPECT_NO_TLS") != "" {
			t.Fatal("this kernel has TLS")
		}
		t.Skip("this kernel has TLS")
	}
	if os.Geteuid() != 0 {
		t.Skip("serve needs root")
	}
	const remedy = "modprobe tls"
	code, out, stderr := call("", "check", "--worker-user", "60601")
	if code != exitMachine || !strings.Contains(out, "MISSING tls") || !strings.Contains(out, remedy) || !strings.Contains(stderr, "serve cannot work here") {
		t.Errorf("check: exit %d\n%s%s", code, out, stderr)
	}
	code, out, _ = call("", "check", "--json", "--worker-user", "60601")
	var report checkReport
	if err := json.Unmarshal([]byte(out), &report); code != exitMachine || err != nil || report.Ready || len(report.Lines) == 0 {
		t.Errorf("check --json: exit %d, error %v\n%s", code, err, out)
	}
	for _, l := range report.Lines {
		if l.Name == ktls.FeatureULP && (l.State != "no" || !l.Needed || l.Remedy == "") {
			t.Errorf("line %+v", l)
		}
	}
	code, _, stderr = call("", "serve", "--listen", "127.0.0.1:0", "--certificate", "c", "--key", "k", "--worker-user", "60601")
	if code != exitMachine || !strings.Contains(stderr, `kernel_tls = "prefer"`) {
		t.Errorf("exit %d: %s", code, stderr)
	}
	for _, args := range [][]string{
		{"serve", "--listen", "127.0.0.1:0", "--certificate", "c", "--key", "k", "--worker-user", "60601"},
		{"demo"}, {"bench", "server", "--path", "ktls-write"}, {"bench", "proxy", "--path", "ktls", "--target", "127.0.0.1:1"}, {"bench", "handover"},
	} {
		code, _, stderr := call("", args...)
		if code != exitMachine || !strings.Contains(stderr, remedy) && !strings.Contains(stderr, "install the package") {
			t.Errorf("%s: exit %d: %s", args[0], code, stderr)
		}
	}
}
