// SPDX-License-Identifier: Apache-2.0

package main

// step names a point in the life of a connection, for logs and errors.
type step string

// The steps, in order. Those of the daemon and of the worker alternate.
const (
	stepAccepted    step = "accepted"    // daemon: accept returned
	stepAttached    step = "attached"    // daemon: the ULP is on, the socket must be TLS
	stepOffered     step = "offered"     // daemon: sent to a worker
	stepReceived    step = "received"    // worker: has the descriptor
	stepHandshaken  step = "handshaken"  // worker: the handshake is complete
	stepSealed      step = "sealed"      // worker: both states are blobs
	stepSent        step = "sent"        // worker: descriptor and blobs are in flight
	stepOpened      step = "opened"      // daemon: both blobs are states again
	stepEntered     step = "entered"     // daemon: both keys are in the ledger
	stepInstalled   step = "installed"   // daemon: the kernel has the keys
	stepHandedOver  step = "handed over" // daemon: the application has the socket
	stepWorkerReady step = "ready"       // worker: started, no connection yet
)
