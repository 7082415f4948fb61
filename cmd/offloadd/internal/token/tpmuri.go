// SPDX-License-Identifier: Apache-2.0

package token

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// tpmURI says where a TPM's key is.
type tpmURI struct {
	handle uint32
	device string // a character device, or a unix socket of a TPM in software
}

// defaultDevice goes through the kernel's resource manager, so that several programs
// can use the TPM.
const defaultDevice = "/dev/tpmrm0"

// Persistent objects (TPM 2.0 Library, Part 2, Section 7.5: MSO 0x81). Others are
// lost at a reset, and somebody would have to load and flush them.
const persistentFirst, persistentLast = 0x81000000, 0x81FFFFFF

// parseTPM parses handle=0x81000001;device=/dev/tpmrm0.
func parseTPM(path string) (*tpmURI, error) {
	values, err := attributes(path, ";", pathMarks+"/")
	if err != nil {
		return nil, err
	}
	digits, hex := strings.CutPrefix(values["handle"], "0x")
	handle, err := strconv.ParseUint(digits, 16, 32)
	if err != nil || !hex || handle < persistentFirst || handle > persistentLast {
		return nil, errors.New("handle must be that of a persistent key, 0x81000000 to 0x81ffffff; \"tpm2_evictcontrol\" makes a key persistent")
	}
	u := &tpmURI{handle: uint32(handle), device: defaultDevice}
	if device, ok := values["device"]; ok {
		u.device = device
	}
	if !filepath.IsAbs(u.device) {
		return nil, errors.New("device must be an absolute path, for example " + defaultDevice)
	}
	for name := range values {
		if name != "handle" && name != "device" {
			return nil, fmt.Errorf("%s is not handle or device", name)
		}
	}
	return u, nil
}
