package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/dramatiq"
	"github.com/opscore/opscore/rabbitmq"
)

// dramatiqConfig is what this invocation has to do with Dramatiq.
type dramatiqConfig struct {
	queues  []string            // to be taken over
	allowed map[string][]string // actors of a queue; a queue that is not in it allows all
	strict  bool
	send    bool // also without queues
	declare dramatiq.Queues
	actors  map[string]string // the queues of Python's
}

// dramatiqSettings are those of the table of settings.
func dramatiqSettings() []setting {
	return []setting{
		{
			key: "dramatiq.queues", name: "dramatiq", env: "OPSCORE_DRAMATIQ_QUEUES", list: true,
			usage: "take over the messages of these `QUEUES` of Python's Dramatiq, separated by commas",
			parse: func(c *config, raw []string) error {
				c.dramatiq.queues = raw
				if len(raw) == 0 {
					return errors.New("no queue is given")
				}
				for _, q := range raw {
					if err := dramatiq.ValidQueue(q); err != nil {
						return err
					}
				}
				return nil
			},
		},
		{
			key: "dramatiq.strict", name: "strict", env: "OPSCORE_DRAMATIQ_STRICT", def: "false", toggle: true,
			usage: "refuse messages of Dramatiq for which no task was stored before: they are orphans",
			parse: func(c *config, raw []string) (err error) {
				c.dramatiq.strict, err = parseToggle(raw[0])
				return err
			},
		},
		{
			key: "dramatiq.send", env: "OPSCORE_DRAMATIQ_SEND", def: "false", toggle: true,
			usage: "send the messages that tasks ask for, and, without --dramatiq, take none over, whatever opscore.yaml says",
			parse: func(c *config, raw []string) (err error) {
				c.dramatiq.send, err = parseToggle(raw[0])
				return err
			},
		},
		{
			key: "dramatiq.max_priority", env: "OPSCORE_DRAMATIQ_MAX_PRIORITY", def: "0",
			usage: "make queues of Dramatiq with `N` priorities, as RabbitmqBroker(max_priority=N) does (default none)",
			parse: func(c *config, raw []string) (err error) {
				if c.dramatiq.declare.MaxPriority, err = strconv.Atoi(raw[0]); err != nil || c.dramatiq.declare.MaxPriority < 0 || c.dramatiq.declare.MaxPriority > 255 {
					err = errors.New("a whole number between 1 and 255 is needed, or 0 for none")
				}
				return err
			},
		},
		{
			key: "dramatiq.dead_letter_ttl", env: "OPSCORE_DRAMATIQ_DEAD_LETTER_TTL", def: goDuration(dramatiq.DeadFor),
			usage: "make queues of Dramatiq's dead letters that keep them for `DURATION`, as its variable dramatiq_dead_message_ttl does (default 168h)",
			parse: func(c *config, raw []string) (err error) {
				if c.dramatiq.declare.DeadFor, err = parsePeriod(raw[0]); err == nil && c.dramatiq.declare.DeadFor < time.Millisecond {
					err = errors.New("must be at least 1ms")
				}
				return err
			},
		},
	}
}

func parseToggle(text string) (bool, error) {
	on, err := strconv.ParseBool(text)
	if err != nil {
		return false, errors.New("accepted: true, false")
	}
	return on, nil
}

// dramatiqFields are the keys of the object dramatiq that are no settings of one value.
func (d *decoder) dramatiqFields(c *config, given map[string]candidate) fields {
	c.dramatiq.allowed, c.dramatiq.actors = map[string][]string{}, map[string]string{}
	queues := settings()[slices.IndexFunc(settings(), func(s setting) bool { return s.key == "dramatiq.queues" })]
	return fields{
		"queues": func(n *yaml.Node) (err error) {
			if resolve(n).Kind != yaml.MappingNode {
				given[queues.key], err = d.setting(queues, n)
				return err
			}
			names := []string{}
			err = d.entries(n, queues.key, func(queue string, _, v *yaml.Node) error {
				names = append(names, queue)
				return d.allowed(v, queue, c.dramatiq.allowed)
			})
			if err == nil {
				err = queues.parse(&config{}, names)
			}
			given[queues.key] = candidate{raw: names, origin: "file " + d.path}
			if err != nil && !errors.As(err, new(usageError)) {
				err = d.errorf(n, "%s: %s", queues.key, err)
			}
			return err
		},
		"actors": func(n *yaml.Node) error {
			return d.entries(n, "dramatiq.actors", func(actor string, _, v *yaml.Node) error {
				queue, err := d.scalar(v, "dramatiq.actors."+actor)
				if err == nil {
					err = dramatiq.ValidQueue(queue)
				}
				if err != nil && !errors.As(err, new(usageError)) {
					err = d.errorf(v, "dramatiq.actors.%s: %s", actor, err)
				}
				c.dramatiq.actors[actor] = queue
				return err
			})
		},
	}
}

// allowed reads the actors whose messages are taken from a queue; nothing means all.
func (d *decoder) allowed(n *yaml.Node, queue string, into map[string][]string) error {
	if n = resolve(n); n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return nil
	}
	actors, err := d.list(n, "dramatiq.queues."+queue)
	if err != nil {
		return err
	}
	if len(actors) == 0 {
		return d.errorf(n, "dramatiq.queues.%s: the list is empty; leave it out to take the messages of all actors", queue)
	}
	for _, a := range actors {
		if err := opscore.ValidName("actor", a); err != nil {
			return d.errorf(n, "dramatiq.queues.%s: %s", queue, err)
		}
	}
	into[queue] = actors
	return nil
}

// checkDramatiq refuses what goes together in no way.
func (c *config) checkDramatiq() error {
	flag := func(key string) bool { return strings.HasPrefix(c.origin(key), "flag ") }
	if c.dramatiq.send && flag("dramatiq.send") && !flag("dramatiq.queues") {
		c.dramatiq.queues, c.dramatiq.allowed, c.dramatiq.strict = nil, nil, false // as on the way back to Python, whatever the file says
	}
	switch {
	case c.dramatiq.strict && len(c.dramatiq.queues) == 0:
		return usagef("dramatiq.strict (%s): no queue of Dramatiq is given; see --dramatiq", c.origin("dramatiq.strict"))
	case len(c.dramatiq.queues) > 0 && c.broker == "":
		return usagef("dramatiq.queues (%s): no broker is given%s, from which their messages could come; see --broker", c.origin("dramatiq.queues"), c.noBroker)
	case c.dramatiq.send && c.broker == "":
		return usagef("dramatiq.send (%s): no broker is given%s, to which messages could be sent; see --broker", c.origin("dramatiq.send"), c.noBroker)
	}
	for queue := range c.dramatiq.allowed {
		if !slices.Contains(c.dramatiq.queues, queue) && len(c.dramatiq.queues) > 0 {
			return usagef("dramatiq.queues (%s): %s is taken over, but %s lists the actors of queue %s", c.origin("dramatiq.queues"),
				strings.Join(c.dramatiq.queues, ", "), c.file, queue)
		}
	}
	return nil
}

// speaksDramatiq reports whether the worker has anything to do with Dramatiq.
func (c *config) speaksDramatiq() bool { return c.dramatiq.send || len(c.dramatiq.queues) > 0 }

// takeOver adds the handler that sends messages, and the sources that take over queues of Dramatiq.
func (s *session) takeOver(b *rabbitmq.Broker, h opscore.Handlers, log *slog.Logger) ([]opscore.Source, error) {
	store, ok := s.store.(dramatiq.Store)
	if !ok {
		return nil, fmt.Errorf("dramatiq.queues: %s cannot take messages over", s.place)
	}
	sender, err := dramatiq.NewSender(b.Session, s.conf.dramatiq.declare)
	if err != nil {
		return nil, err
	}
	dramatiq.HandleSend(h, sender)
	if len(s.conf.dramatiq.queues) == 0 {
		return nil, nil
	}
	queues := map[string][]string{}
	for _, q := range s.conf.dramatiq.queues {
		queues[q] = s.conf.dramatiq.allowed[q]
	}
	source, err := dramatiq.NewSource(b.Session, store, dramatiq.Options{
		Queues: queues, Strict: s.conf.dramatiq.strict, Declare: s.conf.dramatiq.declare, Handlers: h, Log: log,
	})
	return []opscore.Source{source}, err
}

// workQueues are those that the worker listens to: with Dramatiq's, for their retries, and that of what is sent.
func (s *session) workQueues(h opscore.Handlers) []string {
	if !s.conf.speaksDramatiq() {
		return s.conf.queues
	}
	queues := s.conf.queues
	if len(queues) == 0 {
		queues = h.Queues()
	}
	queues = append(append(slices.Clone(queues), s.conf.dramatiq.queues...), dramatiq.SendActor)
	slices.Sort(queues)
	return slices.Compact(queues)
}

// adapter lets the worker run tasks that were messages, whoever took them over.
func (s *session) adapter() opscore.Adapter {
	return &dramatiq.Adapter{Client: s.client, Actors: s.conf.dramatiq.actors}
}

// sendMessage sends one message and says which.
func (a *app) sendMessage(ctx context.Context, conf *config, m dramatiq.Message) error {
	if conf.broker == "" {
		return usagef("no broker is given%s: set --broker, OPSCORE_BROKER_URL or broker in opscore.yaml to the RabbitMQ that Python's workers use", conf.noBroker)
	}
	if conf.fellBack("broker") {
		a.say("broker %s (%s)", rabbitmq.Redacted(conf.broker), conf.origin("broker"))
	}
	if err := dramatiq.Send(ctx, conf.broker, conf.dramatiq.declare, m); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]string{"message_id": m.ID, "queue_name": m.Queue})
	}
	return a.printf("%s", m.ID)
}
