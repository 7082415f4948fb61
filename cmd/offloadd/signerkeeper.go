// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/offloadd/offloadd/cmd/offloadd/internal/token"
)

// signerKeeper keeps one signer running, and replaces one that died. A nil keeper is
// one without keys.
type signerKeeper struct {
	keys     []string // their index is their number
	uid, gid uint32
	groups   []uint32
	guardian *guardian
	env      *environment
	log      *slog.Logger

	mu      sync.Mutex
	current *signerProcess // guarded by mu; nil while there is none
	given   error          // guarded by mu: there will be none any more
	changed chan struct{}  // guarded by mu: closed and replaced when current or given changes
	done    chan struct{}  // closed when keep has ended
}

// tokenKeys returns the keys that are in tokens, each once.
func (c *config) tokenKeys() []string {
	var keys []string
	for _, l := range c.Listeners {
		for _, cert := range l.Certificates {
			if token.Names(cert.Key) && !slices.Contains(keys, cert.Key) {
				keys = append(keys, cert.Key)
			}
		}
	}
	return keys
}

// newSignerKeeper returns nil where no key is in a token.
func newSignerKeeper(c *config, workerUID uint32, env *environment, log *slog.Logger) (*signerKeeper, error) {
	keys := c.tokenKeys()
	if len(keys) == 0 {
		return nil, nil
	}
	k := &signerKeeper{keys: keys, env: env, log: log, changed: make(chan struct{}), done: make(chan struct{})}
	var err error
	if k.uid, k.gid, err = userID(c.SignerUser); err == nil {
		k.groups, err = otherGroups(c.SignerUser)
	}
	if err != nil {
		return nil, machineError("signer_user: %w; make one with \"useradd --system --no-create-home --shell /usr/sbin/nologin %s\", give it access to the token, or name another", err, c.SignerUser)
	}
	if k.uid == 0 || k.uid == workerUID {
		return nil, usageError("signer_user must be neither root nor worker_user: it is the one user beside root that can use the token")
	}
	return k, nil
}

// otherGroups returns the groups of a user that has a name: devices and the files of
// tokens are mostly open to a group, tss for example.
func otherGroups(name string) ([]uint32, error) {
	if _, err := strconv.ParseUint(name, 10, 32); err == nil {
		return nil, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	ids, err := u.GroupIds()
	if err != nil {
		return nil, err
	}
	var groups []uint32
	for _, id := range ids {
		n, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return nil, err
		}
		groups = append(groups, uint32(n))
	}
	return groups, nil
}

// start returns when the signer is ready, or why it is not.
func (k *signerKeeper) start(ctx context.Context) error {
	if k == nil {
		return nil
	}
	p, err := startSignerProcess(k)
	if err != nil {
		close(k.done)
		return err
	}
	k.set(p, nil)
	go k.keep(ctx, p)
	return nil
}

func (k *signerKeeper) set(p *signerProcess, given error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.current, k.given = p, given
	close(k.changed)
	k.changed = make(chan struct{})
}

// keep replaces p, and its successors, until ctx ends or a PIN is refused.
func (k *signerKeeper) keep(ctx context.Context, p *signerProcess) {
	defer close(k.done)
	pause := restartFirst
	for {
		select {
		case <-p.dead:
		case <-ctx.Done():
			return
		}
		if time.Since(p.started) > restartMost {
			pause = restartFirst
		}
		k.set(nil, nil)
		for {
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return
			}
			pause = min(2*pause, restartMost)
			next, err := startSignerProcess(k)
			if err == nil {
				p = next
				k.set(p, nil)
				break
			}
			if errors.Is(err, errPINRefused) {
				k.log.Error("no more signers", "error", err)
				k.set(nil, err)
				return
			}
			k.log.Error("cannot start a signer", "error", err, "retry_in", pause)
		}
	}
}

// channel makes a channel to the signer, and waits for one if there is none.
func (k *signerKeeper) channel() (*os.File, *grant, error) {
	deadline := time.After(grantTimeout)
	for {
		k.mu.Lock()
		p, given, changed := k.current, k.given, k.changed
		k.mu.Unlock()
		if given != nil {
			return nil, nil, given
		}
		if p != nil {
			file, g, err := p.channel()
			if !errors.Is(err, errSignerDied) {
				return file, g, err
			}
		}
		select {
		case <-changed:
		case <-deadline:
			return nil, nil, fmt.Errorf("no signer within %v", grantTimeout)
		}
	}
}

// stop ends the signer, after the workers and after the context of start.
func (k *signerKeeper) stop() {
	if k == nil {
		return
	}
	<-k.done
	k.mu.Lock()
	p := k.current
	k.mu.Unlock()
	if p != nil {
		p.stop()
	}
}
