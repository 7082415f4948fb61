// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strconv"

	"github.com/offloadd/offloadd/test/vm/bench/result"
)

func answered(a answer) float64 { return a.Requests }

// messages are small requests and their answers.
func (o options) messages() (all []discipline) {
	for _, size := range []int{1, 1 << 10, 16 << 10, 64 << 10} {
		if o.quick && size == 1<<10 {
			continue
		}
		all = append(all, o.echo(size))
	}
	return append(all, o.gets(), o.connections())
}

// count of messages for which the handshake before does not matter much.
func (o options) count(full int) int {
	if o.quick || o.gate {
		return full / 2
	}
	return full
}

// asked is the client's work with small messages.
func asked(count int, tls, suite string, kernel bool, args ...string) work {
	args = append([]string{"--tls", tls, "--count", strconv.Itoa(count)}, args...)
	return client(request{args: args, units: float64(count), done: answered, suite: suite, kernel: kernel})
}

func (o options) echo(size int) discipline {
	count := o.count(2000)
	if size >= 16<<10 {
		count = o.count(500)
	}
	small := strconv.Itoa(size)
	user, kernel := asked(count, "crypto-tls", suiteAES, false, "--small", small), asked(count, "crypto-tls", suiteAES, true, "--small", small)
	d := discipline{
		Discipline: result.Discipline{
			Name: fmt.Sprintf("echo-%d", size), Title: "Request and response of " + sizeName(size) + ", one connection",
			Work: fmt.Sprintf("%d times, POST and the same back, on one connection. The client is crypto/tls.", count),
			Unit: "request", Metric: result.Server, Baseline: rowBareWrite,
		},
		rows: []row{
			limit(rowPlain, "", path("plain-write")).doing(asked(count, "none", "", false, "--small", small)),
			limit(rowBareWrite, "", path("bare-write")).doing(kernel),
			ours(rowWrite, "", path("ktls-write")).doing(kernel),
			ours(rowHanded, "", handed()).doing(kernel),
			ours(rowUserspace, "", path("userspace")).doing(user),
			peers(rowTLS, "", path("tls")).doing(user),
		},
	}
	if size == 1 {
		d.rows[1], d.rows[2], d.rows[5] = d.rows[1].gated(), d.rows[2].gated(), d.rows[5].gated()
	}
	return d
}

func sizeName(size int) string {
	if size < 1<<10 {
		return fmt.Sprintf("%d B", size)
	}
	return fmt.Sprintf("%d KiB", size>>10)
}

// gets are what nginx can answer too.
func (o options) gets() discipline {
	count := o.count(2000)
	args := []string{"--small", "1", "--get"}
	kernel, user := asked(count, "crypto-tls", suiteAES, true, args...), asked(count, "crypto-tls", suiteAES, false, args...)
	return discipline{
		Discipline: result.Discipline{
			Name: "get-1", Title: "GET of 1 B, one connection", Work: fmt.Sprintf("%d times on one connection. The client is crypto/tls.", count),
			Unit: "request", Metric: result.Server, Baseline: rowTLS,
		},
		rows: []row{
			ours(rowWrite, "", path("ktls-write")).doing(kernel),
			ours(rowUserspace, "", path("userspace")).doing(user),
			peers(rowTLS, "", path("tls")).doing(user),
			peers("nginx, kernel TLS", "", nginxHTTP(stable, suiteAES, true)).doing(kernel),
			peers("nginx, user space", "", nginxHTTP(stable, suiteAES, false)).doing(user),
		},
	}
}

// connections are a connection for each request.
func (o options) connections() discipline {
	count := o.count(120)
	args := []string{"--small", "1024", "--get", "--no-keep-alive"}
	kernel, user := asked(count, "crypto-tls", suiteAES, true, args...), asked(count, "crypto-tls", suiteAES, false, args...)
	return discipline{
		Discipline: result.Discipline{
			Name: "connection-each", Title: "GET of 1 KiB, a connection for each",
			Work: fmt.Sprintf("%d connections, one after another, full handshakes as the client likes them. The client is crypto/tls.", count),
			Unit: "connection", Metric: result.Server, Baseline: rowTLS,
		},
		rows: []row{
			ours(rowWrite, "", path("ktls-write")).doing(kernel),
			ours(rowHanded, "", handed()).doing(kernel),
			peers(rowTLS, "", path("tls")).doing(user),
			peers("nginx, kernel TLS", "", nginxHTTP(stable, suiteAES, true)).doing(kernel),
			peers("nginx, user space", "", nginxHTTP(stable, suiteAES, false)).doing(user),
		},
	}
}

// handshakes of each kind.
func (o options) handshakes() []discipline {
	return []discipline{
		o.handshake("handshake-x25519", "Full handshake, X25519", "x25519", false),
		o.handshake("handshake-mlkem", "Full handshake, X25519MLKEM768", "mlkem", false),
		o.handshake("handshake-resumed", "Resumed handshake, X25519", "x25519", true),
	}
}

func (o options) handshake(name, title, group string, resumed bool) discipline {
	count := o.count(60)
	args := []string{"--tls", "crypto-tls", "--handshakes", strconv.Itoa(count), "--groups", group}
	r := request{args: args, units: float64(count), done: answered, suite: suiteAES}
	if resumed {
		r.args = append(r.args, "--resumed")
		r.resumed = r.units
	}
	user := client(r)
	r.kernel = true
	kernel := client(r)
	d := discipline{
		split: true,
		Discipline: result.Discipline{
			Name: name, Title: title, Work: fmt.Sprintf("%d connections, one after another, each with one GET of 1 B. "+
				"For the row that is split across processes the CPU is that of daemon and workers; the application's is in a column of its own.", count),
			Unit: "handshake", Metric: result.Server, Baseline: rowTLS,
		},
		rows: []row{
			ours("ktls.Conn in process", "", path("ktls-write")).doing(kernel),
			ours("split: "+rowHanded, "", handed()).doing(kernel),
			ours("split, without BPF guards", "", handed("--guard", "off")).doing(kernel),
			peers(rowTLS, "", path("tls")).doing(user),
			peers("nginx, user space", "", nginxHTTP(stable, suiteAES, false)).doing(user),
			peers("nginx, kernel TLS", "", nginxHTTP(stable, suiteAES, true)).doing(kernel),
			peers("nginx 1.30, user space", "", nginxHTTP(experimental, suiteAES, false)).doing(user),
			peers("HAProxy 3.0, user space", "", haproxyHTTP(stable, userTLS)).doing(user),
			peers("HAProxy 3.4, kernel TLS", "", haproxyHTTP(experimental, kernelTLS)).doing(kernel),
		},
	}
	if name == "handshake-x25519" {
		for _, i := range []int{0, 2, 3} {
			d.rows[i] = d.rows[i].gated()
		}
	}
	return d
}
