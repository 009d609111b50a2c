package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/dramatiq"
)

// sendFlags are those of a message on the command line.
type sendFlags struct {
	queue   string
	kwargs  []byte
	delay   time.Duration
	options []messageOption
	id      opscore.ID // the message's; a new one if zero

	warnings []string // of the message
}

type messageOption struct {
	name  string
	value []byte
}

func (a *app) sendCommand() *cobra.Command {
	flags := sendFlags{queue: opscore.DefaultQueue, delay: -1}
	c := &cobra.Command{
		Use:   "send ACTOR [ARG…]",
		Short: "Send a message to an actor of Python's Dramatiq",
		Long: `Send puts one message into RabbitMQ, as Python's actor.send() does, and prints its id. It returns when the broker has certainly taken the message
into the queue, and fails after 5 s otherwise; the queue is made if it does not exist.

ARGs are the actor's positional arguments, each a JSON value. No task is stored: the message is all there is, until a worker takes it. In Go,
a dramatiq.Remote actor sends by way of a task.`,
		Example: `  opscore send add 1 2
  opscore send resize '"photo.jpg"' --kwargs '{"width":200}' --queue images
  opscore send report --delay 15m --option max_retries=3 --option on_success=notify`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("%s: an argument is missing; usage: %s", cmd.CommandPath(), cmd.UseLine())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := flags.message(args[0], args[1:])
			if err != nil {
				return err
			}
			for _, w := range flags.warnings {
				a.say("%s", w)
			}
			conf, err := a.loadConfig(cmd)
			if err != nil {
				return err
			}
			return a.sendMessage(cmd.Context(), conf, m)
		},
	}
	addSettingFlags(c.Flags(), "broker", "dramatiq.max_priority", "dramatiq.dead_letter_ttl")
	addFlag(c.Flags(), "queue", "send to `QUEUE` of Dramatiq (default default)", parseDramatiqQueue, func(q string) { flags.queue = q })
	addFlag(c.Flags(), "id", "give the message this `UUID`, as that of a task that was stored before, for a strict worker", parseID, func(id opscore.ID) { flags.id = id })
	addFlag(c.Flags(), "kwargs", "keyword arguments, a `JSON` object", parseKwargs, func(doc []byte) { flags.kwargs = doc })
	addFlag(c.Flags(), "delay", "run it no earlier than `DURATION` from now", parseDuration, func(d time.Duration) { flags.delay = d })
	addFlag(c.Flags(), "option", "an option `KEY=VALUE` of the message (repeatable); a value that is not JSON is text", parseOption,
		func(o messageOption) { flags.options = append(flags.options, o) })
	return c
}

// message makes the message that the command line describes.
func (f *sendFlags) message(actor string, args []string) (m dramatiq.Message, err error) {
	var list bytes.Buffer
	list.WriteByte('[')
	for i, arg := range args {
		if !json.Valid([]byte(arg)) {
			return m, usagef("argument %d: not valid JSON: %s", i+1, jsonHint([]byte(arg)))
		}
		if i > 0 {
			list.WriteByte(',')
		}
		list.WriteString(strings.TrimSpace(arg))
	}
	list.WriteByte(']')
	if m, err = dramatiq.NewMessage(actor, f.queue, list.Bytes(), f.kwargs); err != nil {
		return m, err
	}
	seen := map[string]bool{}
	for _, o := range f.options {
		switch {
		case seen[o.name]:
			return m, usagef("--option %s is given twice", o.name)
		case o.name == "delay" || o.name == "eta":
			return m, usagef("--option %s: a message that is sent has no such option; see --delay", o.name)
		}
		seen[o.name] = true
		if hint := didYouMean(o.name, dramatiq.OptionNames()); hint != "" && !slices.Contains(dramatiq.OptionNames(), o.name) {
			f.warnings = append(f.warnings, fmt.Sprintf("option %s means nothing to Dramatiq%s", o.name, hint))
		}
		if m, err = m.WithOption(o.name, o.value); err != nil {
			return m, usagef("--%s", err)
		}
	}
	if f.id != (opscore.ID{}) {
		m.ID = f.id.String()
	}
	if f.delay >= 0 {
		m = m.Delayed(f.delay)
	}
	if _, err := m.Encode(); err != nil {
		return m, usagef("%s", err)
	}
	return m, nil
}

func parseDramatiqQueue(text string) (string, error) { return text, dramatiq.ValidQueue(text) }

func parseKwargs(text string) ([]byte, error) {
	doc := []byte(strings.TrimSpace(text))
	if !json.Valid(doc) {
		return nil, errors.New("not valid JSON: " + jsonHint(doc))
	}
	if doc[0] != '{' {
		return nil, errors.New(`a JSON object is needed, such as {"width":200}`)
	}
	return doc, nil
}

func parseOption(text string) (messageOption, error) {
	name, value, ok := strings.Cut(text, "=")
	if !ok || name == "" {
		return messageOption{}, errors.New("KEY=VALUE is needed, such as max_retries=3")
	}
	if json.Valid([]byte(value)) {
		return messageOption{name, []byte(strings.TrimSpace(value))}, nil
	}
	return messageOption{name, encodeJSON(value)}, nil
}
