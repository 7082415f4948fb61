// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/offloadd/offloadd/blob"
)

const panicWords = "panic: words of a panic"

// honestWork is what a confined worker must be able to do, and one thing that it
// cannot without help from outside.
func honestWork() map[string]attempt {
	return map[string]attempt{
		nothingAttempt:                        {do: func(*prisoner) error { return nil }, confined: succeeds},
		"threads, collections and preemption": {do: func(*prisoner) error { return keepTheRuntimeBusy() }, confined: succeeds},
		"the time zone":                       {do: func(*prisoner) error { _ = time.Now().Local().String(); return nil }, confined: succeeds},
		"a panic in a goroutine": {do: func(*prisoner) error {
			go func() { panic(panicWords[len("panic: "):]) }()
			select {}
		}, confined: "exit status 2"},
		"a crash of the runtime": {do: func(*prisoner) error {
			debug.SetTraceback("crash") // ends by a signal that it sends itself
			panic("crash")
		}, confined: "signal: aborted"},
		"opening what it sealed": {do: func(p *prisoner) error { return openOwnBlobs() }, confined: "its past is erased"},
	}
}

// keepTheRuntimeBusy makes threads, since each of the goroutines keeps one, and
// garbage, and goroutines that only a signal can interrupt.
func keepTheRuntimeBusy() error {
	const threads = 48
	var jobs sync.WaitGroup
	all := make(chan struct{})
	var ready sync.WaitGroup
	ready.Add(threads)
	for range threads {
		jobs.Go(func() {
			runtime.LockOSThread()
			var b [][]byte
			for i := range 64 {
				b = append(b, make([]byte, 32<<10+i))
			}
			runtime.KeepAlive(b)
			ready.Done()
			<-all
		})
	}
	ready.Wait()
	stop := time.Now().Add(200 * time.Millisecond)
	for range 2 * runtime.GOMAXPROCS(0) {
		jobs.Go(func() {
			for n := 0; time.Now().Before(stop); n++ {
				for i := range 1 << 20 { // no call, so nowhere to yield
					n += i
				}
			}
		})
	}
	for time.Now().Before(stop) {
		runtime.GC()
		debug.FreeOSMemory()
	}
	close(all)
	jobs.Wait()
	return nil
}

// openOwnBlobs tries to open two blobs with all that their sealer still has: the chain
// of the ratchet, where it is and as far as it can be wound on (FORMAT.md, section 4).
// The chain as it was before, which no honest process keeps, opens them.
func openOwnBlobs() error {
	public := newStranger()
	sealer, _, err := blob.NewSealer(public)
	if err != nil {
		return err
	}
	before := chainOf(sealer)
	var blobs []blob.Blob
	for _, d := range []blob.Direction{blob.Read, blob.Write} {
		s, err := blob.NewState13(blob.TLS_AES_128_GCM_SHA256, blob.Server, d, blob.NewSecret(make([]byte, 32)))
		if err != nil {
			return err
		}
		s.Cookie = 1
		b, err := sealer.Seal(s, time.Now().Add(time.Hour))
		if err != nil {
			return err
		}
		blobs = append(blobs, b)
	}
	if n := opened(before, blobs); n != len(blobs) {
		return fmt.Errorf("the chain of before opens %d of %d blobs", n, len(blobs))
	}
	if n := opened(chainOf(sealer), blobs); n != 0 {
		return fmt.Errorf("what the sealer still has opens %d blobs", n)
	}
	return errors.New("its past is erased")
}

// chainOf copies the sealer's secret.
func chainOf(s *blob.Sealer) []byte {
	secret := reflect.ValueOf(s).Elem().FieldByName("ratchet").FieldByName("chain")
	for secret.Kind() != reflect.Slice {
		if secret.Kind() == reflect.Struct {
			secret = secret.Field(0)
		} else {
			secret = secret.Elem()
		}
	}
	return append([]byte(nil), secret.Bytes()...)
}

// opened counts the blobs that a ratchet from this chain opens.
func opened(chain []byte, blobs []blob.Blob) (n int) {
	for range 1000 {
		key, err1 := hkdf.Expand(sha256.New, chain, "offloadd OPAQUEKEYBLOB v1 key", 32)
		next, err2 := hkdf.Expand(sha256.New, chain, "offloadd OPAQUEKEYBLOB v1 chain", 32)
		block, err3 := aes.NewCipher(key)
		if errors.Join(err1, err2, err3) != nil {
			return -1
		}
		aead, err := cipher.NewGCM(block)
		if err != nil {
			return -1
		}
		for _, b := range blobs {
			if _, err := aead.Open(nil, make([]byte, 12), b[blob.HeaderSize:], b[:blob.HeaderSize]); err == nil {
				n++
			}
		}
		chain = next
	}
	return n
}
