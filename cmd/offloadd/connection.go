// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/blob/handoff"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/custody"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/ledger"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/userspace"
)

var (
	errWorkerSilent = errors.New("the handshake worker did not answer in time")
	errInClear      = errors.New("the handshake worker sent bytes that are no TLS records; they did not leave")
)

// connection is one TLS connection, from accept to the application. Its steps are
// methods, called once each and in order by serve.
type connection struct {
	listener *listener
	tcp      *net.TCPConn
	cookie   uint64
	facts    *blob.Facts
	accepted time.Time
	log      *slog.Logger
	// plain is what an application gets of a connection that is relayed, else nil.
	plain *os.File
	// inClear is closed if the guards stop bytes in clear; nil without guards.
	inClear <-chan struct{}
}

// serve takes the connection from accept to the application. The daemon keeps
// no key and no descriptor of it afterwards: a lasting duplicate would delay FIN. Where
// keys can change it keeps the secrets that the next ones come from.
func (c *connection) serve(ctx context.Context) {
	defer c.tcp.Close()
	defer c.closePlain()
	defer func() { c.listener.daemon.guardian.settled(c.cookie) }()
	reached := c.listener.daemon.env.reached
	reached(stepAccepted)
	if err := c.attach(); err != nil {
		// Nothing was sent, and without the ULP nothing needs to be shut down.
		c.log.Warn("connection refused", "step", stepAccepted, "error", err)
		c.listener.daemon.metrics.failed(stepAccepted)
		return
	}
	reached(stepAttached)
	at, err := c.keyed(ctx, reached)
	if err != nil {
		err = errors.Join(err, c.end())
		c.listener.daemon.metrics.failed(at)
		c.logEnded(at, err)
		return
	}
	if c.deliver(ctx, nil) {
		reached(stepHandedOver)
	}
}

// attach puts the ULP on at once: a peer that sends FIN early would make it fail
// later (ENOTCONN in CLOSE_WAIT, net/ipv4/tcp_ulp.c).
func (c *connection) attach() (err error) {
	if c.cookie, err = handoff.Cookie(c.tcp); err != nil {
		return err
	}
	c.log = c.log.With("socket", c.cookie)
	// Before anybody else has a descriptor.
	if c.inClear, err = c.listener.daemon.guardian.pending(c.cookie); err != nil {
		return err
	}
	if c.listener.chooser.Policy != userspace.Require {
		return nil // the chooser does, or says why not
	}
	return ktls.Attach(c.tcp)
}

// keyed has the handshake made and installs its keys. It returns the last step that
// was reached.
func (c *connection) keyed(ctx context.Context, reached func(step)) (step, error) {
	timeout := time.Duration(c.listener.daemon.config.HandshakeTimeout)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	w, replies, err := c.listener.daemon.pool.offer(ctx, c)
	if err != nil {
		return stepAttached, err
	}
	reached(stepOffered)
	offered := time.Now()
	r, err := c.await(w, replies, timeout)
	if err != nil {
		return stepOffered, err
	}
	defer r.destroy()
	handshake := time.Since(offered)
	c.listener.daemon.metrics.handshakes.Observe(handshake.Seconds())
	reached(stepOpened)
	c.facts = r.facts
	var cannot error
	if c.listener.chooser.Policy != userspace.Require {
		cannot = c.listener.chooser.KernelCannot(c.tcp, c.facts.Suite)
	}
	// Before the install, never after: a daemon that dies in between has at most
	// entered a key that nobody has.
	start := time.Now()
	entered, err := c.listener.daemon.ledger.Enter(r.keys)
	if err != nil {
		if errors.Is(err, ledger.ErrReplay) {
			w.kill() // no honest worker has a key twice
		}
		return stepOpened, err
	}
	r.enterTime = time.Since(start)
	reached(stepEntered)
	if cannot != nil {
		return c.relayed(w, &r, entered, cannot)
	}
	start = time.Now()
	read, write := entered.Take()
	entry := c.custodyEntry(w, read.Epoch, write.Epoch)
	kept, info, err := c.listener.daemon.settings.InstallKeeping(c.tcp, read, write)
	if err != nil {
		return stepEntered, err
	}
	attendant, err := ktls.NewAttendant(c.tcp, kept, c.facts.Version, c.listener.daemon.ledger.EnterNext)
	if err != nil {
		return stepInstalled, err
	}
	c.logInstalled(w, &r, info, handshake, time.Since(start))
	c.listener.daemon.metrics.installed(c.facts, info)
	c.recordCustody(entry, info, start)
	c.listener.daemon.custody.Keep(c.cookie, keep(attendant, c.facts, c.accepted))
	if err := c.listener.daemon.guardian.ready(c.cookie); err != nil {
		return stepInstalled, err
	}
	c.listener.daemon.guardian.settled(c.cookie)
	reached(stepInstalled)
	return stepInstalled, nil
}

// Bounds of what a connection that failed is listened to.
const (
	lingerTime  = time.Second
	lingerBytes = 256 << 10
)

// end ends a connection that did not get its keys. The ULP is on and a key may be
// missing: what is written now would leave in the clear. After the shutdown nobody
// can write, whoever holds a descriptor.
//
// The worker may have sent an alert, and the peer more than we read. TCP answers the
// close of a socket with unread data by a reset, and the peer's next write would fail
// before it reads the alert (RFC 1122, Section 4.2.2.13). So what it sends is read and
// dropped for a moment.
func (c *connection) end() error {
	if c.tcp.CloseWrite() == nil && c.tcp.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
		// However it ends, the shutdown of both directions follows.
		_, _ = io.CopyN(io.Discard, c.tcp, lingerBytes)
	}
	return ktls.Shutdown(c.tcp)
}

// await waits for the worker's reply. A worker has a timeout of its own and answers
// after it; one that does not is stuck, and killed.
func (c *connection) await(w *workerProcess, replies <-chan reply, timeout time.Duration) (reply, error) {
	timer := time.NewTimer(timeout + 2*time.Second)
	defer timer.Stop()
	select {
	case r := <-replies:
		return r, r.err
	case <-timer.C:
		return reply{}, c.giveUp(w, replies, errWorkerSilent)
	case <-c.inClear:
		// What was stopped stays queued: the kernel must forget it.
		return reply{}, errors.Join(c.giveUp(w, replies, errInClear), c.tcp.SetLinger(0))
	}
}

// giveUp kills a worker for a reason.
func (c *connection) giveUp(w *workerProcess, replies <-chan reply, why error) error {
	w.kill()
	// The reply that the worker's death causes, or that crossed the kill.
	r := <-replies
	r.destroy()
	return why
}

// logEnded logs a connection that got no keys, and of which kind the reason is.
func (c *connection) logEnded(at step, err error) {
	log := c.log
	if errors.Is(err, ledger.ErrReplay) {
		log = log.With("kind", "replay", "replays", c.listener.daemon.ledger.Stats().Replays)
	}
	log.Warn("connection ended", "step", at, "error", err)
}

func (c *connection) logInstalled(w *workerProcess, r *reply, info ktls.Info, handshake, install time.Duration) {
	c.log.Info("installed", append(c.agreed(),
		"tx", info.TX.String(), "rx", info.RX.String(), "path_reason", info.Reason, "no_pad", info.NoPad,
		"worker_pid", w.cmd.Process.Pid, "sealer", w.opener.ID().String(),
		"read_blob_bytes", r.readSize, "write_blob_bytes", r.writeSize,
		"handshake_us", handshake.Microseconds(), "open_us", r.openTime.Microseconds(), "enter_us", r.enterTime.Microseconds(), "install_us", install.Microseconds(),
		"accept_to_installed_us", time.Since(c.accepted).Microseconds())...)
}

// agreed is what was agreed on, for a log.
func (c *connection) agreed() []any {
	f := c.facts
	return []any{"peer", c.tcp.RemoteAddr().String(),
		"version", f.Version.String(), "suite", f.Suite.String(), "group", groupName(f.Group),
		"resumed", f.Resumed, "alpn", f.ALPN, "server_name", f.ServerName,
		"peer_certificates", len(f.PeerCertificates), "peer_verified", f.PeerVerified}
}

// deliver gives the socket to an application, other than the one that gave it back, if
// any. Where there is none, it ends the connection.
func (c *connection) deliver(ctx context.Context, from *handoff.Conn) bool {
	if err := c.tryDeliver(ctx, from); err != nil {
		c.log.Warn("connection ended", "step", stepInstalled, "error", err)
		c.listener.daemon.metrics.failed(stepInstalled)
		c.closeNotify()
		return false
	}
	return true
}

func (c *connection) tryDeliver(ctx context.Context, from *handoff.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(c.listener.daemon.config.ApplicationTimeout))
	defer cancel()
	start := time.Now()
	m, sock, err := c.handOver()
	if err != nil {
		return err
	}
	peer, err := c.listener.applications.deliver(ctx, m, sock, from)
	if err != nil {
		return err
	}
	c.listener.daemon.metrics.handoffs.Observe(time.Since(start).Seconds())
	c.listener.daemon.custody.Pass(c.cookie, custody.Hand{Role: "application", PID: peer.PID, UID: peer.UID, Time: time.Now()})
	c.log.Info("handed over", "application_pid", peer.PID, "application_uid", peer.UID,
		"accept_to_application_us", time.Since(c.accepted).Microseconds())
	return nil
}

// closeNotify ends a connection whose keys are installed but which nobody took.
func (c *connection) closeNotify() {
	if c.plain != nil {
		c.closePlain() // and the relay does the rest
		return
	}
	conn, err := ktls.NewConn(c.tcp)
	if err == nil {
		err = conn.Close()
	}
	if err != nil {
		c.log.Warn("close", "error", errors.Join(err, c.end()))
	}
}

// groupName names a NamedGroup as RFC 8446, Section 4.2.7 and the IANA registry do.
func groupName(id uint16) string {
	switch id {
	case 0:
		return "none"
	case 0x0017:
		return "secp256r1"
	case 0x0018:
		return "secp384r1"
	case 0x0019:
		return "secp521r1"
	case 0x001d:
		return "x25519"
	case 0x11eb:
		return "SecP256r1MLKEM768"
	case 0x11ec:
		return "X25519MLKEM768"
	case 0x11ed:
		return "SecP384r1MLKEM1024"
	}
	return fmt.Sprintf("0x%04x", id)
}
