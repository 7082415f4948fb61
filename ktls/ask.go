// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"errors"
	"fmt"
	"sync"

	"github.com/offloadd/offloadd/blob"
)

// What a Conn without custody asks the one who has it.

// oneByOne is for reader and writer: one question about a connection is open at a time.
func oneByOne(ask func(blob.Question) (blob.Answer, error)) func(blob.Question) (blob.Answer, error) {
	var asking sync.Mutex
	return func(q blob.Question) (blob.Answer, error) {
		asking.Lock()
		defer asking.Unlock()
		return ask(q)
	}
}

// renewWriteKey does what must go before the next record: the KeyUpdate that the peer
// asked for, or one of our own because the key has come to its limit.
func (c *Conn) renewWriteKey(limit bool) error {
	if c.custody != nil {
		return c.changeWriteKey(updateNotRequested, c.sendMessage)
	}
	err := c.askForWriteKey(blob.Question{Update: limit})
	if limit && errors.Is(err, ErrNoUpdate) {
		return ErrRecordLimit
	}
	return err
}

// askForWriteKey has the write key changed, and waits until the peer makes room for that.
// The caller holds the write lock.
func (c *Conn) askForWriteKey(q blob.Question) error {
	q.Quiet = true
	// A request that comes from here on may be a new one.
	c.out.owed.Store(false)
	var answer blob.Answer
	var failed error
	waited := c.raw.Write(func(uintptr) bool {
		answer, failed = c.ask(q)
		return failed != nil || answer.Verdict != blob.GoOn || !answer.Owed
	})
	if waited != nil { // a deadline, which changes nothing
		c.out.owed.Store(true)
		return c.writeError(waited)
	}
	switch {
	case failed != nil:
		failed = fmt.Errorf("%w: %w", ErrRekey, failed)
	case answer.Refused:
		return fmt.Errorf("%w: %s", ErrNoUpdate, answer.Reason)
	case answer.Verdict == blob.Ended:
		failed = fmt.Errorf("%w: %s", ErrRekey, answer.Reason)
	default:
		c.out.counter.renew()
		return nil
	}
	c.out.broken.CompareAndSwap(nil, &ending{failed, alertCloseNotify})
	return failed
}

// askForReadKey has the read key changed, after a KeyUpdate was read. The caller holds
// the read lock.
func (c *Conn) askForReadKey(requested bool) *ending {
	answer, err := c.ask(blob.Question{Updated: true, Requested: requested})
	switch {
	case err != nil:
		return &ending{fmt.Errorf("%w: %w", ErrKeyUpdate, err), alertInternalError}
	case answer.Verdict == blob.GoOn:
		if answer.Owed {
			c.out.owed.Store(true)
		}
		return nil
	}
	return &ending{fmt.Errorf("%w: %s", ErrKeyUpdate, answer.Reason), alertInternalError}
}
