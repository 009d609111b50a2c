package main

import (
	"context"
	"errors"
	"os/signal"
	"slices"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/opscore/opscore"
)

const workerLong = `Worker runs tasks until it is stopped: those of the actors that opscore.yaml declares. It also does the chores
of the database: it takes back the tasks of dead workers, fails expired ones and removes old ones. Go programs with
actors of their own run an opscore.Worker instead; both kinds work on one database side by side.

With --broker, RabbitMQ brings the tasks of a postgres:// database to the workers. Without it, or while it cannot be reached, workers look for
tasks in the database themselves. A RabbitMQ that refuses the user, the virtual host or the certificate at the start is an error.

With --dramatiq, it takes over messages of Python's Dramatiq from the same RabbitMQ: each becomes a task of its actor, with its options. With --strict
a message must belong to a task that was stored before. What becomes no task is an orphan: see opscore orphan.

SIGTERM, Ctrl-C or the end of its terminal make it stop taking tasks, let the running ones finish (--drain), interrupt what is left
(--grace) and exit; another signal, a second or more after the first, skips the wait. "opscore worker stop" does the same from any machine. What did not finish goes
back to the queue and costs no attempt. Exit status 70 means that something ignored its interruption.

It is ready when its store answers and it is subscribed to its queues, or pulls from them: it logs "worker ready", writes the ready
file, tells systemd (Type=notify), and answers 200 at /readyz of --listen. "opscore worker wait" waits for it. What keeps it from
being ready is logged every 10 seconds; "opscore worker list" and "opscore worker show" tell it as well.

With --die-with-parent, it stops as on SIGTERM when the process that started it is gone. That is not the default, because a worker that
was started by nohup, or by a script that ends, is meant to go on. The parent must be the process whose end counts: start opscore itself, not a
wrapper around it. A parent that gives its id, as in --die-with-parent=$$, may even end before the worker has begun to look.

How it is started does not matter otherwise: closed, full or broken files, signals that are ignored, a missing PATH or a strange umask are made up for.

The log goes to stderr, or to --log-file, and never holds up a task: what cannot be written is dropped, and counted in the log.

The ready file has what "worker list --json" says of the worker, and the database as --database takes it, so that others can find it: the
absolute path of a file; of a postgres:// URL neither the password nor the parameters. The schema is there if it is not the default one.
It replaces an empty file and what another worker left; anything else of that name is an error at the start, and stays as it is. At its end the
worker removes it, unless another worker has written it since.`

// workOptions are the flags of worker and dev that are no settings.
type workOptions struct {
	readyFile string
	ephemeral bool
	parent    lifeline
}

func (o *workOptions) addReadyFile(flags *pflag.FlagSet) {
	addFlag(flags, "ready-file", "write `FILE`, a JSON object about the worker and its database, when it is ready; removed at its end",
		parseReadyFile, func(path string) { o.readyFile = path })
}

func (a *app) workerCommand() *cobra.Command {
	var o workOptions
	c := &cobra.Command{
		Use:   "worker",
		Short: "Run the tasks of the actors in opscore.yaml",
		Long:  workerLong,
		Example: `  opscore worker
  opscore worker --queues images,mail --slots 8 --ready-file /run/opscore/ready`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := strayParent(cmd, args); err != nil || len(args) == 0 {
				return err
			}
			return unknownCommand(cmd, args[0])
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.work(cmd, o, func(*config, opscore.Handlers) {})
		},
	}
	addWorkerFlags(c.Flags())
	o.addReadyFile(c.Flags())
	o.parent.add(c.Flags())
	c.AddCommand(a.workerListCommand(), a.workerShowCommand(), a.workerStopCommand(), a.workerWaitCommand())
	return c
}

const devLong = `Dev is a worker for trying things out: it knows the demo actors echo, sleep and flaky besides those of
opscore.yaml, and listens to all their queues. Submit tasks to it from another terminal; Ctrl-C stops it.

With --ephemeral it is a fixture for tests in any language. It keeps its tasks in a new SQLite file, in a directory of its own
below $TMPDIR or /tmp, and removes that directory when it stops; only a kill -9 or a crash leaves it behind. The database of
OPSCORE_DATABASE_URL and of opscore.yaml is not touched. Start it, wait for the ready file, and give the "database" in that file
to what you test, as --database or OPSCORE_DATABASE_URL.

A test runner that is killed stops nothing. With --die-with-parent the worker looks for itself: see opscore worker --help.`

func (a *app) devCommand() *cobra.Command {
	var o workOptions
	c := &cobra.Command{
		Use:   "dev",
		Short: "Run a worker with demo actors, to try things out",
		Long:  devLong,
		Example: `  opscore dev
  opscore submit --wait sleep '{"seconds":3}'     (in another terminal)
  opscore dev --ephemeral --die-with-parent --ready-file ready.json`,
		Args: cobra.MatchAll(strayParent, arguments(0, 0)),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.work(cmd, o, func(conf *config, h opscore.Handlers) {
				registerDemos(h, nil)
				conf.queues = slices.Compact(slices.Sorted(slices.Values(append(conf.queues, h.Queues()...))))
			})
		},
	}
	addWorkerFlags(c.Flags())
	o.addReadyFile(c.Flags())
	o.parent.add(c.Flags())
	c.Flags().BoolVar(&o.ephemeral, "ephemeral", false, "keep the tasks in a new SQLite file that is removed at the end")
	return c
}

// work runs a worker and a keeper until a signal stops them.
func (a *app) work(cmd *cobra.Command, o workOptions, extend func(*config, opscore.Handlers)) (err error) {
	orphaned, err := o.parent.watch(cmd.Context())
	if err != nil {
		return err
	}
	ctx, hurry, release := interruptible(cmd.Context(), orphaned)
	defer release()
	conf, err := a.loadConfig(cmd)
	if err != nil {
		return err
	}
	if err := conf.checkDramatiq(); err != nil {
		return err
	}
	conf.reapOrphans()
	handlers, err := conf.handlers(extend)
	if err != nil {
		return err
	}
	ready := &readyFileWriter{path: o.readyFile, schema: conf.schema}
	if err := ready.check(); err != nil {
		return err
	}
	sealFiles()
	signal.Ignore(syscall.SIGTTOU) // a terminal stops a process of the background that writes to it, if it is set so
	log, out, err := a.openLog(conf)
	if err != nil {
		return err
	}
	defer func() {
		conf.logEnd(log, err)
		out.close()
	}()
	if o.ephemeral {
		remove, made := a.makeEphemeral(cmd, conf, log)
		if made != nil {
			return made
		}
		defer func() { err = errors.Join(err, remove()) }()
	}
	conf.announce(log)
	if err := ready.clear(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ready.remove()) }()
	tell := newHerald(conf.token, log, out, ready)
	watching, watched := context.WithCancel(context.WithoutCancel(ctx))
	var watch sync.WaitGroup
	watch.Go(func() { tell.watch(watching, conf.listen) })
	defer watch.Wait()
	defer watched()
	s, err := a.open(ctx, cmd, conf, created)
	if ctx.Err() != nil && err != nil {
		return nil // stopped while its database did not answer
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.store.Close()) }()
	heard := *a
	heard.stderr, s.app = out, &heard // nothing that it says may wait for a reader
	ready.database = s.place.String()
	err = s.employ(ctx, hurry, handlers, tell)
	if ctx.Err() != nil && errors.As(err, new(interruptedError)) {
		return nil // stopped before it was ready
	}
	return err
}

// handlers returns those of the file's actors, extended.
func (c *config) handlers(extend func(*config, opscore.Handlers)) (opscore.Handlers, error) {
	handlers := opscore.Handlers{}
	for _, actor := range c.actors {
		if err := actor.register(handlers, nil); err != nil {
			return nil, err
		}
	}
	extend(c, handlers)
	if len(handlers) == 0 {
		return nil, usagef("no actor to work for: declare one in opscore.yaml, such as `actors: {hello: {command: [echo, hello]}}`; " +
			"opscore dev has demo actors; Go programs run their own opscore.Worker")
	}
	return handlers, nil
}

// employ runs worker and keeper as one: the keeper ends after the worker, whose tasks it may have to look after.
func (s *session) employ(ctx context.Context, hurry <-chan struct{}, h opscore.Handlers, tell *herald) error {
	log := tell.log
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	dispatch, err := s.dispatch(ctx, h, log)
	if err != nil {
		return err
	}
	defer dispatch.close()
	var failed error // to tell that it is ready
	worker := &opscore.Worker{
		Store: s.store, Sources: dispatch.sources, Handlers: h, Queues: s.workQueues(h), Slots: affordable(s.conf.slots, log), Drain: s.conf.drain, Grace: s.conf.grace,
		Hurry: hurry, Log: log, MaxResult: maxResult, Adapter: s.adapter(), Lease: s.conf.lease, Origins: s.conf.origins(), OnEvent: tell.observe, OnReport: tell.out.tell,
		OnReady: func(opscore.WorkerInfo) {
			if failed = tell.announce(); failed != nil {
				cancel(failed)
				return
			}
			if s.cmd.Name() == "dev" {
				log.Info("try, in another terminal: opscore submit --wait" + s.again() + ` sleep '{"seconds":3}'`)
			}
		},
	}
	keeping, stopKeeper := context.WithCancel(context.WithoutCancel(ctx))
	kept := make(chan error, 1)
	go func() {
		kept <- (&opscore.Keeper{Store: s.store, Retention: s.conf.retention, Publisher: dispatch.publisher, Log: log}).Run(keeping)
	}()
	tell.worker.Store(worker)
	stop := context.AfterFunc(ctx, func() {
		if interrupted, ok := errors.AsType[interruptedError](context.Cause(ctx)); ok {
			log.Info("stopping", "why", interrupted.text, "drain", s.conf.drain, "hint", "another signal, after a second, skips the wait")
		}
	})
	defer stop()
	err = worker.Run(ctx)
	stopKeeper()
	return errors.Join(err, failed, <-kept)
}
