// SPDX-License-Identifier: Apache-2.0

package tokentest

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// SoftHSM is a set of PKCS#11 tokens in software.
type SoftHSM struct {
	Module string
	t      testing.TB
	dir    string
	owner  int
}

// The user's PIN of every token, and one that is wrong.
const (
	PIN      = "hush-5678"
	WrongPIN = "hush-0000"
)

// NewSoftHSM makes one without tokens, whose files are uid's, and tells processes
// that start from now on, and this one, where it is.
func NewSoftHSM(t testing.TB, uid int) *SoftHSM {
	t.Helper()
	need(t, "softhsm2-util")
	h := &SoftHSM{t: t, dir: openDir(t), owner: uid}
	for _, path := range []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so"} {
		if _, err := os.Stat(path); err == nil {
			h.Module = path
			break
		}
	}
	if h.Module == "" {
		t.Fatal("softhsm2-util is installed and the module is not found")
	}
	config := filepath.Join(h.dir, "softhsm2.conf")
	text := fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", h.tokens())
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(h.tokens(), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", config)
	return h
}

func (h *SoftHSM) tokens() string { return filepath.Join(h.dir, "tokens") }

func (h *SoftHSM) util(args ...string) {
	h.t.Helper()
	if out, err := exec.Command("softhsm2-util", args...).CombinedOutput(); err != nil {
		h.t.Fatalf("softhsm2-util %s: %v\n%s", args[0], err, out)
	}
	giveTo(h.t, h.dir, h.owner)
}

// MakeToken makes a token.
func (h *SoftHSM) MakeToken(label string) {
	h.t.Helper()
	h.util("--init-token", "--free", "--label", label, "--so-pin", "12345678", "--pin", PIN)
}

// Import puts a private key, and its public part, into a token.
func (h *SoftHSM) Import(token, label, id string, key crypto.Signer) {
	h.t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		h.t.Fatal(err)
	}
	file := filepath.Join(h.dir, "import.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		h.t.Fatal(err)
	}
	defer os.Remove(file)
	h.util("--import", file, "--token", token, "--label", label, "--id", id, "--pin", PIN, "--force")
}

// PINFile writes a file with a PIN.
func (h *SoftHSM) PINFile(pin string) string {
	h.t.Helper()
	f, err := os.CreateTemp(h.dir, "pin-")
	if err != nil {
		h.t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintln(f, pin); err != nil {
		h.t.Fatal(err)
	}
	return f.Name()
}

// URI returns the reference of a key, of which path is the part before the query.
func (h *SoftHSM) URI(path, pinFile string) string {
	return "pkcs11:" + path + "?module-path=" + url.PathEscape(h.Module) + "&pin-source=file:" + pinFile
}

// TakeAway makes the tokens vanish until the returned function is called.
func (h *SoftHSM) TakeAway() (bringBack func()) {
	h.t.Helper()
	away := h.tokens() + "-away"
	move := func(from, to string) {
		if err := os.Rename(from, to); err != nil {
			h.t.Fatal(err)
		}
	}
	move(h.tokens(), away)
	return func() { move(away, h.tokens()) }
}

// Objects lists the objects of all tokens, with a digest of all that is stored of each.
func (h *SoftHSM) Objects() string {
	h.t.Helper()
	var list strings.Builder
	files, err := filepath.Glob(filepath.Join(h.tokens(), "*", "*.object"))
	if err != nil || len(files) == 0 {
		h.t.Fatalf("no objects: %v", err)
	}
	for _, file := range files {
		if filepath.Base(file) == "token.object" {
			continue // the token itself, whose flags a login changes
		}
		b, err := os.ReadFile(file)
		if err != nil {
			h.t.Fatal(err)
		}
		fmt.Fprintf(&list, "%s %x\n", strings.TrimPrefix(file, h.tokens()), sha256.Sum256(b))
	}
	return list.String()
}
