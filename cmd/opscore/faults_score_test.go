//go:build linux

package main

import (
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opscore/opscore"
)

// bounds are what the benchmark has to reach.
const (
	causesAtLeast   = 38
	evidenceAtLeast = 38
	remediesAtLeast = 36
	pairsAtLeast    = 8
	slowest         = 3 * time.Second // of explain: the 95th percentile
)

// bench is one run of the benchmark.
type bench struct {
	*testing.T
	bin   string        // the directory of the binary
	turns chan struct{} // so many plays at a time: more would measure each other

	mu       sync.Mutex
	verdicts map[string][]*verdict // by kind: fault, healthy, pair
}

func (b *bench) note(kind string, v *verdict) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.verdicts[kind] = append(b.verdicts[kind], v)
}

// report prints the table and the score, and holds it against the bounds if everything was played, and against perfection otherwise.
func (b *bench) report(all bool) {
	var table strings.Builder
	yes := func(ok bool) string { return map[bool]string{true: "yes", false: "NO"}[ok] }
	fmt.Fprintf(&table, "\n%-44s %-5s %-8s %-6s %-6s %6s  %s\n", "", "cause", "evidence", "remedy", "doctor", "took", "first cause")
	for _, kind := range []string{"fault", "unforeseen", "healthy", "pair"} {
		slices.SortFunc(b.verdicts[kind], func(v, w *verdict) int { return strings.Compare(v.name, w.name) })
		for _, v := range b.verdicts[kind] {
			row := fmt.Sprintf("%-44s %-5s %-8s %-6s %-6s %5.2fs  %s", v.name, yes(v.cause), yes(v.evidence), yes(v.remedy), yes(v.doctor), v.took.Seconds(), v.code)
			if kind == "healthy" || kind == "pair" {
				row = fmt.Sprintf("%-44s %-5s %-8s %-6s %-6s %5.2fs  %s", v.name, yes(v.cause), "", "", "", v.took.Seconds(), v.code)
			}
			if !v.cause && v.place > 0 {
				row += fmt.Sprintf(" (named as number %d)", v.place)
			}
			fmt.Fprintln(&table, row)
		}
	}
	b.Log(table.String())
	faults, others, healthy, pairs := b.verdicts["fault"], b.verdicts["unforeseen"], b.verdicts["healthy"], b.verdicts["pair"]
	causes, evidence, remedies := answered(faults)
	alarms := count(healthy, func(v *verdict) bool { return !v.cause })
	both := count(pairs, func(v *verdict) bool { return v.cause })
	p95 := percentile95(slices.Concat(faults, others, healthy, pairs))
	b.Logf("cause %d/%d evidence %d/%d remedy %d/%d p95 %.1fs false %d/%d pairs %d/%d", causes, len(faults), evidence, len(faults),
		remedies, len(faults), p95.Seconds(), alarms, len(healthy), both, len(pairs))
	c, e, r := answered(others)
	b.Logf("beyond the catalogue: cause %d/%d evidence %d/%d remedy %d/%d", c, len(others), e, len(others), r, len(others))
	if all && (len(faults) != 40 || len(healthy) != 20 || len(pairs) != 10) {
		b.Errorf("there were %d faults, %d healthy controls and %d pairs, want 40, 20 and 10", len(faults), len(healthy), len(pairs))
	}
	missed := len(faults) - min(causes, evidence, remedies)
	missedOthers := len(others) - min(c, e, r)
	switch {
	case alarms > 0:
		b.Errorf("%d healthy deployments were said to have a fault", alarms)
	case all && (causes < causesAtLeast || evidence < evidenceAtLeast || remedies < remediesAtLeast || both < pairsAtLeast || p95 > slowest):
		b.Errorf("want at least cause %d, evidence %d, remedy %d, pairs %d, and at most p95 %s", causesAtLeast, evidenceAtLeast, remediesAtLeast, pairsAtLeast, slowest)
	case missedOthers > 0 || !all && (missed > 0 || both < len(pairs)):
		b.Error("not all of what was played was answered well")
	}
}

// answered counts the good answers.
func answered(all []*verdict) (causes, evidence, remedies int) {
	return count(all, func(v *verdict) bool { return v.cause }),
		count(all, func(v *verdict) bool { return v.evidence }),
		count(all, func(v *verdict) bool { return v.remedy })
}

func count(all []*verdict, good func(*verdict) bool) (n int) {
	for _, v := range all {
		if good(v) {
			n++
		}
	}
	return n
}

func percentile95(all []*verdict) time.Duration {
	if len(all) == 0 {
		return 0
	}
	took := make([]time.Duration, len(all))
	for i, v := range all {
		took[i] = v.took
	}
	slices.Sort(took)
	return took[(len(took)*95+99)/100-1]
}

// calm reports whether an answer has nothing but reasons.
func (b *bench) calm(v *verdict, who string, a reply) bool {
	for _, c := range a.Causes {
		if c.Severity != opscore.Reason {
			return v.fail("%s sees a %s where there is none: %s: %s", who, c.Severity, c.Code, c.Text)
		}
	}
	return true
}

// judgeCause holds the first cause against the codes, if any are wanted.
func (w *want) judgeCause(v *verdict, a reply) bool {
	if len(w.codes) == 0 || len(a.Causes) > 0 && slices.Contains(w.codes, a.Causes[0].Code) {
		return true
	}
	for i, c := range a.Causes {
		if slices.Contains(w.codes, c.Code) {
			v.place = i + 1
			return v.fail("the first cause is %s; %s is number %d", a.Causes[0].Code, c.Code, i+1)
		}
	}
	return v.fail("%s is not among the causes", strings.Join(w.codes, " or "))
}

// judgeBoth looks for both causes of a pair.
func (w *want) judgeBoth(v *verdict, a reply) bool {
	for _, both := range w.codes {
		codes := strings.Split(both, "|")
		if !slices.ContainsFunc(a.Causes, func(c opscore.Cause) bool { return slices.Contains(codes, c.Code) }) {
			return v.fail("%s is not named", strings.Join(codes, " or "))
		}
	}
	return true
}

// judgeEvidence looks in the evidence of the causes that were wanted, whichever place they have, for what was injected.
func (w *want) judgeEvidence(v *verdict, a reply) bool {
	causes := w.among(a)
	good := len(causes) > 0
	for _, fact := range w.evidence {
		found := slices.ContainsFunc(causes, func(c opscore.Cause) bool {
			return slices.ContainsFunc(c.Evidence, func(e opscore.Evidence) bool { return hasWord(e.Fact+" "+e.Value, fact) })
		})
		if good && !found {
			good = v.fail("no evidence of %s has %q", strings.Join(w.codes, " or "), fact)
		}
	}
	if good && w.count != nil && !slices.ContainsFunc(causes, w.isCounted) {
		good = v.fail("no evidence of %s has the right number", strings.Join(w.codes, " or "))
	}
	return good
}

// isCounted reports whether a number in a cause's evidence may be right.
func (w *want) isCounted(c opscore.Cause) bool {
	return slices.ContainsFunc(c.Evidence, func(e opscore.Evidence) bool {
		n, err := strconv.ParseInt(e.Value, 10, 64)
		return err == nil && w.count(n)
	})
}

// among returns the causes that were wanted.
func (w *want) among(a reply) (causes []opscore.Cause) {
	for _, c := range a.Causes {
		if slices.Contains(w.codes, c.Code) {
			causes = append(causes, c)
		}
	}
	return causes
}

// hasWord reports whether text has the words with nothing beside them that could belong to them: process 12 is not process 123.
func hasWord(text, words string) bool {
	return regexp.MustCompile(`(^|[^0-9A-Za-z_])` + regexp.QuoteMeta(words) + `($|[^0-9A-Za-z_])`).MatchString(text)
}

// judgeRemedy does what the answer says is to be done, and holds it against what had to be.
func (w *want) judgeRemedy(v *verdict, s *scene, a reply) bool {
	causes := w.among(a)
	var commands, all []string
	for _, c := range causes {
		for _, r := range c.Remedy {
			all = append(all, r.String())
			if r.Command != "" {
				commands = append(commands, r.Command)
			}
		}
	}
	obeys := len(commands) > 0 && w.remedy != byOperator && w.remedy != notNeeded
	if obeys {
		err := s.obey(commands[0], w)
		if err != nil {
			_ = w.heal(s) // the score has it
			return v.fail("%q: %v", commands[0], err)
		}
		return true
	}
	if err := w.heal(s); err != nil {
		return v.fail("after the undo: %v", err)
	}
	switch {
	case len(causes) == 0:
		return false
	case w.remedy == byCommand:
		return v.fail("no command: %q", all)
	case w.remedy == notNeeded && len(all) > 0:
		return v.fail("a remedy where nothing is to be done: %q", all)
	case w.remedy == byOperator || w.remedy == either:
		if !slices.ContainsFunc(all, w.isNamed) {
			return v.fail("no remedy names %s: %q", strings.Join(w.names, " or "), all)
		}
	}
	return true
}

// isNamed reports whether a remedy names what it is to be done to.
func (w *want) isNamed(remedy string) bool {
	return slices.ContainsFunc(w.names, func(name string) bool { return strings.Contains(strings.ToLower(remedy), strings.ToLower(name)) })
}

// heal undoes the fault and waits for the end of the target.
func (w *want) heal(s *scene) error {
	if w.undo != nil {
		w.undo()
	}
	s.openGate()
	if w.lasts {
		return nil
	}
	return s.ended()
}

// obey executes a command as a person would paste it into a shell in which opscore and rabbitmqctl can be found: then the target ends, if it is to,
// and doctor sees the cause no more. A command that goes on until then, such as a worker, is stopped.
func (s *scene) obey(command string, w *want) error {
	cmd := exec.Command("sh", "-c", command) //nolint:noctx // it is ended with all that it has started
	cmd.Dir, cmd.Env = s.dir, s.environ()
	out := s.create("remedy")
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	over := make(chan struct{})
	var status error
	go func() {
		status = cmd.Wait()
		close(over)
	}()
	defer func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) // it may be over
		<-over
	}()
	if err := within(aRemedy, "an effect", func() bool { return closed(over) || !w.lasts && s.isOver() }); err != nil {
		return err
	}
	if closed(over) && status != nil {
		return fmt.Errorf("%w: %s", status, s.read("remedy"))
	}
	s.openGate()
	if w.lasts {
		return nil
	}
	if err := s.ended(); err != nil {
		return err
	}
	return within(aRemedy, "doctor to be content", func() bool { return len(w.among(s.ask("doctor"))) == 0 })
}

// aRemedy is how long it may take until a command shows an effect.
const aRemedy = 30 * time.Second
