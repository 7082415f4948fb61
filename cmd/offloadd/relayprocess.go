// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/blob/handoff"
	"github.com/offloadd/offloadd/bpf"
	"github.com/offloadd/offloadd/ktls"
)

var (
	errRelayDied     = errors.New("the relay died")
	errRelayProtocol = errors.New("the relay broke the protocol")
	errRelaySilent   = errors.New("the relay did not answer in time")
)

// relays has the relay that new connections go to, and starts one when there is none. One
// that has had its number of connections, or its time, keeps those it has and ends with the
// last; also when the daemon has ended.
type relays struct {
	pool *pool

	mu      sync.Mutex
	current *relayProcess // guarded by mu; nil if none takes connections
}

// relayProcess is the daemon's side of one relay.
type relayProcess struct {
	cmd     *exec.Cmd
	channel *handoff.Conn
	log     *slog.Logger
	started time.Time

	offered int  // guarded by relays.mu
	pending int  // guarded by relays.mu: connections that are given, and not answered
	retired bool // guarded by relays.mu: it gets no more, and is told when none is pending

	// sealing keeps the order of blobs on the channel the order of the ratchet.
	sealing sync.Mutex
	sealer  *blob.Sealer // guarded by sealing

	mu      sync.Mutex
	waiting map[uint64]chan<- relayed // guarded by mu; nil once dead
}

// relayed is what a relay made of a connection.
type relayed struct {
	plain *os.File
	err   error
}

// relayTimeout bounds a relay's answer, which takes no network: one that is later is stuck.
// It is not what is left of the peer's time, since the end of a relay is that of all its
// connections.
const relayTimeout = 10 * time.Second

// relay gives both keys of a connection to a relay, which destroys them here, and returns
// the plain end.
func (r *relays) relay(c *connection, read, write *blob.State) (*os.File, *relayProcess, error) {
	defer read.Destroy()
	defer write.Destroy()
	// The relay may not ask.
	if err := ktls.CheckStates(c.tcp, read, write); err != nil {
		return nil, nil, err
	}
	p, err := r.take()
	if err != nil {
		return nil, nil, err
	}
	defer r.answered(p)
	replies, err := p.offer(c, read, write)
	if err != nil {
		return nil, p, err
	}
	timer := time.NewTimer(relayTimeout)
	defer timer.Stop()
	select {
	case done := <-replies:
		return done.plain, p, done.err
	case <-timer.C:
		p.kill()
		done := <-replies
		if done.err == nil {
			done.plain.Close()
		}
		return nil, p, errRelaySilent
	}
}

// take returns the relay for one more connection.
func (r *relays) take() (*relayProcess, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.current
	if p != nil && p.offered < r.pool.config.WorkerConnections && time.Since(p.started) < time.Duration(r.pool.config.WorkerLifetime) && p.alive() {
		p.offered++
		p.pending++
		return p, nil
	}
	next, err := startRelay(r.pool)
	if err != nil {
		return nil, err
	}
	r.retire()
	next.offered, next.pending = 1, 1
	r.current = next
	return next, nil
}

// answered ends what take began.
func (r *relays) answered(p *relayProcess) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.pending--; p.retired && p.pending == 0 {
		p.drain()
	}
}

// retire tells the relay that nothing more comes, once nothing is on its way to it. The
// caller holds mu.
func (r *relays) retire() {
	if p := r.current; p != nil {
		if p.retired = true; p.pending == 0 {
			p.drain()
		}
	}
	r.current = nil
}

// leave is retire for the daemon's end.
func (r *relays) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.retire()
}

// startRelay starts a relay and returns when it is ready.
func startRelay(p *pool) (*relayProcess, error) {
	cmd, channel, err := p.startRole("relay", nil)
	if err != nil {
		return nil, err
	}
	r := &relayProcess{cmd: cmd, channel: channel, started: time.Now(), waiting: make(map[uint64]chan<- relayed),
		log: p.log.With("relay_pid", cmd.Process.Pid)}
	err = r.introduce(p)
	if err == nil {
		// It sends records that it made itself, as a worker does, and like a worker's its
		// connections stay in the hands of the plaintext guard: what has not the framing of
		// records does not leave.
		err = p.guardian.admit(cmd.Process.Pid, bpf.Handshaker|bpf.Shielded)
	}
	if err != nil {
		channel.Close()
		status := endOf(cmd, err)
		return nil, fmt.Errorf("relay %d did not get ready: %w (%v; its own message is above)", cmd.Process.Pid, err, status)
	}
	r.log.Info("relay ready", "relay_uid", p.uid, "sealer", r.sealer.ID().String())
	go r.read()
	return r, nil
}

// introduce takes the relay's public key and sends a sealer for it (PROTOCOL.md, section 5).
func (p *relayProcess) introduce(pool *pool) error {
	p.channel.Expect(handoff.Peer{PID: p.cmd.Process.Pid, UID: pool.uid, GID: pool.gid})
	p.channel.SetDeadline(time.Now().Add(readyTimeout))
	defer p.channel.SetDeadline(time.Time{})
	m, file, err := p.channel.Receive()
	if err != nil {
		return err
	}
	if file != nil {
		file.Close()
	}
	if m.Type != handoff.Setup {
		return fmt.Errorf("%w: %v before %v", errRelayProtocol, m.Type, handoff.Setup)
	}
	public, err := blob.ParsePublicKey(m.Body)
	if err != nil {
		return err
	}
	sealer, setup, err := blob.NewSealer(public)
	if err != nil {
		return err
	}
	p.sealer = sealer
	return p.channel.Send(&handoff.Message{Type: handoff.Ready, Body: setup}, nil)
}

// offer seals both keys and sends them with the connection. Exactly one reply follows.
func (p *relayProcess) offer(c *connection, read, write *blob.State) (<-chan relayed, error) {
	p.sealing.Lock()
	defer p.sealing.Unlock()
	expiry := time.Now().Add(blobLifetime)
	sealedRead, err := p.sealer.Seal(read, expiry)
	if err != nil {
		return nil, fmt.Errorf("seal the read key: %w", err)
	}
	sealedWrite, err := p.sealer.Seal(write, expiry)
	if err != nil {
		return nil, fmt.Errorf("seal the write key: %w", err)
	}
	replies := make(chan relayed, 1)
	p.mu.Lock()
	if p.waiting == nil {
		p.mu.Unlock()
		return nil, errRelayDied
	}
	p.waiting[c.cookie] = replies
	p.mu.Unlock()
	p.channel.SetWriteDeadline(time.Now().Add(readyTimeout))
	m := &handoff.Message{Type: handoff.Moved, Cookie: c.cookie, Read: sealedRead, Write: sealedWrite, Facts: c.facts}
	if err := p.channel.Send(m, c.tcp); err != nil {
		p.answer(c.cookie, relayed{})
		return nil, fmt.Errorf("%w: %v", errRelayDied, err)
	}
	return replies, nil
}

// answer gives a reply to who waits for it; false if nobody does.
func (p *relayProcess) answer(cookie uint64, r relayed) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	replies, ok := p.waiting[cookie]
	if ok {
		delete(p.waiting, cookie)
		replies <- r // has room for the one
	}
	return ok
}

func (p *relayProcess) alive() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.waiting != nil
}

// drain makes the relay end with its last connection.
func (p *relayProcess) drain() {
	p.channel.SetWriteDeadline(time.Now().Add(sendTime))
	if err := p.channel.Send(&handoff.Message{Type: handoff.Drain}, nil); err != nil {
		p.channel.Close() // which tells the same
	}
}

func (p *relayProcess) kill() { p.cmd.Process.Kill() }

// read serves the relay's messages until its end.
func (p *relayProcess) read() {
	var err error
	for err == nil {
		err = p.receive()
	}
	if errors.Is(err, errRelayProtocol) {
		p.kill()
	}
	// A relay that was drained has closed its channel only at its end.
	p.channel.Close()
	status := p.cmd.Wait()
	p.mu.Lock()
	waiting := p.waiting
	p.waiting = nil
	p.mu.Unlock()
	for _, replies := range waiting {
		replies <- relayed{err: fmt.Errorf("%w: %v", errRelayDied, status)}
	}
	p.sealing.Lock()
	p.sealer.Destroy()
	p.sealing.Unlock()
	if status == nil && len(waiting) == 0 {
		p.log.Info("relay left")
	} else {
		p.log.Error("relay died; the connections it had are ended", "error", err, "status", fmt.Sprint(status))
	}
}

// receive serves one message.
func (p *relayProcess) receive() error {
	m, file, err := p.channel.Receive()
	if err != nil {
		return err
	}
	answered := false
	switch m.Type {
	case handoff.Relayed:
		if answered = isPlainEnd(file) && p.answer(m.Relays(), relayed{plain: file}); answered {
			return nil
		}
	case handoff.Failed:
		answered = p.answer(m.Cookie, relayed{err: fmt.Errorf("relay: %s", printable(m.Body))})
	}
	if file != nil {
		file.Close()
	}
	if !answered {
		return fmt.Errorf("%w: %v for socket %d, %d", errRelayProtocol, m.Type, m.Cookie, m.Relays())
	}
	return nil
}
