package opscore

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"
)

// Standings is what is known of where tasks stand. It costs about the same however many tasks there are: counts end at a limit.
type Standings interface {
	// Stand looks at the pending tasks of queues, of all if none are given, and at what runs. Of a pending task it says how many are
	// ahead of it: due and more urgent, so that a worker that may take both claims them first.
	Stand(ctx context.Context, queues []string, of *Task) (Stand, error)
}

// Stand is where tasks stand at one moment.
type Stand struct {
	At     time.Time // by the store's clock
	Made   time.Time // when the database was made for tasks; zero if that is not known
	Lines  []Line    // by queue, the most urgent first
	Loads  []Load
	Ticket *OutTicket // the latest that names the task and is out; nil if none is, or the store has no tickets
}

// Line is the pending tasks of one queue, actor and priority, and how fast they come and go.
type Line struct {
	Queue      string    `json:"queue"`
	Actor      string    `json:"actor"`
	Priority   int       `json:"priority"`
	Due        Tally     `json:"due"`                 // that can start now
	Oldest     time.Time `json:"oldest_due,omitzero"` // since when the first of them can
	Scheduled  Tally     `json:"scheduled"`
	Ahead      Tally     `json:"ahead"`            // of the due ones, those that are ahead of the task in question
	Arriving   float64   `json:"arriving_per_s"`   // in the last minute, or since the last RatedAtMost came
	Completing float64   `json:"completing_per_s"` // so too
	// Of those that came, when the first and the last did.
	FirstCame time.Time `json:"first_came,omitzero"`
	LastCame  time.Time `json:"last_came,omitzero"`
}

// Limits of what is looked at.
const (
	CountedAtMost = 10_000            // tasks, in all lines together
	CountedLeast  = 100               // tasks, in a line
	RatedAtMost   = 2_000             // tasks that came, and as many that went: where it is more, the latest
	RatesOver     = time.Minute       // what comes and goes
	RunsLookedAt  = 2 * CountedAtMost // of all workers
	RunsShown     = 3                 // of a worker
)

// CountsPerLine is how many tasks of each of so many lines are counted.
func CountsPerLine(lines int) int { return max(CountedAtMost/max(lines, 1), CountedLeast) }

// Tally is a count that may have ended at a limit.
type Tally struct {
	N    int  `json:"tasks"`
	More bool `json:"more,omitempty"` // there are more than N
}

// TallyOf is the tally of a count up to limit+1.
func TallyOf(n, limit int) Tally { return Tally{min(n, limit), n > limit} }

// String shows the count as people read it.
func (t Tally) String() string {
	text := fmt.Sprint(t.N)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	if t.More {
		return "more than " + text
	}
	return text
}

// IsZero reports whether there is nothing.
func (t Tally) IsZero() bool { return t == Tally{} }

func (t Tally) plus(u Tally) Tally { return Tally{t.N + u.N, t.More || u.More} }

// Load is what one worker runs.
type Load struct {
	Worker  ID         `json:"worker"`
	Running Tally      `json:"running"`
	Runs    []RunState `json:"runs"` // those that have to run alone, then those that run longest; at most RunsShown
}

// RunState is a running task.
type RunState struct {
	Task      ID        `json:"task"`
	Queue     string    `json:"queue"`
	Actor     string    `json:"actor"`
	StartedAt time.Time `json:"started_at"`
	Lost      int       `json:"lost,omitempty"`
	Alone     bool      `json:"alone,omitempty"`
}

// OutTicket is a ticket that is out.
type OutTicket struct {
	ID ID        `json:"id"`
	At time.Time `json:"at"`
	In int       `json:"out_in_queue"` // tickets of the queue that are out
}

// Standing is where the tasks of one queue stand.
type Standing struct {
	Queue  string `json:"queue"`
	Paused *Pause `json:"paused,omitempty"`
	Lines  []Line `json:"lines,omitempty"`
}

// standings sorts what a store says by queue: the first is that of the task, if there is one.
func standings(lines []Line, paused []Pause, asked []string) (all []Standing) {
	of := func(queue string) *Standing {
		for i := range all {
			if all[i].Queue == queue {
				return &all[i]
			}
		}
		all = append(all, Standing{Queue: queue})
		return &all[len(all)-1]
	}
	for _, q := range asked {
		of(q)
	}
	for _, l := range lines {
		s := of(l.Queue)
		s.Lines = append(s.Lines, l)
	}
	for _, p := range paused {
		if len(asked) == 0 || slices.Contains(asked, p.Queue) {
			of(p.Queue).Paused = &p
		}
	}
	if len(asked) == 0 {
		slices.SortFunc(all, func(a, b Standing) int { return strings.Compare(a.Queue, b.Queue) })
	}
	return all
}

// SortedLines collects lines in the order of queues, and within a queue the most urgent first.
func SortedLines(lines iter.Seq[*Line]) []Line {
	all := []Line{}
	for l := range lines {
		all = append(all, *l)
	}
	slices.SortFunc(all, func(a, b Line) int {
		return cmp.Or(strings.Compare(a.Queue, b.Queue), b.Priority-a.Priority, strings.Compare(a.Actor, b.Actor))
	})
	return all
}
