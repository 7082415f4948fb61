// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// meter counts what a client moves, and when.
type meter struct {
	sent, received, requests atomic.Int64
	begin                    time.Time

	interval time.Duration
	tell     func(Interval)
	stopped  chan struct{}
	ended    chan struct{}

	mu        sync.Mutex
	last      Interval                  // sums at its end, not differences; guarded by mu
	intervals []Interval                // guarded by mu
	held      map[*net.TCPConn]struct{} // to end when the time is up; guarded by mu
	agreed    agreed                    // guarded by mu
	cut       *Interval                 // sums when the time was up; guarded by mu
	lastByte  time.Time                 // when set, the end of what counts; guarded by mu
}

// newMeter begins to count.
func (c *Client) newMeter() *meter {
	m := &meter{begin: time.Now(), interval: c.Interval, tell: c.OnInterval, stopped: make(chan struct{}), ended: make(chan struct{}), held: make(map[*net.TCPConn]struct{})}
	if m.tell == nil {
		m.tell = func(Interval) {}
	}
	go m.watch()
	return m
}

// watch closes intervals.
func (m *meter) watch() {
	defer close(m.ended)
	if m.interval <= 0 {
		return
	}
	tick := time.NewTicker(m.interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			m.closeInterval(m.sums(time.Now()))
		case <-m.stopped:
			return
		}
	}
}

// sums are those so far, as an interval since the start.
func (m *meter) sums(now time.Time) Interval {
	return Interval{End: now.Sub(m.begin).Seconds(), BytesSent: m.sent.Load(), BytesReceived: m.received.Load(), Requests: m.requests.Load()}
}

func (m *meter) closeInterval(now Interval) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cut != nil && now != *m.cut {
		return
	}
	i := Interval{Start: m.last.End, End: now.End, BytesSent: now.BytesSent - m.last.BytesSent,
		BytesReceived: now.BytesReceived - m.last.BytesReceived, Requests: now.Requests - m.last.Requests}
	if i.BytesSent == 0 && i.BytesReceived == 0 && i.Requests == 0 && i.End-i.Start < m.interval.Seconds()/10 {
		return // the last one ended just after a tick
	}
	i.BitsPerSecond = bitsPerSecond(i.BytesSent+i.BytesReceived, time.Duration((i.End-i.Start)*float64(time.Second)))
	m.last = now
	m.intervals = append(m.intervals, i)
	m.tell(i)
}

// hold has a link's connection end when the time is up.
func (m *meter) hold(l *link) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.agreed.version == 0 {
		m.agreed = l.agreed
	}
	m.held[l.tcp] = struct{}{}
	if m.cut != nil {
		reset(l.tcp)
	}
}

// drop is for a link that is done with.
func (m *meter) drop(l *link) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.held, l.tcp)
}

// agreement is what the first link that was held agreed on.
func (m *meter) agreement() agreed {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.agreed
}

// cutWith ends what is under way on the links that are held when the time is up, if there is
// one, or ctx ends. It returns what gives that up.
func (m *meter) cutWith(ctx context.Context, after time.Duration) (release func()) {
	cut := func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.cut != nil {
			return
		}
		now := m.sums(time.Now())
		m.cut = &now
		for tcp := range m.held {
			// Not by a deadline: crypto/tls would send close_notify in the middle of a record.
			reset(tcp)
		}
	}
	stop := context.AfterFunc(ctx, cut)
	if after <= 0 {
		return func() { stop() }
	}
	timer := time.AfterFunc(after, cut)
	return func() {
		stop()
		timer.Stop()
	}
}

// over reports whether the time is up: errors are of our making then.
func (m *meter) over() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cut != nil
}

// endsAt says when the last byte that counts came, where that is known afterwards.
func (m *meter) endsAt(t time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t.After(m.lastByte) {
		m.lastByte = t
	}
}

// stop ends counting and tells the result.
func (m *meter) stop(r *Result) {
	now := time.Now()
	close(m.stopped)
	<-m.ended
	m.mu.Lock()
	sums := m.sums(now)
	switch {
	case m.cut != nil:
		sums = *m.cut
	case !m.lastByte.IsZero():
		sums.End = m.lastByte.Sub(m.begin).Seconds()
	}
	m.mu.Unlock()
	if m.interval > 0 && sums.End > m.last.End {
		m.closeInterval(sums)
	}
	r.Seconds, r.BytesSent, r.BytesReceived, r.Requests = sums.End, sums.BytesSent, sums.BytesReceived, sums.Requests
	r.BitsPerSecond = bitsPerSecond(r.BytesSent+r.BytesReceived, time.Duration(r.Seconds*float64(time.Second)))
	if r.Seconds > 0 {
		r.PerSecond = float64(r.Requests) / r.Seconds
	}
	r.Intervals = append(r.Intervals, m.intervals...)
}
