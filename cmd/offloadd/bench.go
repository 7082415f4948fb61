// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/offloadd/offloadd/blob/handoff"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/bench"
	"github.com/offloadd/offloadd/ktls"
)

func benchCommand(env *environment) *cobra.Command {
	c := &cobra.Command{
		Use:   "bench",
		Short: "Measure paths: plain, crypto/tls, kernel TLS, through a proxy",
		Long: `Measures what a path costs and how fast it is, as iperf does: a server that sends and
takes bytes by the path of your choice, a client, and a proxy.

They speak a small part of HTTP/1.1, so the client measures other servers, too, and curl
may ask ours: GET /N has N bytes, PUT / takes what it gets, POST /echo returns it, and GET
/usage tells what the server's process has used.`,
		Example: `  offloadd bench server --listen 127.0.0.1:4433 --path ktls-sendfile
  offloadd bench client 127.0.0.1:4433 -R -t 10
  offloadd bench client 127.0.0.1:4433 --small 1024 --count 10000 --json | jq .latency_us`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usageError(`bench what? server, client, proxy or handover; see "offloadd bench --help"`)
		},
	}
	c.AddCommand(benchServerCommand(env), benchProxyCommand(env), benchClientCommand(env), benchHandoverCommand(env))
	explainArguments(c.Commands())
	return c
}

// benchTLS are the flags of whoever shakes hands as a server.
type benchTLS struct {
	listen            string
	certificate, key  string
	choice            bench.Choice
	noTickets         bool
	path, application string
}

func (b *benchTLS) add(f *pflag.FlagSet) {
	f.StringVar(&b.listen, "listen", "127.0.0.1:0", "listen on this `address`; port 0: any, which is printed")
	f.StringVar(&b.certificate, "cert", "", "certificate chain, a PEM `file`; without, one is made")
	f.StringVar(&b.key, "key", "", "its private key, a PEM `file`")
	f.BoolVar(&b.noTickets, "no-tickets", false, "no session tickets, so no resumption")
	addChoice(f, &b.choice)
}

func addChoice(f *pflag.FlagSet, c *bench.Choice) {
	f.StringVar(&c.Suite, "suite", "", "aes128, aes256 (with --tls-version 1.2) or chacha20; else what crypto/tls prefers")
	f.StringVar(&c.Version, "tls-version", "", "1.2 or 1.3; else the highest of both")
}

func benchServerCommand(env *environment) *cobra.Command {
	var b benchTLS
	writes := byteSize(256 << 10)
	c := &cobra.Command{
		Use:   "server --path PATH [flags]",
		Short: "Send and take bytes by a path",
		Long: `Serves requests by one path, until SIGTERM. When it may be asked, it prints the line
"ready HOST:PORT".

Paths:
` + benchPaths(bench.Paths) + `
Bodies of up to 16 KiB leave in one write with their head, on every path.`,
		Example: `  offloadd bench server --listen 0.0.0.0:4433 --path ktls-sendfile
  offloadd bench server --path tls --suite chacha20
  offloadd bench server --path handed --application /run/offloadd/web.sock`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path := bench.Path(b.path)
			switch {
			case !path.Known():
				return usageError("--path=%s, want one of %s", b.path, pathNames(bench.Paths))
			case (path == bench.Handed) != (b.application != ""):
				return usageError("--application goes with --path=handed, and only with that")
			case path == bench.Handed && cmd.Flags().Changed("listen"):
				return usageError("--listen: with --path=handed it is the daemon that listens")
			case writes < 1 || writes > 64<<20:
				return usageError("--size-of-writes=%s, want 1 byte to 64 MiB", writes.String())
			}
			return b.serve(cmd.Context(), env, path, int(writes))
		},
	}
	f := c.Flags()
	b.add(f)
	f.StringVar(&b.path, "path", "", "how bytes get onto the wire")
	f.StringVar(&b.application, "application", "", "take connections from the daemon at this unix `socket`")
	f.Var(&writes, "size-of-writes", "`size` of a write, where bodies are written")
	return c
}

func benchPaths(paths []bench.Path) string {
	var s strings.Builder
	for _, p := range paths {
		fmt.Fprintf(&s, "  %-15s %s\n", p, p.Describe())
	}
	return s.String()
}

func pathNames(paths []bench.Path) string {
	var names []string
	for _, p := range paths {
		names = append(names, string(p))
	}
	return strings.Join(names, ", ")
}

// serve runs a server.
func (b *benchTLS) serve(ctx context.Context, env *environment, path bench.Path, writes int) error {
	log := slog.New(slog.NewTextHandler(env.stderr, nil))
	config, err := b.config(env)
	if err != nil {
		return err
	}
	l, address, err := b.listener(ctx, path, log)
	if err != nil {
		return err
	}
	defer l.Close()
	server, err := bench.NewServer(path, config, writes, log)
	if err != nil {
		return err
	}
	fmt.Fprintf(env.stdout, "ready %s\n", address)
	return server.Serve(ctx, l)
}

func (b *benchTLS) config(env *environment) (*tls.Config, error) {
	if err := startWithoutAES(env, b.choice); err != nil {
		return nil, err
	}
	config, err := bench.ServerConfig(b.certificate, b.key, b.choice, !b.noTickets)
	return config, benchError(err)
}

// listener opens what connections come from, and says where that is.
func (b *benchTLS) listener(ctx context.Context, path bench.Path, log *slog.Logger) (net.Listener, string, error) {
	if path.Kernel() {
		if err := kernelReady(); err != nil {
			return nil, "", machineError("bench: --path=%s: %w", path, err)
		}
	}
	if path == bench.Handed {
		connections, err := handoff.Listen(b.application, log)
		if err != nil {
			return nil, "", machineError("bench: %w; is the daemon there, and are you its listener's application_user?", err)
		}
		return ktls.NewListener(connections), b.application, nil
	}
	l, err := bench.Listen(ctx, b.listen)
	if err != nil {
		return nil, "", fmt.Errorf("--listen: %w", err)
	}
	return l, l.Addr().String(), nil
}

func benchProxyCommand(env *environment) *cobra.Command {
	var b benchTLS
	var target string
	c := &cobra.Command{
		Use:   "proxy --target HOST:PORT --path PATH [flags]",
		Short: "Speak TLS to clients and plain TCP to a target",
		Long: `Copies both ways between a client and a target, until SIGTERM. When it may be asked,
it prints the line "ready HOST:PORT". Paths, on the client's side:

  plain   no TLS
  tls     Go's crypto/tls
  ktls    handshaker and ktls.Conn, by its ReadFrom and WriteTo

/usage is answered by the target: it is the target's usage, not that of the proxy.`,
		Example: `  offloadd bench server --listen 127.0.0.1:8080 --path plain-sendfile
  offloadd bench proxy --listen 127.0.0.1:4433 --target 127.0.0.1:8080 --path ktls`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path := bench.Path(b.path)
			switch {
			case path != "plain" && path != "tls" && path != "ktls":
				return usageError("--path=%s, want one of %s", b.path, pathNames(bench.ProxyPaths))
			case target == "":
				return usageError("proxy needs a --target")
			}
			log := slog.New(slog.NewTextHandler(env.stderr, nil))
			config, err := b.config(env)
			if err != nil {
				return err
			}
			l, address, err := b.listener(cmd.Context(), path, log)
			if err != nil {
				return err
			}
			defer l.Close()
			fmt.Fprintf(env.stdout, "ready %s\n", address)
			return (&bench.Proxy{Path: path, TLS: config, Target: target, Log: log}).Serve(cmd.Context(), l)
		},
	}
	f := c.Flags()
	b.add(f)
	f.StringVar(&b.path, "path", "", "plain, tls or ktls")
	f.StringVar(&target, "target", "", "`address` of a server that speaks plain TCP")
	return c
}

// startWithoutAES starts this program again, as on a processor without AES, if only that
// makes crypto/tls prefer the suite.
func startWithoutAES(env *environment, choice bench.Choice) error {
	setting := os.Getenv("GODEBUG")
	if !choice.NeedsNoAES() || strings.Contains(setting, bench.WithoutAES) {
		return nil
	}
	if env.exec == nil {
		return fmt.Errorf("--suite=%s needs GODEBUG=%s in the environment", choice.Suite, bench.WithoutAES)
	}
	if setting != "" {
		setting += ","
	}
	if err := os.Setenv("GODEBUG", setting+bench.WithoutAES); err != nil {
		return err
	}
	return fmt.Errorf("start again: %w", env.exec("/proc/self/exe", os.Args, os.Environ()))
}

// benchError gives errors of package bench their exit codes.
func benchError(err error) error {
	var usage *bench.UsageError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &usage):
		return usageError("bench: %w; see \"offloadd bench --help\"", err)
	case errors.Is(err, ktls.ErrNoTLS):
		return machineError("bench: %w", err)
	}
	return fmt.Errorf("bench: %w", err)
}
