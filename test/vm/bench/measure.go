// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"strconv"
	"time"

	"github.com/offloadd/offloadd/test/vm/bench/result"
)

// A discipline is work, and who is given it.
type discipline struct {
	result.Discipline
	rows []row
	// work does it once.
	work work
	// split: the CPU of an application that gets its connections is not part of the server's.
	split bool
	// alone: each row is started, measured once and stopped, before the next is started.
	alone bool
}

// A row is a program in a set-up.
type row struct {
	result.Row
	serve serve
	work  work // instead of the discipline's, or nil
	gate  bool // the gate looks at it
}

// A work is done once with a server that runs, and says what it cost.
type work func(*stage) (map[string]float64, error)

func (o options) repetitions() int {
	switch {
	case o.repeat > 0:
		return o.repeat
	case o.quick || o.gate:
		return 2
	default:
		return 5
	}
}

func (d discipline) repetitions(o options) int {
	if d.alone {
		return 1
	}
	return o.repetitions()
}

// A player is a row on its stage, until it fails.
type player struct {
	row
	stage  *stage
	failed bool
}

// measure has all rows do the work in turn, several times, so that whatever changes in the machine meets them all.
func (b *bench) measure(d discipline) error {
	for _, one := range d.rows {
		d.Rows = append(d.Rows, one.Row)
	}
	if err := b.say(result.Event{Discipline: &d.Discipline}); err != nil {
		return err
	}
	if d.alone {
		return b.measureAlone(d)
	}
	var players []*player
	defer func() {
		for _, p := range players {
			p.stage.close()
		}
	}()
	for number, one := range d.rows {
		p, err := b.start(d, number, one)
		if err != nil {
			return err
		}
		players = append(players, p)
	}
	const warmUp = 0
	for repetition := range 1 + b.repetitions() {
		for _, p := range players {
			if err := b.play(d, p, repetition, repetition == warmUp); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) measureAlone(d discipline) error {
	for number, one := range d.rows {
		p, err := b.start(d, number, one)
		if err != nil {
			return err
		}
		err = b.play(d, p, 1, false)
		p.stage.close()
		if err != nil {
			return err
		}
	}
	return nil
}

// start starts a row's servers. That they do not start is told, and no error of ours.
func (b *bench) start(d discipline, number int, one row) (*player, error) {
	s, err := b.newStage(number)
	if err != nil {
		return nil, err
	}
	p := &player{row: one, stage: s}
	if one.serve == nil {
		return p, nil
	}
	if err := one.serve(s); err != nil {
		return p, b.fail(d, p, err)
	}
	return p, nil
}

func (b *bench) fail(d discipline, p *player, why error) error {
	p.failed = true
	return b.say(result.Event{Failure: &result.Failure{Discipline: d.Name, Row: p.Name, Why: why.Error()}})
}

func (b *bench) play(d discipline, p *player, repetition int, drop bool) error {
	if p.failed {
		return nil
	}
	settled(b.mode)
	do := d.work
	if p.work != nil {
		do = p.work
	}
	values, err := do(p.stage)
	if err := errors.Join(err, p.stage.alive()); err != nil {
		return b.fail(d, p, err)
	}
	if drop {
		return nil
	}
	if !d.split {
		values[result.Server] += values[result.Application]
		delete(values, result.Application)
	}
	return b.say(result.Event{Sample: &result.Sample{Discipline: d.Name, Row: p.Name, Repetition: repetition, Values: values}})
}

// counted measures the groups of a stage while f runs.
func (s *stage) counted(f func() error) (map[string]float64, error) {
	before, err := s.read()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := f(); err != nil {
		return nil, err
	}
	elapsed := time.Since(began)
	after, err := s.read()
	if err != nil {
		return nil, err
	}
	server := after[0].minus(before[0])
	return map[string]float64{
		result.Server:      server.total,
		result.ServerUser:  server.user,
		result.Application: after[1].minus(before[1]).total,
		result.Backend:     after[2].minus(before[2]).total,
		result.Client:      after[3].minus(before[3]).total,
		result.Elapsed:     float64(elapsed.Microseconds()),
	}, nil
}

func (s *stage) read() (all [4]cpu, err error) {
	for i, g := range []*group{s.server, s.application, s.backend, s.client} {
		if all[i], err = g.cpu(); err != nil {
			return all, err
		}
	}
	return all, nil
}

// An answer is what `offloadd bench client --json` says, as far as it is needed here.
type answer struct {
	Suite      string             `json:"suite"`
	Sent       float64            `json:"bytes_sent"`
	Received   float64            `json:"bytes_received"`
	Requests   float64            `json:"requests"`
	TLSResumed float64            `json:"tls_resumed"`
	Latency    map[string]float64 `json:"latency_us"`
}

// A request is work for the client, and what makes sure that it was done.
type request struct {
	args []string
	// units of work, of which there must be exactly so many.
	units   float64
	done    func(answer) float64
	suite   string // agreed, or empty
	kernel  bool   // the server's records are the kernel's
	resumed float64
}

// client is a work: offloadd's client asks.
func client(r request) work {
	return func(s *stage) (map[string]float64, error) {
		var said answer
		keys, err := keysOfTheKernel()
		if err != nil {
			return nil, err
		}
		values, err := s.counted(func() error {
			output, err := s.own(append([]string{"bench", "client", s.address, "--json", "--no-usage"}, r.args...)...).finish(s.client)
			if err != nil {
				return err
			}
			return json.Unmarshal(output, &said)
		})
		if err != nil {
			return nil, err
		}
		now, err := keysOfTheKernel()
		if err != nil {
			return nil, err
		}
		if err := r.check(said, now-keys); err != nil {
			return nil, err
		}
		values[result.Units] = r.units
		maps.Copy(values, latencies(said.Latency))
		return values, nil
	}
}

// latencies are given as the client measured them, in microseconds.
func latencies(from map[string]float64) map[string]float64 {
	values := map[string]float64{}
	for name, value := range from {
		if name != "count" {
			values["latency_"+name] = value
		}
	}
	return values
}

// check makes sure that what was measured is what the row says.
func (r request) check(said answer, keys int) error {
	kernelClient := 0
	for i, arg := range r.args {
		if arg == "ktls" && r.args[i-1] == "--tls" {
			kernelClient = 1
		}
	}
	switch {
	case r.done(said) != r.units:
		return fmt.Errorf("the client did %v of %v units of work", r.done(said), r.units)
	case r.suite != said.Suite:
		return fmt.Errorf("the suite was %q, not %q", said.Suite, r.suite)
	case said.TLSResumed < r.resumed:
		return fmt.Errorf("%v of %v handshakes were resumed", said.TLSResumed, r.resumed)
	case r.kernel && keys <= kernelClient:
		return errors.New("the server did not use the kernel's TLS")
	case !r.kernel && keys > kernelClient*r.streams():
		return errors.New("the server used the kernel's TLS, and should not")
	}
	return nil
}

func (r request) streams() int {
	for i, arg := range r.args {
		if arg == "-P" {
			n, _ := strconv.Atoi(r.args[i+1]) // it is ours
			return n
		}
	}
	return 1
}

// keysOfTheKernel counts the sockets that ever got a key to send with, in software.
func keysOfTheKernel() (int, error) {
	data, err := os.ReadFile("/proc/net/tls_stat")
	if err != nil {
		return 0, fmt.Errorf("kernel TLS: %w", err)
	}
	count, err := field(data, "TlsTxSw")
	return int(count), err
}
