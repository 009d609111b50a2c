// Package doctor asks all that know something about a deployment, side by side and within a budget.
package doctor

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/opscore/opscore"
)

// Gatherer reads facts from one source, within ctx. known is what the store has told; it may be empty. It returns facts with only its own part
// set; with an error too, what it could read so far.
type Gatherer interface {
	Gather(ctx context.Context, known *opscore.Facts) (opscore.Facts, error)
}

// Source is somebody to ask.
type Source struct {
	Name string // by which the answer goes: store, postgres, rabbitmq, management, host
	At   string // its address, without secrets; "" if it has none, or says so itself
	Gatherer
}

// The budget. An answer that comes later is not waited for.
const (
	Each  = time.Second
	InAll = 3 * time.Second
)

// parting is how long a source that was told to stop has to say what it knows so far.
const parting = 100 * time.Millisecond

// Store asks the store that the client works on.
func Store(c *opscore.Client) Source { return Source{opscore.SourceStore, "", client{c}} }

type client struct{ *opscore.Client }

// Gather implements [Gatherer].
func (c client) Gather(ctx context.Context, known *opscore.Facts) (opscore.Facts, error) {
	return c.Facts(ctx, known.ID)
}

// Ask reads all facts about a task, or, for the zero id, about the whole deployment. The store comes first, since the others want to know where to
// look; if it does not answer in time they are asked without. That a source does not answer is a fact as well.
func Ask(ctx context.Context, id opscore.ID, store Source, others ...Source) opscore.Facts {
	ctx, cancel := context.WithTimeout(ctx, InAll)
	defer cancel()
	facts := opscore.Facts{ID: id, At: time.Now().UTC()}
	told := store.ask(ctx, facts)
	known := told
	known.ID = id
	if known.At.IsZero() {
		known.At = facts.At
	}
	answers := make([]opscore.Facts, len(others))
	var asking sync.WaitGroup
	for i, s := range others {
		asking.Go(func() { answers[i] = s.ask(ctx, known) })
	}
	asking.Wait()
	for _, a := range answers {
		merge(&known, a)
	}
	return known
}

// ask returns what the source told, always with itself among the sources.
func (s Source) ask(ctx context.Context, known opscore.Facts) opscore.Facts {
	type answer struct {
		facts opscore.Facts
		err   error
	}
	ctx, cancel := context.WithTimeoutCause(ctx, Each, fmt.Errorf("no answer within %s", Each))
	defer cancel()
	began := time.Now()
	answers := make(chan answer, 1) // nobody may be there to take it
	go func() {
		f, err := s.Gather(ctx, &known)
		answers <- answer{f, err}
	}()
	var a answer
	select {
	case a = <-answers:
	case <-ctx.Done():
		a.err = context.Cause(ctx)
		late := time.NewTimer(parting)
		defer late.Stop()
		select {
		case a = <-answers:
		case <-late.C:
		}
	}
	return s.signed(a.facts, a.err, ctx.Err() != nil, time.Since(began))
}

// signed adds the source to those of an answer, unless it has done so itself.
func (s Source) signed(f opscore.Facts, err error, late bool, took time.Duration) opscore.Facts {
	asked := opscore.Asked{Source: s.Name, At: s.At, Took: opscore.Duration(took.Round(100 * time.Microsecond))}
	if err != nil {
		asked.Err, asked.Late = err.Error(), late
	}
	for i := range f.Sources {
		if own := &f.Sources[i]; own.Source == s.Name {
			if own.At == "" {
				own.At = s.At
			}
			own.Err, own.Late = cmp.Or(own.Err, asked.Err), asked.Late
			return f
		}
	}
	f.Sources = append(f.Sources, asked)
	return f
}

// merge adds what somebody else than the store told.
func merge(into *opscore.Facts, f opscore.Facts) {
	if f.Database != nil {
		into.Database = f.Database
	}
	if f.Broker != nil {
		into.Broker = f.Broker
	}
	if f.Host != nil {
		into.Host = f.Host
	}
	into.Sources = append(into.Sources, f.Sources...)
}
