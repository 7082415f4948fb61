// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
)

// Options are what a client is to measure.
type Options struct {
	Address string
	Layer   string
	Choice
	Streams int

	Time        time.Duration // 0: by Bytes or Count
	Bytes       int64         // of each stream, in one request
	RequestSize int64         // of each request, with Time
	Download    bool
	Bidir       bool
	WriteSize   int

	Small       int64 // bytes of a message; -1: none
	Get         bool  // GET instead of POST /echo
	Count       int   // of requests of each stream
	NoKeepAlive bool

	Handshakes int // in all
	Resumed    bool

	Idle int // connections

	Verify   bool
	NoUsage  bool
	Interval time.Duration // 0: none
	// OnInterval, if there is one, is told each interval when it ends.
	OnInterval func(Interval)
}

// mode names the discipline.
func (o *Options) mode() string {
	switch {
	case o.Idle > 0:
		return "idle"
	case o.Handshakes > 0:
		return "handshakes"
	case o.Small >= 0:
		return "small"
	case o.Bidir:
		return "bidir"
	case o.Download:
		return "download"
	}
	return "upload"
}

// validate says what does not go together.
func (o *Options) validate() error {
	mode := o.mode()
	bulk := mode == "bidir" || mode == "download" || mode == "upload"
	switch {
	case !slices.Contains(Layers, o.Layer):
		return usagef("record layer %q, want one of %s", o.Layer, strings.Join(Layers, ", "))
	case o.Streams < 1 || o.Streams > 65536:
		return usagef("%d streams, want 1 to 65536", o.Streams)
	case o.WriteSize < 1 || o.WriteSize > 64<<20:
		return usagef("writes of %d bytes, want 1 byte to 64 MiB", o.WriteSize)
	case o.Bytes < 0 || o.RequestSize < 1 || o.Count < 0 || o.Handshakes < 0 || o.Idle < 0 || o.Time < 0:
		return usagef("no size, number or time may be negative")
	case bulk && o.Time == 0 && o.Bytes == 0:
		return usagef("say how long (-t) or how much (-n)")
	case bulk && o.Time > 0 && o.Bytes > 0:
		return usagef("either how long (-t) or how much (-n)")
	case mode == "small" && (o.Time == 0) == (o.Count == 0):
		return usagef("either how long (-t) or how many messages (--count)")
	case mode == "small" && o.Small > maxEcho && !o.Get:
		return usagef("a message of %d bytes; at most %d, or --get for larger ones", o.Small, maxEcho)
	case o.Layer == LayerDiscard && mode != "download" && mode != "idle":
		return usagef("who discards what comes can only download (-R)")
	case o.Layer == LayerDiscard && o.Verify:
		return usagef("who discards what comes cannot verify it")
	case o.Resumed && o.Layer == LayerNone:
		return usagef("without TLS there is nothing to resume")
	}
	return nil
}

// Client measures a server.
type Client struct {
	Options
	dialer  *dialer
	pattern *pattern
	file    *patternFile // with the pattern; nil if nothing is sent from it

	mu   sync.Mutex
	sums map[int64][32]byte // of bodies; guarded by mu
}

// NewClient returns a UsageError if the options do not go together.
func NewClient(o Options) (*Client, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	c := &Client{Options: o, sums: make(map[int64][32]byte)}
	var err error
	if c.dialer, err = newDialer(o.Address, o.Layer, o.Choice); err != nil {
		return nil, err
	}
	if o.Handshakes > 0 || o.Idle > 0 {
		return c, nil
	}
	c.pattern = newPattern(max(o.WriteSize, maxEcho))
	if mode := o.mode(); (mode == "upload" || mode == "bidir") && (o.Layer == LayerKTLS || o.Layer == LayerNone) {
		c.file, err = c.pattern.newFile(c.bodySize())
	}
	return c, err
}

// Close gives back what NewClient took.
func (c *Client) Close() {
	if c.file != nil {
		c.file.Close()
	}
}

// Run measures.
func (c *Client) Run(ctx context.Context) (*Result, error) {
	server, err := c.openUsage(ctx)
	if err != nil {
		return nil, err
	}
	defer server.close()
	r := &Result{Schema: Schema, Mode: c.mode(), Address: c.Address, TLS: c.Layer, Streams: c.Streams,
		Verified: c.Verify, Intervals: []Interval{}}
	switch r.Mode {
	case "handshakes":
		err = c.handshakes(ctx, r, server)
	case "small":
		err = c.small(ctx, r, server)
	default:
		err = c.transfer(ctx, r, server)
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// sum returns the SHA-256 of a body, and computes it once.
func (c *Client) sum(n int64) [32]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	sum, ok := c.sums[n]
	if !ok {
		sum = c.pattern.sum(n)
		c.sums[n] = sum
	}
	return sum
}

// usages asks client and server what they have used.
type usages struct {
	client *usageOf // nil if nobody is to ask
	server *link    // nil if it is not ours
	why    string
	before [2]Usage
	after  [2]Usage
}

// openUsage finds out whether the server is ours, by one request on a connection of its own.
func (c *Client) openUsage(ctx context.Context) (*usages, error) {
	if c.NoUsage {
		return &usages{why: "not asked"}, nil
	}
	d := *c.dialer
	if d.layer != LayerNone {
		d.layer = LayerCryptoTLS
	}
	l, err := d.dial(ctx)
	if err != nil {
		return nil, err
	}
	u := &usages{client: newUsageOf(), server: l}
	if _, err := u.ask(); err != nil {
		l.close()
		u.server, u.why = nil, "not \"offloadd bench server\": "+err.Error()
	}
	return u, nil
}

var usageRequest = []byte("GET /usage HTTP/1.1\r\nHost: bench\r\n\r\n")

func (u *usages) ask() (usage Usage, err error) {
	u.server.tcp.SetDeadline(time.Now().Add(handshakeTimeout))
	h, err := u.server.expect(usageRequest)
	if err != nil {
		return usage, err
	}
	var text bytes.Buffer
	if h.length > maxHead {
		return usage, fmt.Errorf("an answer of %d bytes", h.length)
	}
	if err := u.server.drain(h.length, func(piece []byte) { text.Write(piece) }); err != nil {
		return usage, err
	}
	if err := json.Unmarshal(text.Bytes(), &usage); err != nil {
		return usage, err
	}
	if usage.PID == 0 {
		return usage, errors.New("no usage")
	}
	return usage, nil
}

// look asks both into one of before and after: the server first, so that the client's share
// of asking is outside.
func (u *usages) look(into *[2]Usage) (err error) {
	if u.server != nil {
		if into[1], err = u.ask(); err != nil {
			return fmt.Errorf("ask the server what it used: %w", err)
		}
	}
	if u.client != nil {
		into[0] = u.client.now()
	}
	return nil
}

func (u *usages) start() error { return u.look(&u.before) }

// end looks again and tells the result.
func (u *usages) end(r *Result) error {
	if err := u.look(&u.after); err != nil {
		return err
	}
	moved := r.BytesSent + r.BytesReceived
	r.ServerWhy = u.why
	if u.server != nil {
		r.Server = spentBetween(u.before[1], u.after[1], moved)
	}
	if u.client != nil {
		r.Client = spentBetween(u.before[0], u.after[0], moved)
	}
	return nil
}

func (u *usages) close() {
	if u.server != nil {
		u.server.close()
	}
	if u.client != nil {
		u.client.close()
	}
}

// HoldIdle opens connections, says so, and holds them until release or ctx ends.
func (c *Client) HoldIdle(ctx context.Context, opened func(n int), release io.Reader) error {
	links := make([]*link, c.Idle)
	defer func() {
		for _, l := range links {
			if l != nil {
				l.tcp.Close()
			}
		}
	}()
	d := *c.dialer
	err := each(c.Idle, c.Streams, func(i int) error {
		l, err := d.dial(ctx)
		if err != nil {
			return fmt.Errorf("connection %d: %w", i+1, err)
		}
		links[i] = l
		_, err = l.getOne(false)
		return err
	})
	if err != nil {
		return err
	}
	opened(c.Idle)
	released := make(chan struct{})
	go func() {
		io.Copy(io.Discard, release)
		close(released)
	}()
	select {
	case <-released:
	case <-ctx.Done():
	}
	return nil
}

// each runs f for 0 to n-1, some at a time, and returns the first error.
func each(n, atOnce int, f func(int) error) error {
	var mu sync.Mutex
	var first error
	next := 0
	take := func() (int, bool) {
		mu.Lock()
		defer mu.Unlock()
		next++
		return next - 1, next <= n && first == nil
	}
	var workers sync.WaitGroup
	for range min(atOnce, n) {
		workers.Go(func() {
			for i, ok := take(); ok; i, ok = take() {
				if err := f(i); err != nil {
					mu.Lock()
					if first == nil {
						first = err
					}
					mu.Unlock()
				}
			}
		})
	}
	workers.Wait()
	return first
}
