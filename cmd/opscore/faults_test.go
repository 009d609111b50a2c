//go:build linux

package main

import (
	"flag"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opscore/opscore"
)

// The benchmark of explain. Each fault is injected into a deployment of its own, of real processes: then opscore explain and opscore
// doctor are asked once, and what they answer is held against what was injected. docs/decisions/0024-explain-benchmark.md says
// how the faults look here, and why.

var whichFaults = flag.String("faults", "fast", "what the benchmark of explain plays: fast, all, or names separated by commas, such as F01,unforeseen,pairs,healthy")

var unmanaged = flag.Bool("unmanaged", false, "do not tell explain of the broker's management API; then there are no bounds")

// play is a deployment that is brought into a state, and what a good answer says about its target.
type play struct {
	name string                   // "F36 no worker"
	fast bool                     // a part of the benchmark that every run of the tests plays
	on   func(*testing.T, *scene) // where the tasks are
	act  func(*scene) want
}

// want is what a good answer says.
type want struct {
	codes    []string         // the first cause has one of these; for a pair each is among the causes, in any place
	evidence []string         // is in the first cause's evidence, as words of their own: the process id, the name or the count that was injected
	count    func(int64) bool // and so is a number that may be right, where it changes all the time; nil for none
	remedy   remedy
	names    []string        // what an operator's action names, one of them
	undo     func()          // what an operator does then; nil if the remedy is a command, or nothing has to be done
	lasts    bool            // the target does not end by itself once that is done: it is scheduled for later, or is no task
	said     []opscore.Cause // what opscore submit said already, where that is the answer
}

// remedy is the kind of remedy that there is for a fault.
type remedy string

const (
	byCommand  remedy = "command"  // printed, and executed as it is
	byOperator remedy = "operator" // the product cannot know it all: an action names what to do it to
	either     remedy = "either"   // a command if there is one, else an action
	notNeeded  remedy = "none"     // nothing may be invented
	optional   remedy = "optional" // nothing is broken, but something could be done; a command must work
)

// reply is what a command said.
type reply struct {
	Causes []opscore.Cause `json:"causes"`
	took   time.Duration
	status int
	raw    string
	errors string
}

// verdict is how good the answers to a play were.
type verdict struct {
	name                    string
	cause, evidence, remedy bool
	code                    string // of the first cause
	place                   int    // of the cause that was wanted among those that were named, from 1; 0 for none
	took                    time.Duration
	doctor                  bool // named it, too
	leaked                  int  // passwords
	why                     []string
}

func (v *verdict) fail(format string, args ...any) bool {
	v.why = append(v.why, fmt.Sprintf(format, args...))
	return false
}

// TestExplainBench plays what -faults says. With all of it, the score has bounds; else each play has to be answered well.
func TestExplainBench(t *testing.T) {
	t.Parallel()
	all := *whichFaults == "all"
	b := &bench{T: t, bin: filepath.Dir(buildCommand(t)), turns: make(chan struct{}, 2), verdicts: map[string][]*verdict{}}
	t.Run("play", func(t *testing.T) {
		for kind, plays := range map[string][]play{"fault": faults(), "unforeseen": unforeseen(), "healthy": healthy(), "pair": pairs()} {
			for _, p := range plays {
				if chosen(kind, p) {
					t.Run(strings.ReplaceAll(p.name, " ", "_"), func(t *testing.T) {
						t.Parallel()
						b.turns <- struct{}{}
						defer func() { <-b.turns }()
						b.note(kind, b.run(t, kind, p))
					})
				}
			}
		}
	})
	b.report(all)
}

// chosen reports whether the flag names a play.
func chosen(kind string, p play) bool {
	id, _, _ := strings.Cut(p.name, " ")
	plural := map[string]string{"fault": "faults", "unforeseen": "unforeseen", "healthy": "healthy", "pair": "pairs"}[kind]
	return *whichFaults == "all" || *whichFaults == "fast" && p.fast ||
		slices.ContainsFunc(strings.Split(*whichFaults, ","), func(name string) bool { return name == id || name == plural })
}

// faults are those of each part of the catalogue.
func faults() []play {
	return slices.Concat(producerFaults(), brokerFaults(), workerFaults(), legitimate(), databaseFaults())
}

// run plays, asks and judges.
func (b *bench) run(t *testing.T, kind string, p play) *verdict {
	s := newScene(t, b.bin)
	p.on(t, s)
	v := &verdict{name: p.name}
	w := p.act(s)
	a := s.ask("explain", s.target.String())
	d := s.ask("doctor")
	v.took = a.took
	if w.said != nil {
		a.Causes = slices.Concat(w.said, a.Causes)
	}
	if len(a.Causes) > 0 {
		v.code = a.Causes[0].Code
	}
	switch kind {
	case "healthy":
		v.cause = b.calm(v, "explain", a) && b.calm(v, "doctor", d)
		v.cause = v.cause && w.judgeCause(v, a)
		v.evidence, v.remedy = true, true
	case "pair":
		v.cause = w.judgeBoth(v, a)
		v.evidence, v.remedy = true, true
	default:
		v.cause = w.judgeCause(v, a)
		v.evidence = w.judgeEvidence(v, a)
		v.remedy = w.judgeRemedy(v, s, a)
		v.doctor = slices.ContainsFunc(d.Causes, func(c opscore.Cause) bool { return slices.Contains(w.codes, c.Code) })
	}
	if v.leaked = s.leaks(); v.leaked > 0 {
		t.Errorf("%s: the passwords are in the output %d times", p.name, v.leaked)
	}
	for _, why := range v.why {
		t.Log(why)
	}
	if len(v.why) > 0 {
		t.Logf("explain took %s and said:\n%s\ndoctor said:\n%s", a.took.Round(time.Millisecond), a.raw, d.raw)
	}
	return v
}
