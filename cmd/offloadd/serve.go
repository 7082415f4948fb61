// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/blob/handoff"
	"github.com/offloadd/offloadd/bpf"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/custody"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/ledger"
	"github.com/offloadd/offloadd/handshaker"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/userspace"
)

// acceptPause is the wait after a failed accept, which mostly means that
// descriptors are short.
const acceptPause = 50 * time.Millisecond

// drainTime bounds an orderly end.
const drainTime = 15 * time.Second

// maxReturns bounds the connections that are being taken back or asked about at a time.
const maxReturns = 64

func serveCommand(env *environment) *cobra.Command {
	var path, logFormat string
	var flags serveFlags
	c := &cobra.Command{
		Use:   "serve",
		Short: "Accept TLS connections and give them to applications, keys in the kernel",
		Long: `Accepts TCP connections, has worker processes complete TLS, installs the keys
into the kernel, and hands the sockets to the applications that are connected to
the listener's unix socket. Runs as root; workers run as worker_user.

Everything can be said in a TOML file (-c). Without one, the flags describe one
listener.`,
		Example: `  offloadd serve -c /etc/offloadd.toml
  offloadd serve --listen 0.0.0.0:443 --certificate chain.pem --key key.pem \
      --application /run/offloadd/web.sock --application-user www-data`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := flags.config(path, cmd.Flags().Changed)
			if err != nil {
				return err
			}
			log, err := newLogger(env, logFormat)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), env, config, log)
		},
	}
	f := c.Flags()
	f.StringVarP(&path, "config", "c", "", "read the configuration from this TOML `file`")
	f.StringVar(&logFormat, "log", "text", "write the log to standard error as \"text\" or \"json\"")
	flags.add(f)
	return c
}

func newLogger(env *environment, format string) (*slog.Logger, error) {
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(env.stderr, nil)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(env.stderr, nil)), nil
	}
	return nil, usageError("--log=%q, want text or json", format)
}

// daemon is the privileged process.
type daemon struct {
	env    *environment
	config *config
	log    *slog.Logger
	// key opens blobs; its instance names this start.
	key       *blob.PrivateKey
	pool      *pool
	relays    *relays
	signers   *signerKeeper
	guardian  *guardian
	settings  ktls.Settings // of every connection's keys
	observer  *bpf.Observer // nil if it is not loaded
	metrics   *metrics
	ledger    *ledger.Ledger
	custody   *custody.Table // where the keys of live connections are
	listeners []*listener
	// handshakes holds one token per connection between accept and hand-over.
	handshakes chan struct{}
	accepted   atomic.Uint64 // connections
	running    sync.WaitGroup
	// returns holds one token per connection between application and application, or that
	// an application asks about.
	returns chan struct{}
}

// listener is one listening address with its applications.
type listener struct {
	*listenerConfig
	daemon       *daemon
	tcp          *net.TCPListener
	applications *applications
	chooser      *userspace.Chooser // which record layer connections get
	log          *slog.Logger
}

// serve runs the daemon until ctx ends. What needs privilege comes first, then it is
// given up, and then work begins.
func serve(ctx context.Context, env *environment, config *config, log *slog.Logger) error {
	if err := smallPages(); err != nil {
		log.Warn("memory of idle connections is not given back in full", "error", err)
	}
	if err := beginShielded(env, config); err != nil {
		return err
	}
	d, err := newDaemon(env, config, log)
	if err != nil {
		return err
	}
	if d.ledger, err = ledger.Open(config.Ledger, d.key.Instance(), log); err != nil {
		return err
	}
	defer d.ledger.Close()
	endCustody, err := d.startCustody()
	if err != nil {
		return err
	}
	defer endCustody()
	defer d.closeListeners()
	if err := d.listen(ctx); err != nil {
		return err
	}
	endMetrics, err := d.startMetrics()
	if err != nil {
		return err
	}
	defer endMetrics()
	if err := confineDaemon(env, d.listeners, log); err != nil {
		return err
	}
	return d.work(ctx)
}

// newDaemon checks what serve needs of the machine, before anything is opened.
func newDaemon(env *environment, config *config, log *slog.Logger) (*daemon, error) {
	uid, gid, err := ready(config)
	if err != nil {
		return nil, err
	}
	d := &daemon{env: env, config: config, log: log, handshakes: make(chan struct{}, config.MaxHandshakes),
		returns: make(chan struct{}, maxReturns),
		custody: custody.NewTable(custody.MaxEntries, log), metrics: newMetrics(), observer: openDaemonObserver(config, log)}
	if err := ktls.TryNoPad(); err == nil {
		d.settings.NoPad = true
	} else {
		log.Info("the kernel copies what it decrypts of TLS 1.3", "reason", err)
	}
	if d.signers, err = newSignerKeeper(config, uid, env, log); err != nil {
		return nil, err
	}
	if d.key, err = blob.GenerateKey(); err != nil {
		return nil, err
	}
	d.pool = newPool(config, uid, gid, d.key, d.signers, env, log)
	if d.guardian, err = openGuardian(config, log); err != nil {
		return nil, err
	}
	d.pool.guardian = d.guardian
	d.relays = &relays{pool: d.pool}
	if d.signers != nil {
		d.signers.guardian = d.guardian
	}
	return d, nil
}

// work starts the processes, serves until ctx ends, and lets end what is under way.
func (d *daemon) work(ctx context.Context) error {
	pool, stopPool := context.WithCancel(context.Background())
	defer stopPool()
	go d.guardian.watch(pool)
	go d.observe(pool)
	go tendHeap(pool, d.accepted.Load, d.repack)
	if err := d.signers.start(pool); err != nil {
		return err
	}
	defer func() {
		stopPool()
		d.signers.stop() // after the workers, which need it to finish
	}()
	if err := d.pool.start(pool); err != nil {
		return err
	}
	for _, l := range d.listeners {
		d.log.Info("listening", "listener", l.Name, "address", l.tcp.Addr().String(), "application_socket", l.Application, "kernel_tls", l.KernelTLS)
		d.running.Go(func() { l.run(ctx) })
		go l.applications.run()
	}
	d.log.Info("ready", "pid", os.Getpid(), "uid", os.Getuid(), "instance", d.key.Instance().String(),
		"workers", d.config.Workers, "worker_uid", d.pool.uid,
		"ledger", d.config.Ledger, "ledger_entries", d.ledger.Stats().Entries, "workers_erase_secrets", handshaker.ErasesSecrets())
	<-ctx.Done()
	d.log.Info("stopping")
	for _, l := range d.listeners {
		l.tcp.Close()
	}
	drained, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	d.wait(drained)
	stopPool()
	d.pool.stop(drained)
	d.relays.leave()
	return nil
}

// wait waits for the connections under way, and lets no more be taken back.
func (d *daemon) wait(ctx context.Context) {
	done := make(chan struct{})
	go func() {
		d.running.Wait()
		for range cap(d.returns) {
			d.returns <- struct{}{}
		}
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		d.log.Warn("some handshakes did not end in time")
	}
}

// ready checks what serve needs of the machine, before anything is opened.
func ready(config *config) (uid, gid uint32, err error) {
	if os.Geteuid() != 0 {
		return 0, 0, machineError("serve must start as root: it gives workers a user of their own and asks the kernel for each socket's TLS mode (CAP_SETUID, CAP_SETGID, CAP_KILL, CAP_NET_ADMIN)")
	}
	uid, gid, err = userID(config.WorkerUser)
	if err != nil {
		return 0, 0, machineError("worker_user: %w; make one with \"useradd --system --no-create-home --shell /usr/sbin/nologin %s\", or name another", err, config.WorkerUser)
	}
	if uid == 0 {
		return 0, 0, usageError("worker_user is root; workers parse what strangers send, so they need a user without rights")
	}
	if err := shield(); err != nil {
		return 0, 0, err
	}
	if err := kernelReady(); err != nil && slices.ContainsFunc(config.Listeners, func(l listenerConfig) bool { return l.KernelTLS == userspace.Require.String() }) {
		return 0, 0, machineError("kernel TLS: %w; \"offloadd check\" tells more. With kernel_tls = \"prefer\" a listener goes on in user space", err)
	}
	return uid, gid, nil
}

// kernelReady tries the ULP and every suite on connections of its own, so that what
// the kernel lacks is found out here and not by the first client that wants it. It
// also loads the modules.
func kernelReady() error {
	tried := make(map[string]bool)
	for _, suite := range blob.CipherSuites() {
		name := ktls.SuiteFeature(suite)
		if tried[name] {
			continue
		}
		tried[name] = true
		if err := ktls.TrySuite(suite); errors.Is(err, ktls.ErrNoTLS) {
			return ktls.ErrNoTLS
		} else if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// listen opens all sockets. Those of an unfinished start are closed by closeListeners.
func (d *daemon) listen(ctx context.Context) error {
	for i := range d.config.Listeners {
		l := &listener{listenerConfig: &d.config.Listeners[i], daemon: d}
		policy, err := l.policy()
		if err != nil {
			return err
		}
		l.chooser = &userspace.Chooser{Policy: policy, FollowKeyUpdates: l.FollowKeyUpdates}
		l.log = d.log.With("listener", l.Name)
		if err := l.listen(ctx); err != nil {
			return fmt.Errorf("listener %q: %w", l.Name, err)
		}
		d.listeners = append(d.listeners, l)
	}
	return nil
}

func (d *daemon) closeListeners() {
	for _, l := range d.listeners {
		l.tcp.Close()
		l.applications.close()
	}
}

func (l *listener) listen(ctx context.Context) error {
	var uid, gid uint32
	if l.ApplicationUser != "" {
		var err error
		if uid, gid, err = userID(l.ApplicationUser); err != nil {
			return fmt.Errorf("application_user: %w", err)
		}
	}
	// A Multipath TCP socket cannot carry the ULP, and Go listeners are MPTCP by default.
	c := net.ListenConfig{}
	c.SetMultipathTCP(false)
	tcp, err := c.Listen(ctx, "tcp", l.Address)
	if err != nil {
		return err
	}
	l.tcp = tcp.(*net.TCPListener)
	if l.applications, err = listenApplications(l.Application, uid, gid, l.log); err != nil {
		l.tcp.Close()
		return err
	}
	l.applications.received = func(from *handoff.Conn, m *handoff.Message, file *os.File) {
		l.daemon.returns <- struct{}{}
		go func() {
			defer func() { <-l.daemon.returns }()
			if m.Type == handoff.Asked {
				l.attend(from, m, file)
			} else {
				l.takeBack(from, m, file)
			}
		}()
	}
	return nil
}

// run accepts connections until the listener is closed. Each has a goroutine until
// it is handed over; beyond max_handshakes they wait in the kernel's backlog.
func (l *listener) run(ctx context.Context) {
	for {
		l.daemon.handshakes <- struct{}{}
		tcp, err := l.tcp.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			<-l.daemon.handshakes
			return
		}
		if err != nil {
			<-l.daemon.handshakes
			l.log.Error("accept", "error", err)
			time.Sleep(acceptPause)
			continue
		}
		l.daemon.accepted.Add(1)
		c := &connection{listener: l, tcp: tcp, accepted: time.Now(), log: l.log}
		l.daemon.running.Go(func() {
			defer func() { <-l.daemon.handshakes }()
			// Connections under way are completed also when the daemon is asked to stop.
			c.serve(context.WithoutCancel(ctx))
		})
	}
}
