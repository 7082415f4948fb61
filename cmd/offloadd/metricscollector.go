// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/offloadd/offloadd/bpf"
	"github.com/offloadd/offloadd/cmd/offloadd/internal/custody"
)

// daemonCollector asks others for their numbers when somebody asks for metrics.
type daemonCollector struct{ daemon *daemon }

// describe makes the description of a metric.
func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(metricsPrefix+name, help, labels, nil)
}

// Describe tells nothing: what is collected depends on what is loaded.
func (c *daemonCollector) Describe(chan<- *prometheus.Desc) {}

func (c *daemonCollector) Collect(to chan<- prometheus.Metric) {
	c.connections(to)
	send(to, describe("replays_total", "Keys that were offered for import once more, and refused."), prometheus.CounterValue, float64(c.daemon.ledger.Stats().Replays))
	if g := c.daemon.guardian; g != nil {
		c.guard(to, g)
	}
	if o := c.daemon.observer; o != nil {
		c.observer(to, o)
	}
}

func send(to chan<- prometheus.Metric, d *prometheus.Desc, kind prometheus.ValueType, n float64, labels ...string) {
	to <- prometheus.MustNewConstMetric(d, kind, n, labels...)
}

// connections are those of the daemon.
func (c *daemonCollector) connections(to chan<- prometheus.Metric) {
	live := make(map[[4]string]int)
	c.daemon.custody.Sockets(func(e *custody.Entry) bool {
		if e.Condition == custody.Live {
			live[[4]string{e.Version, e.Suite, placeLabel(e.Read.Place), placeLabel(e.Write.Place)}]++
		}
		return false
	})
	desc := describe("connections", "Live connections of the daemon, by where their keys are.", keyLabels...)
	for labels, n := range live {
		send(to, desc, prometheus.GaugeValue, float64(n), labels[:]...)
	}
	n := c.daemon.custody.Totals()
	send(to, describe("connections_degraded", "Live connections that lost, or may have lost, a key in a device."), prometheus.GaugeValue, float64(n.Degraded))
	send(to, describe("connections_over", "Connections that are over while somebody holds the dead socket, with its keys."), prometheus.GaugeValue, float64(n.Over))
	for _, sum := range []struct {
		name, help string
		n          uint64
	}{
		{"ended_total", "Connections of the daemon that have ended.", n.Ended},
		{"revoked_total", "Connections that were ended by offloadd revoke.", n.Revoked},
		{"degraded_total", "Connections that ever lost, or may have lost, a key in a device.", n.DegradedEver},
		{"unrecorded_total", "Connections that the custody table had no room for.", n.Unrecorded},
		{"key_updates_unfollowed_total", "Connections that ended because the peer sent a KeyUpdate that nobody could follow.", n.Unfollowed},
	} {
		send(to, describe(sum.name, sum.help), prometheus.CounterValue, float64(sum.n))
	}
	updates := describe("key_updates_total", "Keys that the daemon changed, to follow a KeyUpdate or to send one.", "direction")
	send(to, updates, prometheus.CounterValue, float64(n.ReadKeys), "received")
	send(to, updates, prometheus.CounterValue, float64(n.WriteKeys), "sent")
}

func placeLabel(p custody.Place) string {
	switch p {
	case custody.Software:
		return "software"
	case custody.Device:
		return "device"
	case custody.UserSpace:
		return "user_space"
	}
	return "unknown"
}

func (c *daemonCollector) guard(to chan<- prometheus.Metric, g *guardian) {
	stopped, err := g.guard.Stopped()
	desc := describe("guard_stopped_total", "Attempts that the guards stopped, since they were loaded.", "reason")
	if err != nil {
		to <- prometheus.NewInvalidMetric(desc, err)
		return
	}
	for reason, n := range stopped {
		send(to, desc, prometheus.CounterValue, float64(n), reason)
	}
}

// observer is about all kernel TLS sockets, whoever's they are.
func (c *daemonCollector) observer(to chan<- prometheus.Metric, o *bpf.Observer) {
	sums, err := o.Sums()
	if err != nil {
		to <- prometheus.NewInvalidMetric(describe("observer_connections_total", "Sockets that got a key."), err)
		return
	}
	counter := func(name, help string, n uint64) {
		send(to, describe(name, help), prometheus.CounterValue, float64(n))
	}
	counter("observer_connections_total", "Sockets that got a key, whoever's, since the observer was loaded.", sums.Connections)
	counter("observer_failures_total", "Times that the record layer gave up on a socket.", sums.Failures)
	counter("observer_connections_unlisted_total", "Sockets that the observer had no room for.", sums.Unlisted)
	counter("observer_events_dropped_total", "Events of the observer that found no room.", sums.Dropped)
	counter("observer_calls_missed_total", "Calls that the kernel did not show to the observer; bytes, calls and errors lack them.", sums.Missed)
	c.traffic(to, &sums)
	errs := describe("observer_errors_total", "Errors that reads and writes of TLS sockets returned.", "error")
	for kind, n := range sums.Errors {
		send(to, errs, prometheus.CounterValue, float64(n), bpf.ErrorNames[kind])
	}
	ends := describe("observer_ends_total", "Sockets that were closed, by how.", "end")
	for end, n := range sums.Ends {
		if bpf.End(end) != bpf.Live {
			send(to, ends, prometheus.CounterValue, float64(n), bpf.EndNames[end])
		}
	}
	c.sockets(to, o)
}

func (c *daemonCollector) traffic(to chan<- prometheus.Metric, sums *bpf.Sums) {
	bytes := describe("observer_bytes_total", "Content of TLS records.", "direction")
	records := describe("observer_records_total", "TLS records.", "direction")
	calls := describe("observer_calls_total", "Calls into the record layer.", "direction")
	rekeys := describe("observer_rekeys_total", "Keys that replaced another.", "direction")
	keys := describe("observer_keys_total", "First keys of a direction, by where they were put.", "direction", "path")
	for direction, d := range map[string]*bpf.DirectionSums{"sent": &sums.Sending, "received": &sums.Receiving} {
		send(to, bytes, prometheus.CounterValue, float64(d.Bytes), direction)
		send(to, records, prometheus.CounterValue, float64(d.Records), direction)
		send(to, calls, prometheus.CounterValue, float64(d.Calls), direction)
		send(to, rekeys, prometheus.CounterValue, float64(d.Rekeys), direction)
		send(to, keys, prometheus.CounterValue, float64(d.Software), direction, "software")
		send(to, keys, prometheus.CounterValue, float64(d.Device), direction, "device")
	}
}

// sockets counts those of this network namespace, and the keys that are near their end.
func (c *daemonCollector) sockets(to chan<- prometheus.Metric, o *bpf.Observer) {
	desc := describe("observer_sockets", "Kernel TLS sockets of the network namespace that have a key.", "managed")
	list, err := o.Connections()
	if err != nil {
		if !errors.Is(err, bpf.ErrNotLoaded) { // unloaded meanwhile
			to <- prometheus.NewInvalidMetric(desc, err)
		}
		return
	}
	number := map[string]int{"true": 0, "false": 0}
	for i := range list {
		if list[i].Sending.Path == bpf.NoKey && list[i].Receiving.Path == bpf.NoKey {
			continue
		}
		managed := "false"
		if c.daemon.custody.Has(list[i].Cookie) {
			managed = "true"
		}
		number[managed]++
	}
	for managed, n := range number {
		send(to, desc, prometheus.GaugeValue, float64(n), managed)
	}
	send(to, describe("keys_near_limit", "Keys that have spent most of the records that they may protect."), prometheus.GaugeValue,
		float64(len(bpf.Alarms(list, defaultAlarm/100.0))))
}
