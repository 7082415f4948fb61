// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/blob/handoff"
)

// questionPipes are what a program asks and is answered by. Two pipes, and not a socket,
// because a shell and Java can use them: /dev/fd opens pipes only.
type questionPipes struct {
	answers, questions     *os.File // the program's ends
	toProgram, fromProgram *os.File // ours
	answersID, questionsID uint64
}

func openQuestionPipes() (*questionPipes, error) {
	p := &questionPipes{}
	var err error
	if p.answers, p.toProgram, err = os.Pipe(); err != nil {
		return nil, err
	}
	if p.fromProgram, p.questions, err = os.Pipe(); err != nil {
		p.answers.Close()
		p.toProgram.Close()
		return nil, err
	}
	var answers, questions unix.Stat_t
	if err := errors.Join(unix.Fstat(int(p.answers.Fd()), &answers), unix.Fstat(int(p.questions.Fd()), &questions)); err != nil {
		p.close()
		return nil, err
	}
	p.answersID, p.questionsID = answers.Ino, questions.Ino
	return p, nil
}

// environment tells the preload library which pipes these are: a program may close them,
// and open other files in their places.
func (p *questionPipes) environment() string {
	return fmt.Sprintf("OFFLOADD_PIPES=%d,%d", p.answersID, p.questionsID)
}

// close may be called more than once.
func (p *questionPipes) close() {
	for _, end := range []*os.File{p.answers, p.questions, p.toProgram, p.fromProgram} {
		end.Close()
	}
}

// questioned answers the questions of one program.
type questioned struct {
	socket *handoff.Socket
	log    *slog.Logger
	over   atomic.Bool // the daemon has ended the connection, or nobody can follow the peer
	last   string      // the answer behind which nothing more is to be read; only for serve
}

// programQuestions are what a program may ask, each in a line. Programs of one thread do
// not read or write while they wait for the answer.
var programQuestions = map[string]blob.Question{
	"met":         {Met: true, Quiet: true},
	"update":      {Quiet: true, Update: true},
	"update both": {Quiet: true, Update: true, Request: true},
}

const (
	longestQuestion = 64 // bytes
	// roomTime is how long a peer may leave no room for a KeyUpdate that must go out.
	roomTime = 10 * time.Second
)

// serve answers until the program has ended.
func (q *questioned) serve(from io.Reader, to io.Writer) {
	lines := bufio.NewReaderSize(from, longestQuestion)
	for {
		line, err := lines.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			q.log.Warn("no question", "text", string(line))
		}
		if err != nil {
			return
		}
		word := strings.TrimSpace(string(line))
		question, ok := programQuestions[word]
		answer := "unknown question"
		switch {
		case ok:
			answer = q.answer(question)
		case word == "end":
			answer = cmp.Or(q.last, "cut")
		}
		q.log.Info("question", "text", word, "answer", answer)
		if _, err := io.WriteString(to, answer+"\n"); err != nil {
			return
		}
	}
}

// answer asks the daemon, and says what it answered in one line.
func (q *questioned) answer(question blob.Question) string {
	answer, err := q.ask(question)
	if err != nil {
		answer = blob.Answer{Verdict: blob.Ended, Reason: err.Error()}
	}
	reason := strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, answer.Reason)
	switch {
	case answer.Refused:
		return "refused: " + reason
	case answer.Verdict == blob.GoOn:
		return "go on"
	case answer.Verdict == blob.EndOfStream:
		q.last = "end"
	case answer.Verdict == blob.Alerted:
		q.last = fmt.Sprintf("alert %d", answer.Alert)
	default:
		q.last = fmt.Sprintf("ended %d: %s", answer.Alert, reason)
	}
	q.over.Store(answer.Verdict != blob.EndOfStream)
	return q.last
}

// ask asks until nothing is owed: the program does not know that it would have to ask
// again before it writes.
func (q *questioned) ask(question blob.Question) (answer blob.Answer, err error) {
	raw, err := q.socket.SyscallConn()
	if err != nil {
		return answer, err
	}
	if err := q.socket.SetWriteDeadline(time.Now().Add(roomTime)); err != nil {
		return answer, err
	}
	answer, err = q.socket.TLSAsk(question)
	next := answer
	waited := raw.Write(func(uintptr) bool {
		if err != nil || !next.Owed {
			return true
		}
		next, err = q.socket.TLSAsk(blob.Question{Quiet: true})
		return err != nil || !next.Owed
	})
	if waited != nil {
		waited = fmt.Errorf("the peer waits for a KeyUpdate, and makes no room for it: %w", waited)
	}
	if next.Verdict != blob.GoOn {
		answer = next
	}
	return answer, errors.Join(waited, err, q.socket.SetWriteDeadline(time.Time{}))
}
