// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The tests named TestVM boot virtual machines, two at a time.

var (
	buildOnce sync.Once
	built     string
	buildErr  error
	slots     = make(chan struct{}, 2)
)

func TestMain(m *testing.M) {
	code := m.Run()
	if built != "" {
		os.RemoveAll(filepath.Dir(built))
	}
	os.Exit(code)
}

// vm returns the built program, and holds one of the machines until the test ends.
func vm(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a virtual machine")
	}
	t.Parallel()
	buildOnce.Do(func() {
		var dir string
		if dir, buildErr = os.MkdirTemp("", "vm-test-"); buildErr != nil {
			return
		}
		built = filepath.Join(dir, "vm")
		if output, err := exec.Command("go", "build", "-o", built, ".").CombinedOutput(); err != nil {
			buildErr = fmt.Errorf("%w: %s", err, output)
		}
	})
	if buildErr != nil {
		t.Fatal(buildErr)
	}
	slots <- struct{}{}
	t.Cleanup(func() { <-slots })
	return built
}

type outcome struct {
	stdout, stderr string
	code           int
	took           time.Duration
}

// vmExec runs one command in a machine.
func vmExec(t *testing.T, stdin string, args ...string) outcome {
	t.Helper()
	command := exec.Command(vm(t), append([]string{"exec"}, args...)...)
	return runCommand(t, command, stdin)
}

func runCommand(t *testing.T, command *exec.Cmd, stdin string) outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	command.Stdin, command.Stdout, command.Stderr = strings.NewReader(stdin), &stdout, &stderr
	began := time.Now()
	err := command.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return outcome{stdout.String(), stderr.String(), command.ProcessState.ExitCode(), time.Since(began)}
}

func (o outcome) want(t *testing.T, code int) {
	t.Helper()
	if o.code != code {
		t.Errorf("exit code %d, want %d\nstderr: %s", o.code, code, o.stderr)
	}
}

func TestVMExitCodes(t *testing.T) {
	for script, code := range map[string]int{"exit 0": 0, "exit 1": 1, "exit 3": 3, "exit 255": 255, "kill -KILL $$": 137} {
		t.Run(script, func(t *testing.T) {
			vmExec(t, "", "-no-dir", "sh", "-c", script).want(t, code)
		})
	}
}

func TestVMCommandNotFound(t *testing.T) {
	got := vmExec(t, "", "-no-dir", "/does/not/exist")
	got.want(t, exitNotFound)
	if !strings.Contains(got.stderr, "/does/not/exist") {
		t.Errorf("stderr %q", got.stderr)
	}
}

// Each kernel boots, says what it is and has TLS, and none has it when told so.
func TestVMKernels(t *testing.T) {
	for _, series := range kernelSeries {
		t.Run(series, func(t *testing.T) {
			program := vm(t)
			script := "uname -r; echo $OFFLOADD_VM_KERNEL; echo $OFFLOADD_KERNEL_SERIES; " + program + " native"
			got := runCommand(t, exec.Command(program, "exec", "-kernel", series, "-file", program, "sh", "-c", script), "")
			got.want(t, 0)
			lines := strings.Split(got.stdout, "\n")
			if len(lines) < 4 || lines[0] != lines[1] || lines[2] != series || !strings.Contains(lines[3], "has TLS") {
				t.Errorf("the guest says %q", lines)
			}
			script = "modprobe tls; " + program + " native"
			got = runCommand(t, exec.Command(program, "exec", "-kernel", series, "-without-tls", "-file", program, "sh", "-c", script), "")
			got.want(t, 1)
			if !strings.Contains(got.stderr, "has no TLS") {
				t.Errorf("without TLS the guest says %q", got.stderr)
			}
		})
	}
}

// The disk's programs are where they belong, the guest's own come first, and without the disk they are not there.
func TestVMLanguages(t *testing.T) {
	for _, series := range kernelSeries {
		t.Run(series, func(t *testing.T) {
			script := `set -e; gcc --version | head -n1; python3 -c 'print("python")'; node -p '"node"'; java -version 2>&1 | head -n1
				readlink -f /usr/bin/cat; readlink -f /languages/usr/bin/cat; test -e /etc/java-21-openjdk/security/java.security`
			got := vmExec(t, "", "-no-dir", "-languages", "-kernel", series, "sh", "-c", script)
			got.want(t, 0)
			for i, want := range []string{"gcc ", "python", "node", "openjdk version \"21", "/usr/bin/busybox", "/languages/usr/bin/cat"} {
				if lines := strings.Split(got.stdout, "\n"); len(lines) <= i || !strings.HasPrefix(lines[i], want) {
					t.Errorf("line %d of %q, want %q", i, lines, want)
				}
			}
		})
	}
	t.Run("without the disk", func(t *testing.T) {
		vmExec(t, "", "-no-dir", "sh", "-c", "! command -v gcc && ! test -e /languages").want(t, 0)
	})
}

// The peers run in their roots, each with the libraries it was built for, and what they write is seen outside.
func TestVMPeers(t *testing.T) {
	script := `set -e; cd /peers
		for program in nginx:-v haproxy:-v stunnel:-version hitch:--version iperf3:--version; do
			chroot stable ${program%:*} ${program#*:} 2>&1 | grep -m1 '[0-9][.][0-9]' 
		done
		if test -d experimental; then chroot experimental haproxy -vv | grep -c +KTLS; chroot experimental nginx -v; else echo 1; fi
		chroot stable nginx -t -e /tmp/log -g 'error_log /tmp/log info; pid /tmp/pid;' 2>/dev/null || true
		test -s /tmp/log; test -e stable/dev/null; test -e stable/proc/self; ! command -v haproxy; echo written`
	got := vmExec(t, "", "-no-dir", "-peers", "sh", "-c", script)
	got.want(t, 0)
	lines := strings.Split(strings.TrimSpace(got.stdout), "\n")
	for i, want := range []string{"nginx version: nginx/", "HAProxy version 3.0", "stunnel 5", "hitch 1", "iperf 3", "1", "written"} {
		if len(lines) <= i || !strings.HasPrefix(lines[i], want) {
			t.Errorf("line %d of %q, want %q; %s", i, lines, want, got.stderr)
		}
	}
	t.Run("without the disk", func(t *testing.T) {
		vmExec(t, "", "-no-dir", "sh", "-c", "! test -e /peers").want(t, 0)
	})
}

// A machine that never gets to its init, here because its CPUs stand still, is booted again, and in the end given up.
func TestVMHungBootIsTriedAgain(t *testing.T) {
	got := vmExec(t, "", "-no-dir", "-boot-timeout", "500ms", "-qemu-arg", "-S", "true")
	got.want(t, exitMachine)
	if n := strings.Count(got.stderr, "booting again"); n != bootAttempts-1 || !strings.Contains(got.stderr, errNotStarted.Error()) {
		t.Errorf("%d boots after the first: %s", n, got.stderr)
	}
}

func TestVMPanicIsFailure(t *testing.T) {
	got := vmExec(t, "", "-no-dir", "sh", "-c", "echo before; echo c > /proc/sysrq-trigger; sleep 60")
	got.want(t, exitKernel)
	if !strings.Contains(got.stderr, "Kernel panic") || got.stdout != "before\n" {
		t.Errorf("stdout %q, stderr %q", got.stdout, got.stderr)
	}
}

func TestVMWarningIsFailure(t *testing.T) {
	const script = `echo "WARNING: test" > /dev/kmsg`
	t.Run("noticed", func(t *testing.T) {
		got := vmExec(t, "", "-no-dir", "sh", "-c", script)
		got.want(t, exitKernel)
		if !strings.Contains(got.stderr, "WARNING: test") {
			t.Errorf("stderr %q", got.stderr)
		}
	})
	t.Run("ignored", func(t *testing.T) {
		vmExec(t, "", "-no-dir", "-ignore-kernel", "^WARNING: test$", "sh", "-c", script).want(t, 0)
	})
}

// A test that passes has failed if it broke a rule of kernel TLS, and every run ends with what the watch saw.
func TestVMWatchFailsABrokenRule(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "watch.test")
	if output, err := exec.Command("go", "test", "-c", "-o", binary, "./watch").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	run := func(t *testing.T, env string) outcome {
		return vmExec(t, "", "-watch", "-no-dir", "-env", env, binary, "-test.run=^TestFaultForTheRunner$")
	}
	t.Run("broken", func(t *testing.T) {
		got := run(t, "OFFLOADD_TEST_FAULT=1")
		got.want(t, exitWatch)
		if !strings.Contains(got.stdout, "PASS") || !strings.Contains(got.stderr, "\tclear: port ") || !strings.Contains(got.stderr, watchPrefix+"1 connections") {
			t.Errorf("stdout %q, stderr %q", got.stdout, got.stderr)
		}
	})
	t.Run("kept", func(t *testing.T) {
		got := run(t, "OFFLOADD_TEST_FAULT=")
		got.want(t, 0)
		if !strings.HasPrefix(got.stderr, watchPrefix) || !strings.Contains(got.stderr, " 0 violations") {
			t.Errorf("stderr %q", got.stderr)
		}
	})
}

func TestVMOutputIsExact(t *testing.T) {
	random := make([]byte, 5<<20)
	_, _ = rand.Read(random) // never fails
	dir := t.TempDir()
	for name, content := range map[string][]byte{"out": random, "err": random[:1<<20]} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got := vmExec(t, "", "-file", dir+":/data", "sh", "-c", "cat /data/out; cat /data/err >&2; exit 3")
	got.want(t, 3)
	if got.stdout != string(random) {
		t.Errorf("%d bytes of stdout, not as they were written", len(got.stdout))
	}
	if got.stderr != string(random[:1<<20]) {
		t.Errorf("%d bytes of stderr, not as they were written", len(got.stderr))
	}
}

// The same work is the same number of instructions, other work is not, and waiting is none. All output arrives, though
// the guest does not know how long the host takes to read it.
func TestVMInstructionClock(t *testing.T) {
	const script = `set -e; nproc
		work() { i=0; while [ $i -lt $1 ]; do i=$((i+1)); done; }
		spent() { cut -d' ' -f1 /proc/$$/schedstat; }
		work 1000; a=$(spent); work 20000; b=$(spent); work 20000; c=$(spent); work 40000; d=$(spent)
		echo $((b-a)) $((c-b)) $((d-c))
		sleep 60; yes | head -c 4000000`
	got := vmExec(t, "", "-no-dir", "-icount", "sh", "-c", script)
	got.want(t, 0)
	lines := strings.SplitN(got.stdout, "\n", 3)
	if len(lines) < 3 || lines[0] != "1" || len(lines[2]) != 4_000_000 {
		t.Fatalf("the guest says %.100q, %d bytes", got.stdout, len(got.stdout))
	}
	var first, second, double float64
	if _, err := fmt.Sscan(lines[1], &first, &second, &double); err != nil {
		t.Fatal(err)
	}
	if first < 1e6 || second/first < 0.95 || second/first > 1.05 || double/first < 1.9 || double/first > 2.1 {
		t.Errorf("20,000 rounds take %v and %v instructions, twice as many %v", first, second, double)
	}
}

func TestVMStdin(t *testing.T) {
	random := make([]byte, 1<<20)
	_, _ = rand.Read(random) // never fails
	got := vmExec(t, string(random), "-no-dir", "-stdin", "cat")
	got.want(t, 0)
	if got.stdout != string(random) {
		t.Errorf("%d bytes came back of %d", len(got.stdout), len(random))
	}
}

func TestVMTimeout(t *testing.T) {
	got := vmExec(t, "", "-no-dir", "-timeout", "1s", "sleep", "1000")
	got.want(t, exitTimeout)
	if got.took > 30*time.Second {
		t.Errorf("a timeout of 1 s took %v", got.took)
	}
}

// children are the processes started by one.
func children(parent int) (pids []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is sound
	for _, file := range stats {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // ended
		}
		_, rest, _ := strings.Cut(string(data), ") ")
		fields := strings.Fields(rest)
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err == nil && len(fields) > 1 && fields[1] == strconv.Itoa(parent) && fields[0] != "Z" {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Whatever ends the host's process ends QEMU.
func TestVMSignalsLeaveNoQEMU(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGKILL} {
		t.Run(signal.String(), func(t *testing.T) {
			command := exec.Command(vm(t), "exec", "-no-dir", "sh", "-c", "echo ready; sleep 1000")
			stdout, err := command.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := command.Start(); err != nil {
				t.Fatal(err)
			}
			if _, err := stdout.Read(make([]byte, 16)); err != nil {
				t.Fatal(err)
			}
			started := children(command.Process.Pid)
			if len(started) != 1 {
				t.Fatalf("children %v, want QEMU alone", started)
			}
			if err := command.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			_ = command.Wait() // its code is tested below
			if code := command.ProcessState.ExitCode(); signal != syscall.SIGKILL && code != 128+int(signal) {
				t.Errorf("exit code %d, want %d", code, 128+int(signal))
			}
			waitGone(t, started[0])
		})
	}
}

func waitGone(t *testing.T, pid int) {
	t.Helper()
	for range 100 {
		if syscall.Kill(pid, 0) == syscall.ESRCH {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("process %d is still there", pid)
}

// A reader that goes away, like head, ends the machine.
func TestVMClosedOutput(t *testing.T) {
	command := exec.Command(vm(t), "exec", "-no-dir", "sh", "-c", "echo ready; sleep 1000")
	stdout, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := stdout.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	stdout.Close()
	_ = command.Wait() // an error, as it was abandoned
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("ended %v after its output was closed", took)
	}
}

// A package's tests see their directory and bring back what go test asks for.
func TestVMGoTest(t *testing.T) {
	program := vm(t)
	dir := t.TempDir()
	for name, content := range map[string]string{
		"go.mod":            "module example.test/m\n\ngo 1.26\n",
		"sub/m.go":          "package sub\n\nfunc Covered() int { return 1 }\n",
		"sub/testdata/file": "content",
		"sub/m_test.go": `package sub

import (
	"os"
	"testing"
)

func TestData(t *testing.T) {
	if data, err := os.ReadFile("testdata/file"); string(data) != "content" || Covered() != 1 {
		t.Fatal(string(data), err)
	}
	if err := os.WriteFile("testdata/new", nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestKernel(t *testing.T) {
	if os.Getenv("OFFLOADD_VM_KERNEL") == "" || os.Getuid() != 0 {
		t.Fatal("not in the guest")
	}
	t.Skip("seen")
}
`,
	} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	command := exec.Command(program, "test", "-kernels", "6.12", "-coverprofile", "cover.out", "./...")
	command.Dir = dir
	got := runCommand(t, command, "")
	got.want(t, 0)
	if !strings.HasSuffix(got.stdout, "\n1 passed, 0 failed, 1 skipped\n") {
		t.Errorf("stdout: %s", got.stdout)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "cover.out")); err != nil || !bytes.Contains(data, []byte("m.go")) {
		t.Errorf("coverage %q, %v", data, err)
	}
	if fileExists(filepath.Join(dir, "sub/testdata/new")) {
		t.Error("the guest wrote into the host's directory")
	}
}

func TestVMFilesComeBack(t *testing.T) {
	dir := t.TempDir()
	got := vmExec(t, "", "-no-dir", "-get", "/tmp/tree:"+dir+"/tree", "-get", "/nothing:"+dir+"/nothing",
		"sh", "-c", "mkdir -p /tmp/tree/a; echo one > /tmp/tree/a/b; head -c 3000000 /dev/zero > /tmp/tree/big")
	got.want(t, exitMachine)
	if !strings.Contains(got.stderr, "--get /nothing") {
		t.Errorf("stderr %q", got.stderr)
	}
	data, err := os.ReadFile(dir + "/tree/a/b")
	if string(data) != "one\n" {
		t.Errorf("%q, %v", data, err)
	}
	if info, err := os.Stat(dir + "/tree/big"); err != nil || info.Size() != 3000000 {
		t.Errorf("%+v, %v", info, err)
	}
}

// The guest is a small but complete system.
func TestVMGuestIsSetUp(t *testing.T) {
	for _, series := range kernelSeries {
		t.Run(series, func(t *testing.T) {
			script := `set -e
id -u; id -u offloadd; hostname; ulimit -n; pwd
ip -o addr show lo | grep -c -e '127.0.0.1/8' -e '::1/128'
mount | awk '{print $3}' | sort | tr '\n' ' '; echo
openssl list -kem-algorithms | grep -c X25519MLKEM768
curl --version >/dev/null; strace true 2>/dev/null; ss -tln >/dev/null; ip link add d0 type dummy; ip link add v0 type veth peer name v1
modprobe sch_netem; tc qdisc add dev v0 root netem delay 1ms
stat -c %a /tmp; echo ok`
			got := vmExec(t, "", "-kernel", series, "sh", "-c", script)
			got.want(t, 0)
			dir, err := os.Getwd()
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(got.stdout), "\n")
			if want := []string{"0", "990", guestHostname, "65536", dir, "2"}; len(lines) != 10 || !slices.Equal(lines[:6], want) {
				t.Fatalf("the guest says %q, %s", lines, got.stderr)
			}
			for _, mount := range guestMounts {
				if !slices.Contains(strings.Fields(lines[6]), mount.path) {
					t.Errorf("%s is not mounted", mount.path)
				}
			}
			if lines[7] != "1" || lines[8] != "1777" {
				t.Errorf("ML-KEM and /tmp: %q", lines[7:])
			}
		})
	}
}
