// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// Stats are the counters of the network namespace (/proc/net/tls_stat; tls.rst,
// Statistics).
type Stats struct {
	CurrTxSw, CurrRxSw         uint64 // open sockets, keys in software
	CurrTxDevice, CurrRxDevice uint64 // open sockets, keys in a device
	TxSw, RxSw                 uint64 // sockets since boot
	TxDevice, RxDevice         uint64
	DecryptError               uint64 // records that did not authenticate
	RxDeviceResync             uint64
	DecryptRetry               uint64 // records decrypted twice because padded or of another type
	RxNoPadViolation           uint64
	TxRekeyOk, TxRekeyError    uint64 // since Linux 6.14
	RxRekeyOk, RxRekeyError    uint64
	RxRekeyReceived            uint64
	// Other holds the counters that this package has no field for, by their name.
	Other map[string]uint64
}

// ReadStats reads the counters. Without the tls module it fails with ErrNoTLS.
func ReadStats() (Stats, error) {
	f, err := os.Open("/proc/net/tls_stat")
	if errors.Is(err, fs.ErrNotExist) {
		return Stats{}, ErrNoTLS
	} else if err != nil {
		return Stats{}, err
	}
	defer f.Close()
	return parseStats(f)
}

func (s *Stats) fields() map[string]*uint64 {
	return map[string]*uint64{
		"TlsCurrTxSw": &s.CurrTxSw, "TlsCurrRxSw": &s.CurrRxSw,
		"TlsCurrTxDevice": &s.CurrTxDevice, "TlsCurrRxDevice": &s.CurrRxDevice,
		"TlsTxSw": &s.TxSw, "TlsRxSw": &s.RxSw,
		"TlsTxDevice": &s.TxDevice, "TlsRxDevice": &s.RxDevice,
		"TlsDecryptError": &s.DecryptError, "TlsRxDeviceResync": &s.RxDeviceResync,
		"TlsDecryptRetry": &s.DecryptRetry, "TlsRxNoPadViolation": &s.RxNoPadViolation,
		"TlsTxRekeyOk": &s.TxRekeyOk, "TlsTxRekeyError": &s.TxRekeyError,
		"TlsRxRekeyOk": &s.RxRekeyOk, "TlsRxRekeyError": &s.RxRekeyError,
		"TlsRxRekeyReceived": &s.RxRekeyReceived,
	}
}

// parseStats reads lines of a name and a number.
func parseStats(r io.Reader) (Stats, error) {
	var s Stats
	known := s.fields()
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) == 0 {
			continue
		}
		if len(words) != 2 {
			return Stats{}, fmt.Errorf("tls_stat: %q is not a name and a number", lines.Text())
		}
		n, err := strconv.ParseUint(words[1], 10, 64)
		if err != nil {
			return Stats{}, fmt.Errorf("tls_stat: %s: %w", words[0], err)
		}
		if field, ok := known[words[0]]; ok {
			*field = n
			continue
		}
		if s.Other == nil {
			s.Other = make(map[string]uint64)
		}
		s.Other[words[0]] = n
	}
	return s, lines.Err()
}

// Values returns all counters by the kernel's names; those that this kernel does
// not have are 0.
func (s Stats) Values() map[string]uint64 {
	values := make(map[string]uint64)
	for name, field := range s.fields() {
		values[name] = *field
	}
	for name, n := range s.Other {
		values[name] = n
	}
	return values
}
