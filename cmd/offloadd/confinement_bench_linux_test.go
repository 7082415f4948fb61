// SPDX-License-Identifier: Apache-2.0

package main

import "testing"

// BenchmarkConfinement measures what it costs: a worker from its start until it has
// a connection, and a whole handshake with an echo.
func BenchmarkConfinement(b *testing.B) {
	requireDaemon(b)
	for name, leaveOut := range map[string]string{"confined": "", "free": without + "," + partMemory} {
		b.Run("start/"+name, func(b *testing.B) {
			p := newPrison(b, 0)
			for b.Loop() {
				if got, words := p.outcome(b, nothingAttempt, leaveOut); got != succeeds {
					b.Fatal(got, words)
				}
			}
		})
		b.Run("handshake/"+name, func(b *testing.B) {
			d := startDaemon(b, sharedIdentity(b), daemonOptions{settings: "workers = 1", leaveOut: leaveOut})
			d.serveApplication(echo)
			for b.Loop() {
				c, err := d.dial(d.clientConfig())
				if err == nil {
					err = echoOnce(c)
				}
				if err != nil {
					b.Fatal(err)
				}
				c.Close()
			}
		})
	}
}
