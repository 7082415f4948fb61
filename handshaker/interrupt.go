// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"context"
	"net"
	"time"
)

// interruptWith makes reads and writes of conn fail once ctx ends. The function it
// returns stops that, removes all deadlines of conn, and returns the error of ctx if
// it ended in time to interrupt something.
//
// A context's function runs on a goroutine of its own, which never sees a secret.
func interruptWith(ctx context.Context, conn net.Conn) (release func() error) {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		conn.SetDeadline(time.Unix(1, 0)) // long past
		close(done)
	})
	return func() error {
		ended := !stop()
		if ended {
			<-done // so that its deadline does not come after ours
		}
		conn.SetDeadline(time.Time{})
		if ended {
			return ctx.Err()
		}
		return nil
	}
}
