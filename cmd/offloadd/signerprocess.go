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

	"github.com/offloadd/offloadd/bpf"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/signer"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/token"
)

var (
	errSignerDied = errors.New("the signer died")
	// errPINRefused ends the attempts: each may cost one of a few that a token allows.
	errPINRefused = errors.New("not tried again, because tokens lock after a few wrong PINs; correct the PIN file and restart")
)

// grantTimeout bounds how long the signer may take to accept a worker's channel. It
// looks up all keys for it.
const grantTimeout = 10 * time.Second

// signerProcess is the daemon's side of the signer.
type signerProcess struct {
	cmd     *exec.Cmd
	control *signControl
	log     *slog.Logger
	started time.Time
	dead    chan struct{} // closed when the process is gone and all grants have ended

	mu     sync.Mutex
	last   uint64            // guarded by mu
	grants map[uint64]*grant // guarded by mu; nil once dead
}

// grant is a worker's channel to the signer.
type grant struct {
	granted chan struct{} // closed when the signer serves it
	ended   chan struct{} // closed when it does no more
	// Set before ended is closed: how the worker broke the protocol, or that the signer
	// is no more.
	broke string
	died  bool
}

// startSignerProcess starts a signer and returns when it has found all keys.
func startSignerProcess(k *signerKeeper) (*signerProcess, error) {
	setup, files, err := k.setup(channelFD + 1)
	defer closeAll(files)
	if err != nil {
		return nil, err
	}
	control, theirs, err := signControlPair()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe", "sign")
	cmd.Args[0] = os.Args[0]
	cmd.Dir = "/"
	// PKCS#11 modules find their own configuration by the environment (SoftHSM by
	// SOFTHSM2_CONF), each by another name.
	cmd.Env = append(os.Environ(), k.env.workerEnv...)
	cmd.Stderr = k.env.stderr
	cmd.ExtraFiles = append([]*os.File{theirs}, files...)
	err = startUnprivileged(cmd, k.uid, k.gid, k.groups...)
	theirs.Close()
	if err != nil {
		control.conn.Close()
		return nil, fmt.Errorf("start the signer as uid %d: %w", k.uid, err)
	}
	p := &signerProcess{
		cmd: cmd, control: control, log: k.log.With("signer_pid", cmd.Process.Pid), started: time.Now(),
		dead: make(chan struct{}), grants: make(map[uint64]*grant),
	}
	err = p.introduce(setup)
	if err == nil {
		err = k.guardian.admit(cmd.Process.Pid, bpf.Shielded)
	}
	if err != nil {
		control.conn.Close()
		endOf(cmd, err)
		return nil, err
	}
	p.log.Info("signer ready", "signer_uid", k.uid, "keys", len(setup.Keys))
	go p.read()
	return p, nil
}

func (p *signerProcess) kill() { p.cmd.Process.Kill() }

func (p *signerProcess) introduce(setup *signMessage) error {
	p.control.conn.SetReadDeadline(time.Now().Add(readyTimeout))
	defer p.control.conn.SetReadDeadline(time.Time{})
	if err := p.control.send(setup, nil, readyTimeout); err != nil {
		return fmt.Errorf("the signer did not get ready: %w", err)
	}
	m, _, err := p.control.receive()
	switch {
	case err != nil:
		return fmt.Errorf("the signer did not get ready: %w", err)
	case m.Event != signReady:
		return fmt.Errorf("%w: the signer says %q before %q", errProtocol, m.Event, signReady)
	case m.PIN:
		return fmt.Errorf("signer: %s; %w", printable([]byte(m.Error)), errPINRefused)
	case m.Error != "":
		return fmt.Errorf("signer: %s", printable([]byte(m.Error)))
	}
	return nil
}

// channel makes a channel and gives one end to the signer. The caller gives the other
// to a worker.
func (p *signerProcess) channel() (*os.File, *grant, error) {
	theirs, workers, err := signer.Pair()
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close()
	g := &grant{granted: make(chan struct{}), ended: make(chan struct{})}
	p.mu.Lock()
	if p.grants == nil {
		p.mu.Unlock()
		workers.Close()
		return nil, nil, errSignerDied
	}
	p.last++
	number := p.last
	p.grants[number] = g
	p.mu.Unlock()
	if err = p.control.send(&signMessage{Event: signGrant, Grant: number}, theirs, grantTimeout); err == nil {
		select {
		case <-g.granted:
			return workers, g, nil
		case <-g.ended:
			err = errSignerDied
		case <-time.After(grantTimeout):
			err = fmt.Errorf("the signer did not accept a worker within %v", grantTimeout)
		}
	}
	workers.Close() // and with it the grant, when the signer sees that
	return nil, nil, err
}

// read serves the signer's messages until its end.
func (p *signerProcess) read() {
	var err error
	var counts signer.Counts
	left := false
	for err == nil {
		var m *signMessage
		if m, _, err = p.control.receive(); err != nil {
			break
		}
		if m.Event == signLeaving && m.Count != nil {
			counts, left = *m.Count, true
			continue
		}
		err = p.handle(m)
	}
	p.control.conn.Close()
	status := endOf(p.cmd, err)
	p.mu.Lock()
	for _, g := range p.grants {
		g.died = true
		close(g.ended)
	}
	p.grants = nil
	p.mu.Unlock()
	if left {
		p.log.Info("signer left", "signed", counts.Signed, "refused", counts.Refused, "failed", counts.Failed, "channels_ended", counts.Ended)
	} else {
		p.log.Error("signer died", "error", err, "status", fmt.Sprint(status))
	}
	close(p.dead)
}

func (p *signerProcess) handle(m *signMessage) error {
	if m.Event == signTold {
		p.log.Warn("signer: "+printable([]byte(m.What)), "key", m.Key, "error", printable([]byte(m.Error)))
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	g, ok := p.grants[m.Grant]
	if !ok {
		return fmt.Errorf("%w: the signer says %q of channel %d, which it does not have", errProtocol, m.Event, m.Grant)
	}
	switch m.Event {
	case signGranted:
		select {
		case <-g.granted:
			return fmt.Errorf("%w: the signer says %q twice", errProtocol, m.Event)
		default:
			close(g.granted)
		}
	case signEnded:
		g.broke = printable([]byte(m.Error))
		close(g.ended)
		delete(p.grants, m.Grant)
	default:
		return fmt.Errorf("%w: the signer says %q", errProtocol, m.Event)
	}
	return nil
}

// stop lets the signer end in order.
func (p *signerProcess) stop() {
	p.control.conn.CloseWrite()
	select {
	case <-p.dead:
	case <-time.After(2*signControlTimeout + time.Second):
		p.kill()
		<-p.dead
	}
}

// setup opens the files with PINs, unread, and returns the first message.
func (k *signerKeeper) setup(firstFD int) (*signMessage, []*os.File, error) {
	m := &signMessage{Event: signSetup}
	var files []*os.File
	for _, text := range k.keys {
		r, err := token.Parse(text)
		if err != nil {
			return nil, files, err
		}
		key := signKey{Reference: text}
		if r.PINFile != "" {
			f, err := os.Open(r.PINFile)
			if err != nil {
				return nil, files, fmt.Errorf("%s: PIN: %w", r, err)
			}
			files = append(files, f)
			key.PIN = firstFD + len(files) - 1
		}
		m.Keys = append(m.Keys, key)
	}
	return m, files, nil
}
