// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"
)

const events = `{"Action":"start","Package":"m/a"}
{"Action":"output","Package":"m/a","Test":"TestGood","Output":"=== RUN TestGood\n"}
{"Action":"pass","Package":"m/a","Test":"TestGood"}
{"Action":"output","Package":"m/a","Test":"TestBad","Output":"    a_test.go:1: wrong\n"}
{"Action":"fail","Package":"m/a","Test":"TestBad"}
{"Action":"skip","Package":"m/a","Test":"TestLater"}
{"Action":"output","Package":"m/a","Output":"watch: all seen\n"}
{"Action":"output","Package":"m/a","Output":"FAIL\n"}
{"Action":"fail","Package":"m/a","Elapsed":1.5}
{"Action":"output","Package":"m/none","Output":"?   \tm/none\t[no test files]\n"}
{"Action":"skip","Package":"m/none"}
{"ImportPath":"m/broken [m/broken.test]","Action":"build-output","Output":"syntax error\n"}
{"ImportPath":"m/broken [m/broken.test]","Action":"build-fail"}
{"Action":"fail","Package":"m/broken","FailedBuild":"m/broken [m/broken.test]"}
{"Action":"pass","Package":"m/dead","Test":"TestFine"}
{"Action":"output","Package":"m/dead","Output":"vm: the kernel is in trouble\n"}
{"Action":"fail","Package":"m/dead"}
`

func TestReport(t *testing.T) {
	var out bytes.Buffer
	one := &kernelReport{Release: "6.12.1-cloud", Version: "6.12.1-1"}
	reader := &eventReader{report: one, out: &out}
	if err := reader.read(strings.NewReader(events)); err != nil {
		t.Fatal(err)
	}
	if one.Passed != 2 || one.Failed != 3 || one.Skipped != 1 || one.Packages != 3 {
		t.Errorf("counted %+v", one)
	}
	for _, want := range []string{"a_test.go:1: wrong", "syntax error", "the kernel is in trouble", "FAIL  m/a  3 tests  1.5 s"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the output lacks %q:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "=== RUN TestGood") {
		t.Error("the output of a test that passed is shown")
	}
	if n := strings.Count(out.String(), "watch: all seen"); n != 1 {
		t.Errorf("what the watch saw is said %d times", n)
	}
	out.Reset()
	all := &report{}
	all.add(one)
	all.add(&kernelReport{Release: "7.1", Passed: 5})
	all.print(&out)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if last := lines[len(lines)-1]; last != "7 passed, 3 failed, 1 skipped" {
		t.Errorf("the last line is %q", last)
	}
}
