// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"
)

// passedOn are the variables of the host that the guest gets: ours, the terminal's, and those that configure the Go
// runtime. Paths of the host mean nothing there.
var passedOn = []string{"TERM", "COLORTERM", "LANG", "TZ", "GODEBUG", "GOGC", "GOMAXPROCS", "GOMEMLIMIT", "GORACE",
	"GOTRACEBACK", "GOCOVERDIR"}

const ourPrefix = "OFFLOADD_"

// guestEnvironment is the command's environment. What is given explicitly wins.
func guestEnvironment(host, given []string, dir string, k *kernel) []string {
	env := []string{"PATH=" + guestSearch, "HOME=/root", "USER=root", "LOGNAME=root", "PWD=" + dir}
	for _, variable := range host {
		name, _, _ := strings.Cut(variable, "=")
		if slices.Contains(passedOn, name) || strings.HasPrefix(name, ourPrefix) {
			env = append(env, variable)
		}
	}
	env = append(env, ourPrefix+"VM_KERNEL="+k.Release, ourPrefix+"KERNEL_SERIES="+k.Series)
	return lastWins(append(env, expandEnv(given, host)...))
}

// expandEnv gives a bare NAME its value on the host, if it has one.
func expandEnv(given, host []string) (env []string) {
	for _, variable := range given {
		if strings.Contains(variable, "=") {
			env = append(env, variable)
			continue
		}
		for _, candidate := range host {
			if strings.HasPrefix(candidate, variable+"=") {
				env = append(env, candidate)
			}
		}
	}
	return env
}

// lastWins drops all but the last setting of each name.
func lastWins(env []string) (unique []string) {
	seen := map[string]bool{}
	for _, variable := range slices.Backward(env) {
		name, _, _ := strings.Cut(variable, "=")
		if !seen[name] {
			seen[name] = true
			unique = append(unique, variable)
		}
	}
	slices.Reverse(unique)
	return unique
}
