// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"

	"github.com/offloadd/offloadd/test/vm/bench/result"
)

// disciplines are all there are, in the order of the report.
func (o options) disciplines() []discipline {
	all := []discipline{o.download(1), o.download(8), o.download(64), o.upload(), o.proxied(true), o.proxied(false)}
	if o.quick {
		all = slices.Delete(all, 1, 3)
	}
	all = append(all, o.messages()...)
	all = append(all, o.handshakes()...)
	all = append(all, o.handover(), o.idle())
	return append(all, o.beside()...)
}

// bulk is how many bytes are moved in all.
func (o options) bulk(streams int) int64 {
	switch {
	case (o.quick || o.gate) && streams == 1:
		return 16 << 20
	case streams == 64:
		return 128 << 20 // of 2 MiB each, as less would be a measurement of handshakes
	default:
		return 64 << 20
	}
}

func ours(name, engine string, start serve) row {
	return row{Row: result.Row{Name: name, Kind: result.Ours, Engine: engine}, serve: start}
}

func peers(name, engine string, start serve) row {
	return row{Row: result.Row{Name: name, Kind: result.Peer, Engine: engine}, serve: start}
}

func limit(name, engine string, start serve) row {
	return row{Row: result.Row{Name: name, Kind: result.Limit, Engine: engine}, serve: start}
}

// Engines: whose AES-128-GCM.
const (
	inKernel  = "kernel"
	inGo      = "go"
	inOpenSSL = "openssl"
)

func (r row) doing(w work) row { r.work = w; return r }
func (r row) gated() row       { r.gate = true; return r }

// Names of rows that goals and the gate look for; see the report.
const (
	rowBareSendfile = "bare program, sendfile"
	rowBareWrite    = "bare program, write"
	rowSendfile     = "ktls.Conn, sendfile"
	rowWrite        = "ktls.Conn, write"
	rowTLS          = "crypto/tls"
	rowHanded       = "handed over by the daemon"
	rowUserspace    = "ktls/userspace"
	rowPlain        = "plaintext"
)

// streamed has the client move so many bytes over each of the streams.
func streamed(total int64, streams int, download bool, tls, suite string, kernel bool) work {
	args := []string{"--tls", tls, "-n", strconv.FormatInt(total/int64(streams), 10), "-P", strconv.Itoa(streams)}
	done := func(a answer) float64 { return a.Sent }
	if download {
		args = append(args, "-R")
		done = func(a answer) float64 { return a.Received }
	}
	if suite == suiteChaCha {
		args = append(args, "--suite", "chacha20")
	}
	return client(request{args: args, units: float64(total), done: done, suite: suite, kernel: kernel})
}

func (o options) download(streams int) discipline {
	total := o.bulk(streams)
	with := func(tls, suite string, kernel bool) work { return streamed(total, streams, true, tls, suite, kernel) }
	kernel, user, plain := with("discard", suiteAES, true), with("discard", suiteAES, false), with("none", "", false)
	d := discipline{Discipline: result.Discipline{
		Name: fmt.Sprintf("download-%d", streams), Title: fmt.Sprintf("Bulk download, %s", connections(streams)),
		Work: fmt.Sprintf("%s in all, of a file in the page cache, unless said; handshakes included. The client drops what comes, undeciphered.", mebibytes(total)),
		Unit: "byte", Metric: result.Server, Baseline: rowBareSendfile,
	}}
	d.rows = []row{
		limit(rowPlain+", sendfile", "", path("plain-sendfile")).doing(plain),
		limit(rowBareSendfile, inKernel, path("bare-sendfile")).doing(kernel).gated(),
		ours(rowSendfile, inKernel, path("ktls-sendfile")).doing(kernel).gated(),
		ours(rowHanded, inKernel, handed()).doing(kernel),
		peers(rowTLS, inGo, path("tls-file")).doing(user),
		peers("nginx, kernel TLS", inKernel, nginxHTTP(stable, suiteAES, true)).doing(kernel),
		peers("nginx, user space", inOpenSSL, nginxHTTP(stable, suiteAES, false)).doing(user),
	}
	if streams > 1 {
		for i := range d.rows {
			d.rows[i].gate = false
		}
		return d
	}
	d.rows = append(d.rows,
		limit("iperf3, plaintext", "", iperf3).doing(iperf3Sends()),
		ours("from memory: "+rowWrite, inKernel, path("ktls-write")).doing(kernel),
		peers("from memory: "+rowTLS, inGo, path("tls")).doing(user),
		peers("nginx 1.30, kernel TLS", inKernel, nginxHTTP(experimental, suiteAES, true)).doing(kernel),
		limit("ChaCha20: "+rowBareSendfile, "", path("bare-sendfile")).doing(with("discard", suiteChaCha, true)),
		ours("ChaCha20: "+rowSendfile, "", path("ktls-sendfile")).doing(with("discard", suiteChaCha, true)),
		peers("ChaCha20: "+rowTLS, "", path("tls-file")).doing(with("discard", suiteChaCha, false)),
		peers("ChaCha20: nginx, kernel TLS", "", nginxHTTP(stable, suiteChaCha, true)).doing(with("discard", suiteChaCha, true)),
	)
	return d
}

// iperf3Sends is the other way round: the sender is who is measured. It sends for a second, and what counts is what it
// says it sent: told an amount, it would spin from the last byte to its next look at the clock.
func iperf3Sends() work {
	return func(s *stage) (map[string]float64, error) {
		root, err := peerRoot(stable)
		if err != nil {
			return nil, err
		}
		_, port, err := net.SplitHostPort(s.address)
		if err != nil {
			return nil, err
		}
		var said struct {
			End struct {
				Sent struct {
					Bytes float64 `json:"bytes"`
				} `json:"sum_sent"`
			} `json:"end"`
		}
		values, err := s.counted(func() error {
			output, err := program{root: root, path: "/usr/bin/iperf3", args: []string{"-c", "127.0.0.1", "-p", port, "-Z", "--json",
				"-t", "1"}}.finish(s.server)
			if err != nil {
				return err
			}
			return json.Unmarshal(output, &said)
		})
		if err == nil && said.End.Sent.Bytes == 0 {
			err = errors.New("iperf3 sent nothing")
		}
		if err != nil {
			return nil, err
		}
		values[result.Units] = said.End.Sent.Bytes
		return values, nil
	}
}

func (o options) upload() discipline {
	total := o.bulk(1)
	with := func(tls, suite string, kernel bool) work { return streamed(total, 1, false, tls, suite, kernel) }
	kernel, user := with("ktls", suiteAES, true), with("ktls", suiteAES, false)
	return discipline{
		Discipline: result.Discipline{
			Name: "upload-1", Title: "Bulk upload, one connection",
			Work: mebibytes(total) + " to a program that reads and drops them. The client sends a file by kernel TLS.",
			Unit: "byte", Metric: result.Server, Baseline: rowTLS,
		},
		rows: []row{
			limit(rowPlain, "", path("plain-write")).doing(with("none", "", false)),
			limit(rowBareWrite, inKernel, path("bare-write")).doing(kernel).gated(),
			ours(rowWrite, inKernel, path("ktls-write")).doing(kernel).gated(),
			ours(rowHanded, inKernel, handed()).doing(kernel),
			ours(rowUserspace, inGo, path("userspace")).doing(user),
			peers(rowTLS, inGo, path("tls")).doing(user).gated(),
		},
	}
}

// proxied is TLS to the client and plaintext to a backend.
func (o options) proxied(download bool) discipline {
	total := o.bulk(1)
	tls := "ktls"
	d := discipline{Discipline: result.Discipline{
		Name: "proxy-upload", Title: "Proxy, upload", Work: mebibytes(total) + " from a client by TLS to a backend in plaintext.",
		Unit: "byte", Metric: result.Server, Baseline: rowTLS,
	}}
	if download {
		tls, d.Name, d.Title = "discard", "proxy-download", "Proxy, download"
		d.Work = mebibytes(total) + " from a backend in plaintext to a client by TLS."
	}
	with := func(tls, suite string, kernel bool) work { return streamed(total, 1, download, tls, suite, kernel) }
	kernel, user, plain := with(tls, suiteAES, true), with(tls, suiteAES, false), with("none", "", false)
	d.rows = []row{
		limit(rowPlain, "", proxy("plain")).doing(plain),
		limit("HAProxy, plaintext", "", haproxyTCP(stable, plaintext)).doing(plain),
		ours("ktls.Conn", inKernel, proxy("ktls")).doing(kernel).gated(),
		peers(rowTLS, inGo, proxy("tls")).doing(user).gated(),
		peers("nginx, kernel TLS", inKernel, nginxStream(stable, true)).doing(kernel),
		peers("nginx, user space", inOpenSSL, nginxStream(stable, false)).doing(user),
		peers("HAProxy 3.4, kernel TLS", inKernel, haproxyTCP(experimental, kernelTLS)).doing(kernel),
		peers("HAProxy 3.4, user space", inOpenSSL, haproxyTCP(experimental, userTLS)).doing(user),
		peers("HAProxy 3.0, user space", inOpenSSL, haproxyTCP(stable, userTLS)).doing(user),
		peers("stunnel", inOpenSSL, stunnel).doing(user),
		peers("hitch", inOpenSSL, hitch).doing(user),
	}
	return d
}

func connections(n int) string {
	if n == 1 {
		return "one connection"
	}
	return fmt.Sprintf("%d connections", n)
}

func mebibytes(n int64) string { return fmt.Sprintf("%d MiB", n>>20) }
