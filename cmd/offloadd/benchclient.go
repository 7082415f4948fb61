// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/offloadd/offloadd/cmd/offloadd/internal/bench"
)

// defaultBenchTime is how long a client goes on if nobody says how much: that of iperf3.
const defaultBenchTime = 10 * time.Second

// benchClientFlags become bench.Options.
type benchClientFlags struct {
	options            bench.Options
	time, interval     seconds
	bytes, requestSize byteSize
	writes, small      byteSize
	asJSON             bool
}

func benchClientCommand(env *environment) *cobra.Command {
	b := benchClientFlags{requestSize: 64 << 20, writes: 256 << 10, interval: seconds(time.Second)}
	c := &cobra.Command{
		Use:   "client HOST:PORT [flags]",
		Short: "Measure a server",
		Long: `Sends to a server, or with -R downloads, for a time or an amount, and tells throughput,
processor time and system calls of both ends. Other disciplines are small messages
(--small), handshakes (--handshakes) and idle connections (--idle).

Record layers of the client (--tls):
  crypto-tls  Go's crypto/tls
  ktls        handshaker and ktls.Conn; files are sent by sendfile
  discard     downloads only: the kernel drops what comes, undeciphered and uncopied, so that
              the client costs little, and the same with any server
  none        no TLS

Certificates are not verified. A server that has no /usage is measured, too: bodies are
named by their size, /N, so a file of that name will do.`,
		Example: `  offloadd bench client 127.0.0.1:4433 -R -P 8 -t 10
  offloadd bench client 127.0.0.1:4433 --tls ktls -n 1GiB
  offloadd bench client 127.0.0.1:4433 --small 1 --count 2000 --json
  offloadd bench client 127.0.0.1:4433 --handshakes 200 --resumed --groups x25519
  offloadd bench client 127.0.0.1:4433 --idle 10000 --tls ktls`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b.options.Address = args[0]
			if err := startWithoutAES(env, b.options.Choice); err != nil {
				return err
			}
			return b.run(cmd.Context(), env, cmd.Flags().Changed)
		},
	}
	b.add(c.Flags())
	return c
}

func (b *benchClientFlags) add(f *pflag.FlagSet) {
	o := &b.options
	f.StringVar(&o.Layer, "tls", bench.LayerCryptoTLS, "record layer of the client: "+strings.Join(bench.Layers, ", "))
	addChoice(f, &o.Choice)
	f.StringVar(&o.Group, "groups", "", "key agreement: x25519 or mlkem (X25519MLKEM768); else what crypto/tls prefers")
	f.IntVarP(&o.Streams, "parallel", "P", 1, "`number` of streams, or of handshakes at a time")
	f.VarP(&b.time, "time", "t", "go on for so long, in `seconds`; 10 if no amount is given")
	f.VarP(&b.bytes, "bytes", "n", "move so many `bytes` in each stream, in one request")
	f.Var(&b.requestSize, "request-size", "`bytes` of each request, with -t")
	f.Var(&b.writes, "size-of-writes", "`size` of a write, where bodies are written")
	f.BoolVarP(&o.Download, "reverse", "R", false, "the server sends")
	f.BoolVar(&o.Bidir, "bidir", false, "both send, on streams of their own")
	f.Var(&b.small, "small", "send messages of this `size` to and fro")
	f.BoolVar(&o.Get, "get", false, "with --small, ask by GET /SIZE, which other servers know, too, instead of POST /echo")
	f.IntVar(&o.Count, "count", 0, "with --small, the `number` of messages of each stream")
	f.BoolVar(&o.NoKeepAlive, "no-keep-alive", false, "with --small, a connection for each message")
	f.IntVar(&o.Handshakes, "handshakes", 0, "make this `number` of connections")
	f.BoolVar(&o.Resumed, "resumed", false, "with --handshakes, resume a session each time")
	f.IntVar(&o.Idle, "idle", 0, `open this `+"`number`"+` of connections, print "idle N", and hold them until the input ends or SIGTERM`)
	f.BoolVar(&o.Verify, "verify", false, "compare all that was moved with what it must be")
	f.BoolVar(&o.NoUsage, "no-usage", false, "do not ask what the server used, and count no system calls: nothing disturbs other measurements")
	f.VarP(&b.interval, "interval", "i", "`seconds` from line to line; 0: none")
	f.BoolVar(&b.asJSON, "json", false, "print one JSON object, and nothing else")
}

// optionsFor fills in what the flags mean together.
func (b *benchClientFlags) optionsFor(given func(string) bool) bench.Options {
	o := b.options
	o.Time, o.Interval = time.Duration(b.time), time.Duration(b.interval)
	o.Bytes, o.RequestSize, o.WriteSize = int64(b.bytes), int64(b.requestSize), int(min(b.writes, 1<<30))
	o.Small = -1
	if given("small") {
		o.Small = int64(b.small)
	}
	if o.Time == 0 && o.Bytes == 0 && o.Count == 0 && o.Handshakes == 0 && o.Idle == 0 {
		o.Time = defaultBenchTime
	}
	if b.asJSON && !given("interval") {
		o.Interval = 0
	}
	return o
}

func (b *benchClientFlags) run(ctx context.Context, env *environment, given func(string) bool) error {
	o := b.optionsFor(given)
	view := newBenchView(env.stdout, o)
	if !b.asJSON {
		o.OnInterval = view.interval
	}
	client, err := bench.NewClient(o)
	if err != nil {
		return benchError(err)
	}
	defer client.Close()
	if o.Idle > 0 {
		return benchError(client.HoldIdle(ctx, func(n int) { fmt.Fprintf(env.stdout, "idle %d\n", n) }, env.stdin))
	}
	result, err := client.Run(ctx)
	if err != nil {
		return benchError(err)
	}
	if b.asJSON {
		return writeJSON(env.stdout, result)
	}
	return view.summary(result)
}
