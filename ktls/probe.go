// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"context"
	"errors"
	"fmt"

	"github.com/offloadd/offloadd/blob"
)

// Names of the features that [Probe] tries. Those of the suites come from
// [SuiteFeature].
const (
	FeatureULP        = "tls"
	FeatureRekeyTX    = "rekey tx"
	FeatureRekeyRX    = "rekey rx"
	FeatureNoPad      = "expect no padding"
	FeatureMaxPayload = "record size limit"
	FeatureInfo       = "mode of a socket"
	FeatureMPTCP      = "tls on multipath tcp"
	FeatureSplice     = "splice out loses nothing"
	FeatureNoPadRetry = "expect no padding is sound"
	FeatureSignal     = "signals spare a blocking send"
)

// SuiteFeature is the name of the feature that records of this version and AEAD can
// be protected.
func SuiteFeature(s blob.CipherSuite) string { return fmt.Sprintf("%v %v", s.Version(), s.AEAD()) }

// Result is what came out of trying one thing. Err is nil if it works, wraps
// ErrNotSupported if it certainly does not, and is another error if it could not be
// told.
type Result struct {
	Name string
	Err  error
	// Remedy says what an operator can do, "" if nothing needs to be done.
	Remedy string
}

// Device is a network interface and its features (ethtool -k).
type Device struct {
	Name string `json:"name"`
	// TX and RX: tls-hw-tx-offload and tls-hw-rx-offload are on.
	TX bool `json:"tls_hw_tx_offload"`
	RX bool `json:"tls_hw_rx_offload"`
}

// Features is what this kernel, in this network namespace and with the privileges
// of this process, can do.
type Features struct {
	Results []Result `json:"results"`
	Devices []Device `json:"devices"`
}

// Err returns the error of one result; a name that was not tried could not be told.
func (f *Features) Err(name string) error {
	for _, r := range f.Results {
		if r.Name == name {
			return r.Err
		}
	}
	return fmt.Errorf("%q was not tried", name)
}

// attempt is one line of the table of what to try.
type attempt struct {
	name   string
	try    func() error
	remedy string
}

const (
	remedyModule  = "load the cipher's kernel module (gcm, chacha20poly1305)"
	remedyRekey   = "Linux 6.14 or later; until then a KeyUpdate of the peer ends the connection"
	remedyNewer   = "a newer kernel; until then this is not used"
	remedyUpgrade = "upgrade to a kernel with the fix; until then this is avoided"
	remedyAdmin   = "give CAP_NET_ADMIN, or use Linux 7 or later"
)

// attempts returns what to try once the ULP is there.
func attempts() []attempt {
	var list []attempt
	seen := make(map[string]bool)
	for _, suite := range blob.CipherSuites() {
		name := SuiteFeature(suite)
		if !seen[name] {
			list = append(list, attempt{name, func() error { return TrySuite(suite) }, remedyModule})
		}
		seen[name] = true
	}
	return append(list,
		attempt{FeatureRekeyTX, func() error { return tryRekey(optTX) }, remedyRekey},
		attempt{FeatureRekeyRX, func() error { return tryRekey(optRX) }, remedyRekey},
		attempt{FeatureNoPad, tryNoPad, remedyNewer},
		attempt{FeatureMaxPayload, tryMaxPayload, remedyNewer},
		attempt{FeatureInfo, tryInfo, remedyAdmin},
		attempt{FeatureMPTCP, tryMPTCP, "listen with net.ListenConfig.SetMultipathTCP(false)"},
		attempt{FeatureSplice, trySplice, remedyUpgrade},
		attempt{FeatureNoPadRetry, tryNoPadRetry, remedyUpgrade},
		attempt{FeatureSignal, trySignal, remedyUpgrade},
	)
}

// Probe tries what this package uses, on loopback connections of its own. It fails
// only if ctx ends. Nothing is decided by the kernel's version: stable kernels have
// fixes that later ones lack.
func Probe(ctx context.Context) (*Features, error) {
	f := new(Features)
	ulp := tryULP()
	f.add(attempt{FeatureULP, nil, "modprobe tls; in a virtual machine if the kernel has no CONFIG_TLS"}, ulp)
	for _, a := range attempts() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if ulp != nil {
			f.add(attempt{name: a.name}, withoutULP(ulp))
			continue
		}
		f.add(a, a.try())
	}
	f.Devices = devices()
	return f, nil
}

// withoutULP is the result of everything else if the ULP could not be attached.
func withoutULP(ulp error) error {
	if errors.Is(ulp, ErrNotSupported) {
		return fmt.Errorf("%w, which has no TLS", ErrNotSupported)
	}
	return errors.New("not tried: attaching TLS went wrong")
}

func (f *Features) add(a attempt, err error) {
	r := Result{Name: a.name, Err: err}
	if err != nil {
		r.Remedy = a.remedy
	}
	f.Results = append(f.Results, r)
}

// unsupported makes a conclusive no of one of the errors, and leaves others as they
// are.
func unsupported(err error, conclusive ...error) error {
	for _, no := range conclusive {
		if errors.Is(err, no) {
			return fmt.Errorf("%w: %w", ErrNotSupported, err)
		}
	}
	return err
}
