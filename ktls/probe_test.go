// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

func TestProbe(t *testing.T) {
	f, err := ktls.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range f.Results {
		t.Logf("%-32s %-8s %v", r.Name, r.State(), r.Err)
		if ktlstest.InVM() && r.State() == "unknown" {
			t.Errorf("%s: could not be told: %v", r.Name, r.Err)
		}
	}
	if len(f.Devices) == 0 {
		t.Error("no network device")
	}
	if !ktlstest.InVM() {
		return
	}
	must := []string{ktls.FeatureULP, ktls.FeatureNoPad, ktls.FeatureInfo}
	for _, suite := range blob.CipherSuites() {
		must = append(must, ktls.SuiteFeature(suite))
	}
	for _, name := range must {
		if err := f.Err(name); err != nil {
			t.Errorf("each of our kernels has %q: %v", name, err)
		}
	}
	if err := f.Err(ktls.FeatureMPTCP); !errors.Is(err, ktls.ErrNotSupported) {
		t.Errorf("no kernel has TLS on Multipath TCP: %v", err)
	}
}

func TestProbeEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if f, err := ktls.Probe(ctx); !errors.Is(err, context.Canceled) || f != nil {
		t.Error(f, err)
	}
}

func TestResultsAsJSON(t *testing.T) {
	f := ktls.Features{Results: []ktls.Result{
		{Name: "a"},
		{Name: "b", Err: ktls.ErrNotSupported, Remedy: "upgrade"},
		{Name: "c", Err: errors.New("odd")},
	}, Devices: []ktls.Device{{Name: "lo"}}}
	b, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`{"name":"a","state":"yes"}`,
		`{"name":"b","state":"no","detail":"not supported by this kernel","remedy":"upgrade"}`,
		`{"name":"c","state":"unknown","detail":"odd"}`,
		`{"name":"lo","tls_hw_tx_offload":false,"tls_hw_rx_offload":false}`,
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%s has no %s", b, want)
		}
	}
}
