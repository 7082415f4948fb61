// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/offloadd/offloadd/blob"
)

var errNoWorker = errors.New("no handshake worker was ready in time")

// pool keeps the configured number of workers ready: it replaces those that have
// served their time, and those that died.
type pool struct {
	config *config
	uid    uint32
	gid    uint32
	key    *blob.PrivateKey
	// signers is nil where all keys are in files.
	signers  *signerKeeper
	guardian *guardian
	env      *environment
	log      *slog.Logger

	mu      sync.Mutex
	workers map[*workerProcess]struct{} // guarded by mu: all that are alive
	// changed is closed and replaced whenever a worker becomes ready.
	changed chan struct{} // guarded by mu
	tickets [][32]byte    // guarded by mu; the first is the newest
	rotated time.Time     // guarded by mu

	slots sync.WaitGroup
}

// Ticket keys are shared by all workers, so that a client can resume with whichever
// it meets, and replaced often, since whoever has one can open TLS 1.2 sessions
// recorded before (RFC 5077, Section 5.6).
const (
	ticketKeyLife = time.Hour
	ticketKeys    = 3
)

// Pauses before a worker that died is replaced: longer each time in a row.
const (
	restartFirst = 20 * time.Millisecond
	restartMost  = 5 * time.Second
)

func newPool(c *config, uid, gid uint32, key *blob.PrivateKey, signers *signerKeeper, env *environment, log *slog.Logger) *pool {
	return &pool{
		config: c, uid: uid, gid: gid, key: key, signers: signers, env: env, log: log,
		workers: make(map[*workerProcess]struct{}), changed: make(chan struct{}),
	}
}

// start returns when the first worker of each slot is ready, or with the first
// error. The slots run until ctx ends.
func (p *pool) start(ctx context.Context) error {
	var first []*workerProcess
	for range p.config.Workers {
		w, err := p.startWorker()
		if err != nil {
			for _, w := range first {
				w.kill()
			}
			return err
		}
		first = append(first, w)
	}
	for _, w := range first {
		p.slots.Go(func() { p.keepSlot(ctx, w) })
	}
	return nil
}

// keepSlot replaces w, and its successors, whenever one retires or dies.
func (p *pool) keepSlot(ctx context.Context, w *workerProcess) {
	pause := restartFirst
	for {
		select {
		case <-w.retired:
			pause = restartFirst
		case <-w.dead:
			if time.Since(w.started) > restartMost {
				pause = restartFirst
			}
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			pause = min(2*pause, restartMost)
		case <-ctx.Done():
		}
		for {
			if ctx.Err() != nil {
				return
			}
			next, err := p.startWorker()
			if err == nil {
				w = next
				break
			}
			p.log.Error("cannot start a worker", "error", err, "retry_in", pause)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			pause = min(2*pause, restartMost)
		}
	}
}

func (p *pool) startWorker() (*workerProcess, error) {
	w, err := startWorkerProcess(p)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	p.workers[w] = struct{}{}
	close(p.changed)
	p.changed = make(chan struct{})
	p.mu.Unlock()
	go func() {
		<-w.dead
		p.mu.Lock()
		delete(p.workers, w)
		p.mu.Unlock()
	}()
	return w, nil
}

// offer gives the connection to the worker with the fewest under way, and waits
// for one if none is ready.
func (p *pool) offer(ctx context.Context, c *connection) (*workerProcess, <-chan reply, error) {
	for {
		w, changed := p.pick()
		if w == nil {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return nil, nil, errNoWorker
			}
		}
		replies, err := w.offer(c)
		if errors.Is(err, errRetired) {
			continue // between pick and offer; pick does not return it again
		}
		return w, replies, err
	}
}

func (p *pool) pick() (best *workerProcess, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	least := 0
	for w := range p.workers {
		if n, ok := w.load(); ok && (best == nil || n < least) {
			best, least = w, n
		}
	}
	return best, p.changed
}

// ticketKeys returns a copy of the keys for a new worker.
func (p *pool) ticketKeys() [][32]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.rotated) > ticketKeyLife {
		var key [32]byte
		rand.Read(key[:]) // never fails (crypto/rand)
		p.tickets = append([][32]byte{key}, p.tickets[:min(len(p.tickets), ticketKeys-1)]...)
		p.rotated = time.Now()
	}
	return append([][32]byte(nil), p.tickets...)
}

// stop drains the workers, and kills those that are not done when ctx ends.
func (p *pool) stop(ctx context.Context) {
	p.slots.Wait()
	p.mu.Lock()
	var all []*workerProcess
	for w := range p.workers {
		all = append(all, w)
	}
	p.mu.Unlock()
	for _, w := range all {
		w.retire()
	}
	for _, w := range all {
		select {
		case <-w.dead:
		case <-ctx.Done():
			w.kill()
			<-w.dead
		}
	}
}

func (p *pool) String() string { return fmt.Sprintf("%d workers as uid %d", p.config.Workers, p.uid) }
