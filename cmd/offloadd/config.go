// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/offloadd/offloadd/bpf"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/token"
	"github.com/offloadd/offloadd/ktls/userspace"
)

// config is the file that serve reads. Unknown keys are errors.
type config struct {
	// WorkerUser is a name or a number; workers run as this user and nothing else should.
	WorkerUser string `toml:"worker_user"`
	// SignerUser runs the signer, which there is if a key is in a token.
	SignerUser string `toml:"signer_user"`
	// Workers is how many handshake workers run at a time.
	Workers int `toml:"workers"`
	// A worker is replaced after so many connections or so much time.
	WorkerConnections int      `toml:"worker_connections"`
	WorkerLifetime    duration `toml:"worker_lifetime"`
	// HandshakeTimeout bounds the time from accept to the hand-over of the keys.
	HandshakeTimeout duration `toml:"handshake_timeout"`
	// ApplicationTimeout bounds the time a ready connection waits for an application.
	ApplicationTimeout duration `toml:"application_timeout"`
	// MaxHandshakes bounds the connections between accept and hand-over.
	MaxHandshakes int `toml:"max_handshakes"`
	// Ledger is the file of imported keys, on a file system that ends with the boot.
	Ledger string `toml:"ledger"`
	// Control is the path of the unix socket for status and revoke, root only.
	Control string `toml:"control"`
	// Guard is the policy towards the BPF guards: require, prefer or off.
	Guard string `toml:"guard"`
	// BPFDir is where "offloadd bpf load" has pinned them.
	BPFDir string `toml:"bpf_dir"`
	// Metrics is where Prometheus may ask: host:port, or the path of a unix socket; ""
	// for nowhere.
	Metrics   string           `toml:"metrics"`
	Listeners []listenerConfig `toml:"listener"`
}

type listenerConfig struct {
	Name    string `toml:"name"`
	Address string `toml:"address"`
	// Application is the path of the unix socket where applications fetch the
	// connections; ApplicationUser, a name or a number, may connect beside root.
	Application     string `toml:"application"`
	ApplicationUser string `toml:"application_user"`
	// MinVersion is "1.2" or "1.3".
	MinVersion string   `toml:"min_version"`
	ALPN       []string `toml:"alpn"`
	// KernelTLS is the policy towards the kernel's record layer: require, prefer or never.
	// What the kernel does not have a relay has, in user space.
	KernelTLS string `toml:"kernel_tls"`
	// FollowKeyUpdates, with prefer: of TLS 1.3 the kernel has only what it can change the
	// keys of.
	FollowKeyUpdates bool `toml:"follow_key_updates"`
	// NoTickets disables session tickets, and with them resumption.
	NoTickets bool `toml:"no_tickets"`
	// ClientAuth is one of the keys of clientAuthTypes; ClientCA the roots, PEM.
	ClientAuth   string              `toml:"client_auth"`
	ClientCA     string              `toml:"client_ca"`
	Certificates []certificateConfig `toml:"certificate"`
}

// certificateConfig names a chain and its private key, both PEM files. The daemon
// opens the files and does not read them: a worker gets the descriptors. Or Key names
// a key in a token, see token.Reference: then the signer uses it, and a worker asks.
type certificateConfig struct {
	Chain string `toml:"chain"`
	Key   string `toml:"key"`
}

var clientAuthTypes = map[string]tls.ClientAuthType{
	"none":               tls.NoClientCert,
	"request":            tls.RequestClientCert,
	"require":            tls.RequireAnyClientCert,
	"verify":             tls.VerifyClientCertIfGiven,
	"require-and-verify": tls.RequireAndVerifyClientCert,
}

// duration is written as in Go: "10s", "5m".
type duration time.Duration

func (d *duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is no duration; write for example \"10s\" or \"5m\"", b)
	}
	*d = duration(v)
	return nil
}

func (d duration) String() string { return time.Duration(d).String() }

func defaultConfig() *config {
	return &config{
		WorkerUser:         "offloadd",
		SignerUser:         "offloadd-signer",
		Workers:            2,
		WorkerConnections:  10_000,
		WorkerLifetime:     duration(10 * time.Minute),
		HandshakeTimeout:   duration(10 * time.Second),
		ApplicationTimeout: duration(5 * time.Second),
		MaxHandshakes:      1024,
		Ledger:             "/run/offloadd/ledger",
		Control:            defaultControl,
		Guard:              guardPrefer,
		BPFDir:             bpf.DefaultDir,
	}
}

// parseConfig reads a configuration; name is for the errors.
func parseConfig(name string, text []byte) (*config, error) {
	c := defaultConfig()
	d := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields()
	err := d.Decode(c)
	var unknown *toml.StrictMissingError
	var wrong *toml.DecodeError
	switch {
	case errors.As(err, &unknown):
		var keys []string
		for _, e := range unknown.Errors {
			line, _ := e.Position()
			keys = append(keys, fmt.Sprintf("%s:%d: unknown key %q", name, line, strings.Join(e.Key(), ".")))
		}
		return nil, usageError("%s", strings.Join(keys, "\n"))
	case errors.As(err, &wrong):
		line, column := wrong.Position()
		return nil, usageError("%s:%d:%d: %v", name, line, column, strings.TrimPrefix(wrong.Error(), "toml: "))
	case err != nil:
		return nil, usageError("%s: %v", name, err)
	}
	for i := range c.Listeners {
		c.Listeners[i].setDefaults()
	}
	if err := c.validate(); err != nil {
		return nil, usageError("%s: %v", name, err)
	}
	return c, nil
}

func readConfig(path string) (*config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, usageError("configuration: %v", err)
	}
	return parseConfig(path, text)
}

func (l *listenerConfig) setDefaults() {
	if l.MinVersion == "" {
		l.MinVersion = "1.2"
	}
	if l.ClientAuth == "" {
		l.ClientAuth = "none"
	}
	if l.KernelTLS == "" {
		l.KernelTLS = userspace.Require.String()
	}
}

func (c *config) validate() error {
	switch {
	case c.WorkerUser == "":
		return errors.New("worker_user is empty")
	case c.SignerUser == "":
		return errors.New("signer_user is empty")
	case c.Workers < 1 || c.Workers > 256:
		return fmt.Errorf("workers = %d, want 1 to 256", c.Workers)
	case c.WorkerConnections < 1:
		return fmt.Errorf("worker_connections = %d, want at least 1", c.WorkerConnections)
	case c.WorkerLifetime < duration(time.Second):
		return fmt.Errorf("worker_lifetime = %v, want at least 1s", c.WorkerLifetime)
	case c.HandshakeTimeout < duration(100*time.Millisecond) || c.HandshakeTimeout > duration(5*time.Minute):
		return fmt.Errorf("handshake_timeout = %v, want 100ms to 5m", c.HandshakeTimeout)
	case c.ApplicationTimeout <= 0:
		return fmt.Errorf("application_timeout = %v, want more than 0s", c.ApplicationTimeout)
	case c.MaxHandshakes < 1:
		return fmt.Errorf("max_handshakes = %d, want at least 1", c.MaxHandshakes)
	case !filepath.IsAbs(c.Ledger):
		return fmt.Errorf("ledger = %q, want an absolute path, below /run", c.Ledger)
	case !filepath.IsAbs(c.Control) || len(c.Control) > 100:
		return fmt.Errorf("control = %q, want an absolute path of at most 100 bytes for a unix socket", c.Control)
	case c.Guard != guardRequire && c.Guard != guardPrefer && c.Guard != guardOff:
		return fmt.Errorf("guard = %q, want require, prefer or off", c.Guard)
	case !filepath.IsAbs(c.BPFDir):
		return fmt.Errorf("bpf_dir = %q, want an absolute path, below /sys/fs/bpf", c.BPFDir)
	case !validMetrics(c.Metrics):
		return fmt.Errorf("metrics = %q, want an address such as \"127.0.0.1:9464\", or an absolute path of at most 100 bytes", c.Metrics)
	case len(c.Listeners) == 0:
		return errors.New("no [[listener]]")
	}
	names, sockets := map[string]bool{}, map[string]bool{c.Control: true}
	for i := range c.Listeners {
		l := &c.Listeners[i]
		if err := l.validate(); err != nil {
			return fmt.Errorf("listener %d (%q): %v", i+1, l.Name, err)
		}
		if names[l.Name] || sockets[l.Application] {
			return fmt.Errorf("listener %d (%q): name or application socket is another listener's as well, or the control socket", i+1, l.Name)
		}
		names[l.Name], sockets[l.Application] = true, true
	}
	return nil
}

func (l *listenerConfig) validate() error {
	if l.Name == "" || len(l.Name) > 64 {
		return errors.New("name must have 1 to 64 bytes")
	}
	if _, _, err := net.SplitHostPort(l.Address); err != nil {
		return fmt.Errorf("address: %v; write for example \"0.0.0.0:443\"", err)
	}
	if !filepath.IsAbs(l.Application) || len(l.Application) > 100 {
		return fmt.Errorf("application = %q, want an absolute path of at most 100 bytes for a unix socket", l.Application)
	}
	if l.MinVersion != "1.2" && l.MinVersion != "1.3" {
		return fmt.Errorf("min_version = %q, want \"1.2\" or \"1.3\"", l.MinVersion)
	}
	if _, err := l.policy(); err != nil {
		return err
	}
	if l.FollowKeyUpdates && l.KernelTLS != userspace.Prefer.String() {
		return fmt.Errorf("follow_key_updates = true with kernel_tls = %q: it says when %q goes to user space", l.KernelTLS, userspace.Prefer)
	}
	auth, ok := clientAuthTypes[l.ClientAuth]
	if !ok {
		return fmt.Errorf("client_auth = %q, want none, request, require, verify or require-and-verify", l.ClientAuth)
	}
	if verifies := auth >= tls.VerifyClientCertIfGiven; verifies != (l.ClientCA != "") {
		return fmt.Errorf("client_auth = %q and client_ca = %q: verifying needs roots, and roots are for verifying", l.ClientAuth, l.ClientCA)
	}
	for _, p := range l.ALPN {
		if p == "" || len(p) > 255 {
			return fmt.Errorf("alpn: %q, want 1 to 255 bytes", p)
		}
	}
	if len(l.Certificates) == 0 {
		return errors.New("no [[listener.certificate]]")
	}
	for _, c := range l.Certificates {
		if c.Chain == "" || c.Key == "" {
			return errors.New("a certificate needs both chain and key")
		}
		if err := c.checkKey(); err != nil {
			return fmt.Errorf("certificate %s: key: %v", c.Chain, err)
		}
	}
	return nil
}

// policy is what KernelTLS says.
func (l *listenerConfig) policy() (userspace.Policy, error) {
	for _, p := range []userspace.Policy{userspace.Require, userspace.Prefer, userspace.Never} {
		if l.KernelTLS == p.String() {
			return p, nil
		}
	}
	return 0, fmt.Errorf("kernel_tls = %q, want require, prefer or never", l.KernelTLS)
}

// checkKey checks a key that is in a token.
func (c *certificateConfig) checkKey() error {
	if !token.Names(c.Key) {
		return nil
	}
	r, err := token.Parse(c.Key)
	if err != nil {
		return err
	}
	return r.Supported()
}

// validMetrics: an address for all interfaces must be written out.
func validMetrics(address string) bool {
	if address == "" || filepath.IsAbs(address) {
		return len(address) <= 100
	}
	host, port, err := net.SplitHostPort(address)
	return err == nil && host != "" && port != ""
}

// userID turns a user's name or number into ids; the group is the user's own, or
// the number itself for a user without a name.
func userID(nameOrNumber string) (uid, gid uint32, err error) {
	if n, err := strconv.ParseUint(nameOrNumber, 10, 32); err == nil {
		return uint32(n), uint32(n), nil
	}
	u, err := user.Lookup(nameOrNumber)
	if err != nil {
		return 0, 0, err
	}
	uid64, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return 0, 0, err
	}
	gid64, err := strconv.ParseUint(u.Gid, 10, 32)
	return uint32(uid64), uint32(gid64), err
}

// MarshalText makes a duration a flag.
func (d duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }
