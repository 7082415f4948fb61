// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/blob/handoff"
	"github.com/offloadd/offloadd/bpf"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/ledger"
)

var (
	errRetired    = errors.New("the worker takes no more connections")
	errWorkerDied = errors.New("the handshake worker died")
	errProtocol   = errors.New("the handshake worker broke the protocol")
)

// reply is what a worker made of one connection.
type reply struct {
	keys                *ledger.Pending
	readSize, writeSize int // of the blobs, in bytes
	facts               *blob.Facts
	openTime, enterTime time.Duration
	err                 error
}

func (r *reply) destroy() { r.keys.Destroy() }

// workerProcess is the daemon's side of one worker.
type workerProcess struct {
	cmd     *exec.Cmd
	channel *handoff.Conn
	opener  *blob.Opener // used by read only
	log     *slog.Logger
	started time.Time
	most    int           // connections in a life
	grace   time.Duration // for draining
	// lifetime ends with the worker, or else keeps all this until then.
	lifetime *time.Timer
	// retired is closed when the worker takes no more connections, dead when the
	// process is gone and all its connections have their reply.
	retired, dead chan struct{}

	// sending makes taking a place in waiting and sending the connection one act, so
	// that nothing follows Drain on the channel. It comes before mu.
	sending sync.Mutex

	mu sync.Mutex
	// waiting holds who waits for the reply of which connection; nil once dead.
	waiting map[uint64]waiter // guarded by mu
	offered int               // guarded by mu
	full    bool              // guarded by mu: retired is closed
}

type waiter struct {
	role    blob.Role
	replies chan<- reply
}

// readyTimeout bounds a worker's start.
const readyTimeout = 20 * time.Second

// startWorkerProcess starts a worker and returns when it is ready.
func startWorkerProcess(p *pool) (*workerProcess, error) {
	signer, grant, err := p.signerChannel()
	if err != nil {
		return nil, err
	}
	keys := p.ticketKeys()
	body, files, err := makeSetup(p.config, p.key.Public().Bytes(), keys, channelFD+1, signer)
	clear(keys)
	defer clear(body)
	if err != nil {
		return nil, err
	}
	cmd, channel, err := p.startRole("handshake", files)
	closeAll(files)
	if err != nil {
		return nil, err
	}
	w := &workerProcess{
		cmd: cmd, channel: channel, started: time.Now(),
		log:  p.log.With("worker_pid", cmd.Process.Pid),
		most: p.config.WorkerConnections, grace: time.Duration(p.config.HandshakeTimeout) + time.Second,
		retired: make(chan struct{}), dead: make(chan struct{}),
		waiting: make(map[uint64]waiter),
	}
	// Roles end when a program is executed, which it certainly is once it has spoken. The
	// shield it has from birth.
	err = w.introduce(p, body)
	if err == nil {
		err = p.guardian.admit(cmd.Process.Pid, bpf.Handshaker|bpf.Shielded)
	}
	if err != nil {
		channel.Close()
		status := endOf(cmd, err)
		return nil, fmt.Errorf("worker %d did not get ready: %w (%v; its own message is above)", cmd.Process.Pid, err, status)
	}
	w.log.Info("worker ready", "worker_uid", p.uid, "sealer", w.opener.ID().String())
	w.lifetime = time.AfterFunc(time.Duration(p.config.WorkerLifetime), w.retire)
	go w.read()
	if grant != nil {
		go w.watch(grant)
	}
	return w, nil
}

// startRole starts a process of a role as the workers' user, with a channel to it and
// further files to inherit.
func (p *pool) startRole(role string, files []*os.File) (*exec.Cmd, *handoff.Conn, error) {
	channel, theirs, err := handoff.Pair()
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.Command("/proc/self/exe", role)
	cmd.Args[0] = os.Args[0]
	cmd.Dir = "/"
	cmd.Env = append(workerEnvironment(), p.env.workerEnv...)
	cmd.Stderr = p.env.stderr
	cmd.ExtraFiles = append([]*os.File{theirs}, files...)
	err = startUnprivileged(cmd, p.uid, p.gid)
	theirs.Close()
	if err != nil {
		channel.Close()
		return nil, nil, fmt.Errorf("start \"offloadd %s\" as uid %d: %w", role, p.uid, err)
	}
	return cmd, channel, nil
}

// signerChannel returns a worker's channel to the signer, as a list of one file; none
// where there is no signer.
func (p *pool) signerChannel() ([]*os.File, *grant, error) {
	if p.signers == nil {
		return nil, nil, nil
	}
	file, grant, err := p.signers.channel()
	if err != nil {
		return nil, nil, err
	}
	return []*os.File{file}, grant, nil
}

// watch replaces the worker once it has no signer: it finishes what it has. One that
// broke the signer's protocol finishes nothing.
func (w *workerProcess) watch(g *grant) {
	select {
	case <-w.dead:
		return
	case <-g.ended:
	}
	if g.broke != "" {
		w.log.Error("worker killed for what it sent to the signer", "error", g.broke)
		w.kill()
		return
	}
	if !g.died {
		// The worker's end was closed, which mostly is its own death.
		select {
		case <-w.dead:
			return
		case <-time.After(time.Second):
		}
	}
	w.retire()
}

// endOf waits for the end of a process whose channel failed. One that closed it is
// about to exit, and must be able to say why.
func endOf(cmd *exec.Cmd, err error) error {
	if errors.Is(err, io.EOF) {
		stop := time.AfterFunc(time.Second, func() { cmd.Process.Kill() })
		defer stop.Stop()
	} else {
		cmd.Process.Kill()
	}
	return cmd.Wait()
}

// workerEnvironment is all that a worker sees of the daemon's environment.
func workerEnvironment() []string {
	var env []string
	for _, name := range []string{"GODEBUG", "GOTRACEBACK", "GOMAXPROCS"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// introduce sends the setup and takes the worker's sealer.
func (w *workerProcess) introduce(p *pool, body []byte) error {
	w.channel.Expect(handoff.Peer{PID: w.cmd.Process.Pid, UID: p.uid, GID: p.gid})
	w.channel.SetDeadline(time.Now().Add(readyTimeout))
	defer w.channel.SetDeadline(time.Time{})
	if err := w.channel.Send(&handoff.Message{Type: handoff.Setup, Body: body}, nil); err != nil {
		return err
	}
	m, file, err := w.channel.Receive()
	if err != nil {
		return err
	}
	if file != nil {
		file.Close()
	}
	if m.Type != handoff.Ready {
		return fmt.Errorf("%w: %v before %v", errProtocol, m.Type, handoff.Ready)
	}
	w.opener, err = p.key.NewOpener(m.Body)
	return err
}

// load returns how many connections are under way, and whether more are taken.
func (w *workerProcess) load() (int, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.waiting), !w.full && w.waiting != nil
}

// offer sends a connection to the worker. Exactly one reply follows.
func (w *workerProcess) offer(c *connection) (<-chan reply, error) {
	w.sending.Lock()
	defer w.sending.Unlock()
	replies := make(chan reply, 1)
	w.mu.Lock()
	if w.full || w.waiting == nil {
		w.mu.Unlock()
		return nil, errRetired
	}
	w.waiting[c.cookie] = waiter{blob.Server, replies}
	w.offered++
	last := w.offered >= w.most
	w.mu.Unlock()
	w.channel.SetWriteDeadline(time.Now().Add(w.grace))
	err := w.channel.Send(&handoff.Message{Type: handoff.Handshake, Cookie: c.cookie, Body: []byte(c.listener.Name)}, c.tcp)
	if last {
		w.drain()
	}
	if err != nil {
		w.take(c.cookie)
		return nil, fmt.Errorf("%w: %v", errWorkerDied, err)
	}
	return replies, nil
}

// take ends the wait for a reply; false if there is none to wait for.
func (w *workerProcess) take(cookie uint64) (waiter, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	waiting, ok := w.waiting[cookie]
	delete(w.waiting, cookie)
	return waiting, ok
}

// retire makes the worker finish what it has, and exit.
func (w *workerProcess) retire() {
	w.sending.Lock()
	defer w.sending.Unlock()
	w.drain()
}

// drain is retire for who holds sending.
func (w *workerProcess) drain() {
	w.mu.Lock()
	done := w.full || w.waiting == nil
	if !done {
		w.full = true
		close(w.retired)
	}
	w.mu.Unlock()
	if done {
		return
	}
	w.channel.SetWriteDeadline(time.Now().Add(w.grace))
	if err := w.channel.Send(&handoff.Message{Type: handoff.Drain}, nil); err != nil {
		w.kill()
		return
	}
	timer := time.AfterFunc(w.grace, w.kill)
	go func() {
		<-w.dead
		timer.Stop()
	}()
}

func (w *workerProcess) kill() { w.cmd.Process.Kill() }

// read serves the worker's messages until its end, whichever way it comes.
func (w *workerProcess) read() {
	var err error
	for err == nil {
		err = w.receive()
	}
	w.lifetime.Stop()
	w.channel.Close()
	status := endOf(w.cmd, err)
	w.opener.Destroy()
	w.mu.Lock()
	waiting, drained := w.waiting, w.full
	w.waiting = nil
	w.mu.Unlock()
	for _, wait := range waiting {
		wait.replies <- reply{err: fmt.Errorf("%w: %v", errWorkerDied, status)}
	}
	if drained && len(waiting) == 0 {
		w.log.Info("worker left", "connections", w.offered)
	} else {
		w.log.Error("worker died", "error", err, "status", fmt.Sprint(status), "connections_lost", len(waiting))
	}
	close(w.dead)
}

// receive serves one message. An error ends the worker: each Established or Failed
// must answer one Handshake, and nothing else may come.
func (w *workerProcess) receive() error {
	m, sock, err := w.channel.Receive()
	if err != nil {
		return err
	}
	if sock != nil {
		// It proved which socket the blobs are for. The daemon's own descriptor of that
		// socket is the one that goes on.
		defer sock.Close()
	}
	if m.Type != handoff.Established && m.Type != handoff.Failed {
		return fmt.Errorf("%w: %v", errProtocol, m.Type)
	}
	wait, ok := w.take(m.Cookie)
	if !ok {
		return fmt.Errorf("%w: %v for socket %d, which it does not have", errProtocol, m.Type, m.Cookie)
	}
	if m.Type == handoff.Failed {
		wait.replies <- reply{err: fmt.Errorf("handshake: %s", printable(m.Body))}
		return nil
	}
	r := w.open(m, wait.role)
	err = r.err
	wait.replies <- r
	return err
}

// open opens both blobs, here and in this order, because the ratchet knows only
// one order: that of arrival.
func (w *workerProcess) open(m *handoff.Message, role blob.Role) (r reply) {
	start := time.Now()
	want := blob.Binding{Cookie: m.Cookie, Role: role, Direction: blob.Read, Now: start}
	r = reply{facts: m.Facts, readSize: len(m.Read), writeSize: len(m.Write)}
	var read, write *blob.State
	if read, r.err = w.opener.Open(m.Read, want); r.err != nil {
		r.err = fmt.Errorf("open the read key: %w", r.err)
		return r
	}
	want.Direction = blob.Write
	if write, r.err = w.opener.Open(m.Write, want); r.err != nil {
		r.err = fmt.Errorf("open the write key: %w", r.err)
		read.Destroy()
		return r
	}
	r.keys = ledger.NewPending(read, write)
	r.openTime = time.Since(start)
	return r
}

// printable makes a worker's words safe for a log: it may be taken over.
func printable(b []byte) string {
	q := fmt.Sprintf("%+q", b)
	return q[1 : len(q)-1]
}
