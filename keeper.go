package opscore

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Keeper runs the chores that keep a store's promises. Any process may run one, and any number may run at once.
type Keeper struct {
	Store     Store
	Retention Retention
	Publisher Publisher    // of tickets, if there is a broker; the store must be an [Outbox]
	Log       *slog.Logger // nil means [slog.Default]
	OnEvent   func(Event)
}

// chore is a row of the keeper's table.
type chore struct {
	name  string
	every time.Duration
	do    func(context.Context) error
}

func (k *Keeper) chores() []chore {
	return []chore{
		{"rescue", HeartbeatEvery, k.rescue}, // take the tasks of dead workers back
		{"expire", HeartbeatEvery, k.expire}, // fail what can no longer start in time
		{"prune", time.Minute, k.prune},      // remove what is older than its retention
	}
}

// Run does the chores until ctx ends, and returns once none is under way. A chore that fails is logged and tried
// again at its next time.
func (k *Keeper) Run(ctx context.Context) error {
	if err := k.Retention.validate(); err != nil {
		return fmt.Errorf("start keeper: %w", err)
	}
	log := cmp.Or(k.Log, slog.Default())
	var wg sync.WaitGroup
	if k.Publisher != nil {
		outbox, ok := k.Store.(Outbox)
		if !ok {
			return fmt.Errorf("start keeper: %w", invalid("a broker needs PostgreSQL: this store has no tickets"))
		}
		wg.Go(func() { k.newRelay(outbox).run(ctx) })
	}
	for _, c := range k.chores() {
		wg.Go(func() {
			tick := time.NewTicker(c.every)
			defer tick.Stop()
			for {
				if err := c.do(ctx); err != nil && ctx.Err() == nil {
					log.Error("chore failed", "chore", c.name, "error", err)
				}
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
			}
		})
	}
	wg.Wait()
	return nil
}

func (k *Keeper) rescue(ctx context.Context) error {
	return k.repeat(ctx, EventRescued, "rescued a task of a dead worker", k.Store.Rescue)
}

func (k *Keeper) expire(ctx context.Context) error {
	return k.repeat(ctx, EventExpired, "task expired", k.Store.Expire)
}

func (k *Keeper) repeat(ctx context.Context, kind EventKind, msg string, chore func(context.Context) ([]Task, error)) error {
	for {
		tasks, err := chore(ctx)
		if err != nil || len(tasks) == 0 {
			return err
		}
		if tasks, err = k.discard(ctx, tasks); err != nil {
			return err
		}
		for i := range tasks {
			t := &tasks[i]
			emit(k.OnEvent, taskEvent(kind, t))
			cmp.Or(k.Log, slog.Default()).Warn(msg, "task", t.ID, "actor", t.Actor, "state", t.State, "lost", t.Lost)
		}
	}
}

func (k *Keeper) prune(ctx context.Context) error {
	for {
		n, err := k.Store.Prune(ctx, k.Retention)
		if err != nil || n == 0 {
			return err
		}
		emit(k.OnEvent, Event{Kind: EventPruned, Count: n})
	}
}
