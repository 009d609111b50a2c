package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/doctor"
	"github.com/opscore/opscore/dramatiq"
	"github.com/opscore/opscore/rabbitmq"
)

// addBrokerFlags adds those of the commands that look at the broker.
func addBrokerFlags(flags *pflag.FlagSet) {
	addSettingFlags(flags, "broker", "broker_queue_type", "broker_management_url")
}

// askBroker returns the source of facts about the broker, if there is one. It is asked about a queue first, if that is not "". open opens the store.
func (c *config) askBroker(queue string, open func(context.Context) (store, error)) []doctor.Source {
	if c.broker == "" || !isPostgres(c.database) {
		return nil
	}
	q := rabbitmq.Inquiry{
		URLs: c.broker, Management: c.management, Options: rabbitmq.Options{Classic: c.classic}, Queues: c.queues, First: queue,
		Adopted: map[string][]rabbitmq.Declaration{}, Aside: dramatiq.Aside,
		Deployment: func(ctx context.Context) (opscore.Deployment, error) {
			s, err := open(ctx)
			if err != nil {
				return opscore.Deployment{}, err
			}
			tickets, ok := s.(rabbitmq.Store)
			if !ok {
				return opscore.Deployment{}, nil
			}
			return tickets.Deployment(ctx)
		},
	}
	for _, queue := range c.dramatiq.queues {
		q.Adopted[queue] = c.dramatiq.declare.Declarations(queue)
	}
	source := doctor.Source{Name: rabbitmq.SourceBroker, At: rabbitmq.Redacted(c.broker), Gatherer: q}
	if c.fellBack("broker") && !c.speaksDramatiq() {
		source.Gatherer = ifUsed{q}
	}
	return []doctor.Source{source}
}

// ifUsed asks a broker that a variable of other programs names: opscore need not use it, and then it is nobody's fault.
type ifUsed struct{ doctor.Gatherer }

// Gather implements [doctor.Gatherer].
func (g ifUsed) Gather(ctx context.Context, known *opscore.Facts) (opscore.Facts, error) {
	uses := func(e opscore.Endpoint) bool { return e.Kind == "rabbitmq" }
	if slices.ContainsFunc(known.Workers, func(w opscore.WorkerInfo) bool { return w.Live && slices.ContainsFunc(w.Endpoints, uses) }) {
		return g.Gatherer.Gather(ctx, known)
	}
	return opscore.Facts{}, nil
}

func (a *app) queueEnsureCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "ensure QUEUE…",
		Short: "Make what a queue needs in RabbitMQ",
		Long: `Ensure makes the queues of RabbitMQ that queues of tasks need, where they do not exist: the one for tickets, and for queues that are taken over from
Dramatiq (--dramatiq) theirs. Workers do that as well when they start. One that exists in another way is left as it is, and is an error: see opscore queue migrate.`,
		Example: `  opscore queue ensure mail images`,
		Args:    arguments(1, math.MaxInt),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.reshape(cmd, args, func(ctx context.Context, s *session, b *rabbitmq.Broker, queue string) ([]rabbitmq.Changed, error) {
				return s.ensureQueue(ctx, b, queue)
			})
		},
	}
	addQueueFlags(c.Flags())
	return c
}

func (a *app) queueMigrateCommand() *cobra.Command {
	var stopped bool
	c := &cobra.Command{
		Use:   "migrate QUEUE",
		Short: "Make a queue of RabbitMQ anew with the arguments that it should have",
		Long: `Migrate makes the queue of RabbitMQ that holds the tickets of a queue of tasks anew, if its arguments are not those that opscore would give it, such as
another type (--broker-queue-type) or x-max-priority. Workers may go on: they subscribe anew by themselves, and tasks whose tickets are gone get new ones.
Whatever is in it besides tickets of this database is kept as orphans.

In the queues of Dramatiq's that are taken over (--dramatiq) the messages are all there is. They are moved to another queue and back, each confirmed in one before it leaves the other; what
is sent meanwhile would be lost. So that needs --stopped, which says that nobody uses them: neither Python's senders and workers, nor workers of opscore that take them
over. If it is interrupted, do it again: up to 20 messages may be there twice then, and none is lost.`,
		Example: `  opscore queue migrate mail
  opscore queue migrate mail --dramatiq mail --dramatiq-max-priority 10 --stopped`,
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.reshape(cmd, args, func(ctx context.Context, s *session, b *rabbitmq.Broker, queue string) ([]rabbitmq.Changed, error) {
				return s.migrateQueue(ctx, b, queue, stopped)
			})
		},
	}
	addQueueFlags(c.Flags())
	c.Flags().BoolVar(&stopped, "stopped", false, "nobody uses the queues of Dramatiq's: senders and workers are stopped")
	return c
}

func addQueueFlags(flags *pflag.FlagSet) {
	addSettingFlags(flags, "broker", "broker_queue_type", "dramatiq.queues", "dramatiq.max_priority", "dramatiq.dead_letter_ttl")
}

// reshaped is what became of the broker's queues for a queue of tasks.
type reshaped struct {
	Queue string `json:"queue"`
	rabbitmq.Changed
}

// reshape changes the broker's queues for queues of tasks, and prints what became of them, also if something failed.
func (a *app) reshape(cmd *cobra.Command, queues []string, do func(context.Context, *session, *rabbitmq.Broker, string) ([]rabbitmq.Changed, error)) error {
	for _, q := range queues {
		if err := opscore.ValidName("queue", q); err != nil {
			return err
		}
	}
	return a.with(cmd, existing, func(ctx context.Context, s *session) error {
		tickets, ok := s.store.(rabbitmq.Store)
		if s.conf.broker == "" || !ok {
			return usagef("no broker is given%s: set --broker, OPSCORE_BROKER_URL or broker in opscore.yaml, for tasks in a postgres:// database", s.conf.noBroker)
		}
		b, err := rabbitmq.Open(ctx, s.conf.broker, tickets, rabbitmq.Options{Classic: s.conf.classic, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			return err
		}
		defer b.Close()
		rows := []reshaped{}
		for _, queue := range queues {
			if err = s.hintUnknown(ctx, queue); err != nil {
				break
			}
			var all []rabbitmq.Changed
			all, err = do(ctx, s, b, queue)
			for _, c := range all {
				rows = append(rows, reshaped{queue, c})
			}
			if err != nil {
				break
			}
		}
		return errors.Join(s.printReshaped(rows), err)
	})
}

func (s *session) ensureQueue(ctx context.Context, b *rabbitmq.Broker, queue string) (all []rabbitmq.Changed, err error) {
	c, err := b.Ensure(ctx, queue)
	if err != nil {
		return nil, err
	}
	all = append(all, c)
	if slices.Contains(s.conf.dramatiq.queues, queue) {
		theirs, err := dramatiq.Ensure(ctx, b.Session, s.conf.dramatiq.declare, queue)
		if all = append(all, theirs...); err != nil {
			return all, err
		}
	}
	for _, c := range all {
		err = errors.Join(err, s.amiss(c, queue))
	}
	return all, err
}

// amiss says what a queue of the broker is not as it should be.
func (a *app) amiss(c rabbitmq.Changed, queue string) (err error) {
	if c.Differs != "" {
		err = fmt.Errorf("queue %s exists in another way (%s); see %s", c.Name, c.Differs, a.command("opscore queue migrate "+queue))
	}
	if c.Aside > 0 {
		err = errors.Join(err, fmt.Errorf("%s of queue %s are in queue %s since a migration was interrupted, and nobody takes them there; once nobody uses these queues: %s",
			plural(c.Aside, "message"), c.Name, dramatiq.Aside(c.Name), a.command("opscore queue migrate --stopped "+queue)))
	}
	return err
}

func (s *session) migrateQueue(ctx context.Context, b *rabbitmq.Broker, queue string, stopped bool) ([]rabbitmq.Changed, error) {
	c, err := b.Migrate(ctx, queue)
	if err != nil || !slices.Contains(s.conf.dramatiq.queues, queue) {
		return []rabbitmq.Changed{c}, err
	}
	theirs, err := dramatiq.Migrate(ctx, b.Session, s.conf.dramatiq.declare, queue, stopped)
	if errors.Is(err, dramatiq.ErrInUse) {
		err = fmt.Errorf("%w; then add --stopped", err)
	}
	return append([]rabbitmq.Changed{c}, theirs...), err
}

func (s *session) printReshaped(rows []reshaped) error {
	if s.json {
		return s.printJSON(rows)
	}
	for _, r := range rows {
		text := "is as it should be"
		switch {
		case r.Differs != "":
			continue // the error says more
		case r.Was != "":
			text = "was made anew: " + r.Was
		case r.Made:
			text = "was made"
		case r.Aside > 0:
			continue // as above
		}
		if r.Moved > 0 {
			text += "; " + plural(r.Moved, "message") + " moved"
		}
		if r.Dropped > 0 {
			text += "; " + plural(r.Dropped, "ticket") + " dropped, whose tasks get new ones"
		}
		if r.Kept > 0 {
			text += "; " + plural(r.Kept, "orphan") + " kept"
		}
		if err := s.printf("queue %s: %s %s", r.Queue, r.Name, text); err != nil {
			return err
		}
	}
	return nil
}
