// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/offloadd/offloadd/bpf"
)

// alarmInterval is how often the daemon looks for keys that are nearly spent.
const alarmInterval = 15 * time.Second

// openDaemonObserver is nil where the observer is not loaded: nothing depends on it.
func openDaemonObserver(config *config, log *slog.Logger) *bpf.Observer {
	observer, err := bpf.OpenObserver(config.BPFDir)
	if err != nil {
		log.Info("connections are not observed", "reason", err.Error())
		return nil
	}
	return observer
}

// observe reads the observer's events, and looks for keys that are nearly spent, until
// ctx ends.
func (d *daemon) observe(ctx context.Context) {
	if d.observer == nil {
		return
	}
	go func() {
		if err := d.observer.Events(ctx, d.observed); err != nil && ctx.Err() == nil {
			d.log.Error("events of the observer are counted only", "error", err)
		}
	}()
	told := make(map[bpf.Alarm]bool)
	for {
		list, err := d.observer.Connections()
		if err == nil {
			told = d.alarm(list, told)
		} else if !errors.Is(err, bpf.ErrNotLoaded) {
			d.log.Error("keys that are nearly spent go unnoticed", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(alarmInterval):
		}
	}
}

// observed logs what a connection of ours suffered. All events are counted.
func (d *daemon) observed(e bpf.Event) error {
	d.metrics.events.WithLabelValues(e.Kind.String()).Inc()
	if e.Kind == bpf.Failed && e.Layer && d.custody.Has(e.Cookie) {
		d.log.Warn("the record layer gave up", "socket", e.Cookie, "peer", e.Connection.Peer.String(), "error", e.Error.Error())
	}
	return nil
}

// alarm tells of each key once. It returns those that it has told of and that are
// still there.
func (d *daemon) alarm(list []bpf.Connection, told map[bpf.Alarm]bool) map[bpf.Alarm]bool {
	now := make(map[bpf.Alarm]bool)
	for _, a := range bpf.Alarms(list, defaultAlarm/100.0) {
		key := bpf.Alarm{Cookie: a.Cookie, Sending: a.Sending}
		if now[key] = true; told[key] {
			continue
		}
		d.metrics.alarms.Inc()
		d.log.Warn("a key is nearly spent: end the connection, or let it be changed", "socket", a.Cookie, "direction", directionName(a.Sending),
			"managed", d.custody.Has(a.Cookie), "records", a.Sequence, "limit", a.Limit, "reason", a.Reason)
	}
	return now
}
