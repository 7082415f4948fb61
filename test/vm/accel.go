// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// kvmPatience bounds the boot that shows whether KVM works. Emulated, a boot takes a few seconds.
const kvmPatience = 15 * time.Second

// accelerator chooses KVM if a kernel boots with it. The device may be there and not do what a stock kernel needs, so
// this is found out once per boot of the host, and remembered.
func (f *fetcher) accelerator(ctx context.Context, booted *images) (string, error) {
	if file, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err != nil {
		return accelTCG, nil
	} else {
		file.Close()
	}
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return accelTCG, nil
	}
	path := f.cache.path("kvm.json")
	known := kvmResult{}
	boot := strings.TrimSpace(string(id))
	if _, err := readJSON(path, &known); err == nil && known.Boot == boot {
		return known.accel(), nil
	}
	unlock, err := f.cache.lock(f.progress)
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := readJSON(path, &known); err == nil && known.Boot == boot {
		return known.accel(), nil
	}
	known = kvmResult{Boot: boot, Works: f.kvmBoots(ctx, booted)}
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	return known.accel(), writeJSON(path, known)
}

type kvmResult struct {
	Boot  string // the host's boot_id
	Works bool
}

func (r kvmResult) accel() string {
	if r.Works {
		return accelKVM
	}
	return accelTCG
}

// kvmBoots tries.
func (f *fetcher) kvmBoots(ctx context.Context, booted *images) bool {
	f.progress.step("does KVM run a stock kernel here")
	ctx, cancel := context.WithTimeout(ctx, kvmPatience)
	defer cancel()
	m := &machine{
		fetcher: f, images: booted, files: &runFiles{}, stdout: io.Discard, stderr: io.Discard,
		hw: hardware{accel: accelKVM, memory: 1024, cpus: 1, bootPatience: 2 * kvmPatience},
		spec: guestSpec{Args: []string{"/bin/true"}, Dir: "/", Modules: booted.kernel.Modules,
			Env: []string{"PATH=" + guestSearch}},
	}
	code, err := m.run(ctx)
	works := code == 0 && err == nil
	f.progress.done(map[bool]string{true: "yes", false: fmt.Sprintf("no, emulating (code %d)", code)}[works])
	return works
}
