// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"encoding/json"
	"errors"
)

// marshalInfo is the JSON form of an Info.
func marshalInfo(i Info) ([]byte, error) {
	v := struct {
		Version    string `json:"version,omitempty"`
		AEAD       string `json:"aead,omitempty"`
		TX         Mode   `json:"tx"`
		RX         Mode   `json:"rx"`
		Reason     string `json:"reason,omitempty"`
		ZeroCopy   bool   `json:"zero_copy,omitempty"`
		NoPad      bool   `json:"no_pad,omitempty"`
		MaxPayload int    `json:"max_payload,omitempty"`
	}{TX: i.TX, RX: i.RX, Reason: i.Reason, ZeroCopy: i.ZeroCopy, NoPad: i.NoPad, MaxPayload: i.MaxPayload}
	if i.Version != 0 {
		v.Version, v.AEAD = i.Version.String(), i.AEAD.String()
	}
	return json.Marshal(v)
}

// MarshalJSON writes the state of a feature as "yes", "no" or "unknown".
func (r Result) MarshalJSON() ([]byte, error) {
	v := struct {
		Name   string `json:"name"`
		State  string `json:"state"`
		Detail string `json:"detail,omitempty"`
		Remedy string `json:"remedy,omitempty"`
	}{Name: r.Name, State: r.State(), Remedy: r.Remedy}
	if r.Err != nil {
		v.Detail = r.Err.Error()
	}
	return json.Marshal(v)
}

// State is "yes" if the feature works, "no" if it certainly does not, and
// "unknown" if the probe could not tell.
func (r Result) State() string {
	switch {
	case r.Err == nil:
		return "yes"
	case errors.Is(r.Err, ErrNotSupported):
		return "no"
	}
	return "unknown"
}
