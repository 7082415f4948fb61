// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/offloadd/offloadd/test/vm/bench/result"
)

// Values of the memory of one idle connection, in bytes.
const (
	memoryAll         = "memory"             // of all processes of the server
	memoryDaemon      = "memory_daemon"      // of the first of them
	memoryWorkers     = "memory_workers"     // of the others
	memoryApplication = "memory_application" // of who got its connections from these
	memoryKernel      = "memory_kernel"      // slab of the whole machine, so both ends of the connection
)

func (o options) crowd() int {
	if o.quick {
		return 500
	}
	return 10_000
}

// Values of a request among them: the server's CPU for it, in nanoseconds, or instructions.
const besideCPU = "request_beside"

func (o options) idle() discipline {
	count := o.crowd()
	held := func(tls, suite string, kernel bool) work {
		ask := asked(o.count(1000), tls, suite, kernel, "--small", "1", "--get")
		return func(s *stage) (map[string]float64, error) { return s.memoryOf(count, tls, ask) }
	}
	user, kernel := held("crypto-tls", suiteAES, false), held("crypto-tls", suiteAES, true)
	return discipline{
		alone: true,
		Discipline: result.Discipline{
			Name: "idle", Title: "Memory of an idle connection",
			Work: fmt.Sprintf("%d connections, each after one GET of 1 B, three minutes later. User memory is what the processes' "+
				"smaps call anonymous, before and after; kernel memory is the slab of the whole machine, so of both ends. Then the "+
				"CPU of a GET of 1 B on one connection beside them; compare with a table below.", count),
			Unit: "connection", Metric: memoryAll, Baseline: rowTLS,
		},
		rows: []row{
			limit(rowPlain, "", path("plain-write")).doing(held("none", "", false)),
			ours(rowHanded, "", handed()).doing(kernel),
			ours("ktls.Conn in process", "", path("ktls-write")).doing(kernel),
			peers(rowTLS, "", path("tls")).doing(user),
			peers("nginx, kernel TLS", "", nginxHTTP(stable, suiteAES, true)).doing(kernel),
		},
	}
}

// calm is long enough for Go's collector, which runs every two minutes at least, to give back what the handshakes used.
const calm = 3 * time.Minute

func (s *stage) memoryOf(count int, tls string, ask work) (map[string]float64, error) {
	before, err := s.memory()
	if err != nil {
		return nil, err
	}
	crowd, err := s.hold(count, tls)
	if err != nil {
		return nil, err
	}
	defer crowd.stop()
	if s.mode == result.Instructions {
		time.Sleep(calm) // which costs nothing: this clock skips the time in which nothing runs
	}
	after, err := s.memory()
	if err != nil {
		return nil, err
	}
	if err := crowd.alive(); err != nil {
		return nil, err
	}
	asked, err := ask(s)
	if err != nil {
		return nil, err
	}
	values := map[string]float64{result.Units: float64(count),
		besideCPU: (asked[result.Server] + asked[result.Application]) * 1000 / asked[result.Units]}
	for name, value := range after {
		values[name] = (value - before[name]) / float64(count)
	}
	return values, nil
}

// hold opens connections and keeps them.
func (s *stage) hold(count int, tls string) (*process, error) {
	args := []string{"bench", "client", s.address, "--tls", tls, "--no-usage", "--idle", strconv.Itoa(count)}
	if tls != "none" {
		args = append(args, "--groups", "x25519") // half the handshake of what the client would choose
	}
	p := s.own(args...)
	p.ready = fmt.Sprintf("idle %d", count)
	return p.start(s.client)
}

func (s *stage) memory() (map[string]float64, error) {
	values := map[string]float64{}
	servers, err := s.server.processes()
	if err != nil {
		return nil, err
	}
	daemon := s.processes[0].cmd.Process.Pid
	for _, id := range servers {
		bytes, err := anonymous(id)
		if err != nil {
			return nil, err
		}
		values[memoryAll] += bytes
		if id == daemon {
			values[memoryDaemon] += bytes
		} else {
			values[memoryWorkers] += bytes
		}
	}
	applications, err := s.application.processes()
	if err != nil {
		return nil, err
	}
	for _, id := range applications {
		bytes, err := anonymous(id)
		if err != nil {
			return nil, err
		}
		values[memoryApplication] += bytes
	}
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil, err
	}
	slab, err := field(data, "Slab:")
	values[memoryKernel] = slab * 1024
	return values, err
}

func anonymous(id int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", id))
	if err != nil {
		return 0, err
	}
	kibibytes, err := field(data, "Anonymous:")
	return kibibytes * 1024, err
}

// beside is small messages while others hold idle connections.
func (o options) beside() (all []discipline) {
	crowds := []int{0, 100, 1000} // ten thousand are beside the measurement of memory
	if o.quick {
		crowds = []int{0, 100}
	}
	for _, crowd := range crowds {
		all = append(all, o.besideOf(crowd))
	}
	return all
}

func (o options) besideOf(crowd int) discipline {
	count := o.count(1000)
	work := func(kernel bool) work {
		return asked(count, "crypto-tls", suiteAES, kernel, "--small", "1", "--get")
	}
	in := func(start serve) serve {
		return func(s *stage) error {
			if err := start(s); err != nil || crowd == 0 {
				return err
			}
			holder, err := s.hold(crowd, "crypto-tls")
			if holder != nil {
				s.processes = append(s.processes, holder)
			}
			return err
		}
	}
	return discipline{
		Discipline: result.Discipline{
			Name: fmt.Sprintf("beside-%d", crowd), Title: fmt.Sprintf("GET of 1 B beside %d idle connections", crowd),
			Work: fmt.Sprintf("%d times on one connection, while as many others to the same server are idle.", count),
			Unit: "request", Metric: result.Server, Baseline: rowTLS,
		},
		rows: []row{
			ours(rowHanded, "", in(handed())).doing(work(true)),
			ours(rowWrite, "", in(path("ktls-write"))).doing(work(true)),
			peers(rowTLS, "", in(path("tls"))).doing(work(false)),
			peers("nginx, kernel TLS", "", in(nginxHTTP(stable, suiteAES, true))).doing(work(true)),
		},
	}
}

// handover is what `offloadd bench handover` says of its own daemon.
func (o options) handover() discipline {
	count := o.count(200)
	d := discipline{
		alone: true,
		Discipline: result.Discipline{
			Name: "handover", Title: "Hand-over of a connection", Metric: "percentiles", Unit: "connection",
			Work: fmt.Sprintf("%d connections through a daemon and its worker: what each step took, by their own clocks.", count),
		},
	}
	d.rows = []row{ours("offloadd", "", nil).doing(func(s *stage) (map[string]float64, error) {
		output, err := s.own("bench", "handover", "--count", strconv.Itoa(count), "--json").finish(s.server)
		if err != nil {
			return nil, err
		}
		return flatten(output)
	})}
	return d
}

// flatten makes values of all numbers in a JSON object, named by their places in it.
func flatten(data []byte) (map[string]float64, error) {
	var object map[string]any
	if err := json.Unmarshal(data, &object); err != nil {
		return nil, err
	}
	values := map[string]float64{}
	var walk func(prefix string, value any)
	walk = func(prefix string, value any) {
		switch value := value.(type) {
		case float64:
			values[prefix] = value
		case map[string]any:
			for name, one := range value {
				walk(prefix+"_"+name, one)
			}
		}
	}
	for name, value := range object {
		walk(name, value)
	}
	return values, nil
}
