// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A disk holds a squashfs of programs. Many machines may read one at a time.
type disk struct {
	image  string // a file on the host
	serial string // init finds it by this; 20 bytes at most
}

func (d disk) arguments() []string {
	return []string{
		"-drive", "if=none,id=" + d.serial + ",format=raw,readonly=on,file=" + strings.ReplaceAll(d.image, ",", ",,"),
		"-device", "virtio-blk-pci,drive=" + d.serial + ",serial=" + d.serial,
	}
}

// mountDisk is the guest's side. The kernel loads the modules of file systems itself, by way of modprobe.
func mountDisk(serial, place string) error {
	if output, err := exec.Command("/sbin/modprobe", "virtio_blk").CombinedOutput(); err != nil {
		return fmt.Errorf("load virtio_blk: %w: %s", err, output)
	}
	device, err := findDisk(serial)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(place, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(device, place, "squashfs", unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mount %s: %w", device, err)
	}
	return nil
}

// diskPatience is how long the disk may take to appear after its driver was loaded.
const diskPatience = 20 * time.Second

func findDisk(serial string) (string, error) {
	for end := time.Now().Add(diskPatience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		names, err := filepath.Glob("/sys/block/vd*/serial")
		if err != nil {
			return "", err
		}
		for _, name := range names {
			content, err := os.ReadFile(name)
			if err == nil && strings.TrimSpace(string(content)) == serial {
				return "/dev/" + filepath.Base(filepath.Dir(name)), nil
			}
		}
	}
	return "", fmt.Errorf("no disk %q after %v", serial, diskPatience)
}
