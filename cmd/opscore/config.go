package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/agnivade/levenshtein"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/postgres"
	"github.com/opscore/opscore/rabbitmq"
)

// config is what this invocation works with.
type config struct {
	file      string // absolute path of the file that was read; "" if there is none
	database  string // as it was given; "" means the default file
	schema    string // of a PostgreSQL database
	broker    string // "" for none
	classic   bool   // the broker's queues that are made
	queues    []string
	slots     int
	drain     time.Duration
	grace     time.Duration
	lease     time.Duration
	listen    string // "" for nowhere
	token     string
	logFormat string
	retention opscore.Retention
	orphans   int // that are kept
	actors    []commandActor
	dramatiq  dramatiqConfig
	values    []value // every setting with where it came from
}

// setting is one row of the table that declares every setting.
type setting struct {
	key   string // in opscore.yaml, where a dot leads into an object; the flag's name is the same with dashes
	env   string
	def   string // "" if the default is computed
	list  bool
	usage string
	// name is the flag's, where it is not made of the key; a toggle's flag needs no value.
	name   string
	toggle bool
	parse  func(c *config, raw []string) error
	// redact leaves of a value what cannot be secret; nil means redactDatabase.
	redact func(string) string
}

// shown is a value as people may see it.
func (s setting) shown(raw []string) string {
	text := strings.Join(raw, ",")
	if s.redact != nil {
		return s.redact(text)
	}
	return redactDatabase(text)
}

func (s setting) flag() string {
	if s.name != "" {
		return s.name
	}
	return strings.NewReplacer("_", "-", ".", "-").Replace(s.key)
}

func settings() []setting {
	return append([]setting{
		{
			key: "database", env: "OPSCORE_DATABASE_URL",
			usage: "keep the tasks in `FILE`, or at a postgres:// URL (default $XDG_STATE_HOME/opscore/opscore.db, else ~/.local/state/opscore/opscore.db)",
			parse: func(c *config, raw []string) error {
				if raw[0] == "" {
					return errors.New("it is empty; give a file path or a postgres:// URL")
				}
				c.database = raw[0]
				return nil
			},
		},
		{
			key: "schema", env: "OPSCORE_SCHEMA", def: postgres.DefaultSchema,
			usage: "keep the tables in the schema `NAME` of a PostgreSQL database (default opscore)",
			parse: func(c *config, raw []string) error {
				c.schema = raw[0]
				return postgres.ValidSchema(c.schema)
			},
		},
		{
			key: "broker", env: "OPSCORE_BROKER_URL", redact: rabbitmq.Redacted,
			usage: "dispatch through RabbitMQ at `URL`, amqp:// or amqps://, several of a cluster separated by commas (default: none)",
			parse: func(c *config, raw []string) error {
				if raw[0] == "" {
					return errors.New("it is empty; give an amqp:// URL")
				}
				c.broker = raw[0]
				return rabbitmq.ValidURL(c.broker)
			},
		},
		{
			key: "broker_queue_type", env: "OPSCORE_BROKER_QUEUE_TYPE", def: "quorum",
			usage: "make queues in RabbitMQ of type `quorum|classic` (default quorum)",
			parse: func(c *config, raw []string) error {
				if raw[0] != "quorum" && raw[0] != "classic" {
					return fmt.Errorf("accepted: quorum, classic%s", didYouMean(raw[0], []string{"quorum", "classic"}))
				}
				c.classic = raw[0] == "classic"
				return nil
			},
		},
		{
			key: "queues", env: "OPSCORE_QUEUES", list: true,
			usage: "listen to these `QUEUES`, separated by commas (default: the queues of the actors)",
			parse: func(c *config, raw []string) error {
				c.queues = raw
				if len(raw) == 0 {
					return errors.New("no queue is given: a worker listens to at least one")
				}
				for _, q := range raw {
					if err := opscore.ValidName("queue", q); err != nil {
						return err
					}
				}
				return nil
			},
		},
		{
			key: "slots", env: "OPSCORE_SLOTS", def: strconv.Itoa(opscore.DefaultSlots),
			usage: "run at most `N` tasks at a time (default 100)",
			parse: func(c *config, raw []string) (err error) {
				if c.slots, err = parseCount(raw[0]); err == nil && c.slots > opscore.MaxSlots {
					err = fmt.Errorf("must be at most %d", opscore.MaxSlots)
				}
				return err
			},
		},
		{
			key: "drain", env: "OPSCORE_DRAIN", def: opscore.DefaultDrain.String(),
			usage: "when stopping, let running tasks finish for `DURATION` before they are interrupted (default 20s)",
			parse: func(c *config, raw []string) (err error) {
				c.drain, err = parseLimit(raw[0])
				return err
			},
		},
		{
			key: "grace", env: "OPSCORE_GRACE", def: opscore.DefaultGrace.String(),
			usage: "give interrupted tasks `DURATION` to end (default 5s)",
			parse: func(c *config, raw []string) (err error) {
				c.grace, err = parseLimit(raw[0])
				return err
			},
		},
		{
			key: "lease", env: "OPSCORE_LEASE", def: opscore.LeaseFor.String(),
			usage: "let others have the tasks of this worker when it has not been heard for `DURATION` (default 30s)",
			parse: func(c *config, raw []string) (err error) {
				if c.lease, err = parsePeriod(raw[0]); err == nil && (c.lease < opscore.MinLease || c.lease > opscore.MaxLease) {
					err = fmt.Errorf("must be between %s and %s", goDuration(opscore.MinLease), goDuration(opscore.MaxLease))
				}
				return err
			},
		},
		{
			key: "orphans.keep", env: "OPSCORE_ORPHANS_KEEP", def: goDuration(opscore.OrphanFor),
			usage: "forget messages that belong to no task when they have not come for `DURATION`, or forever (default 720h)",
			parse: func(c *config, raw []string) (err error) {
				c.retention.Orphans, err = parseRetention(raw[0])
				return err
			},
		},
		{
			key: "orphans.max", env: "OPSCORE_ORPHANS_MAX", def: strconv.Itoa(opscore.MaxOrphans),
			usage: "keep at most `N` of them (default 10000)",
			parse: func(c *config, raw []string) (err error) {
				c.orphans, err = parseCount(raw[0])
				return err
			},
		},
		{
			key: "log_format", env: "OPSCORE_LOG_FORMAT", def: "text",
			usage: "log of workers as `text|json` (default text)",
			parse: func(c *config, raw []string) error {
				if c.logFormat = raw[0]; c.logFormat != "text" && c.logFormat != "json" {
					return fmt.Errorf("accepted: text, json%s", didYouMean(c.logFormat, []string{"text", "json"}))
				}
				return nil
			},
		},
	}, append(probeSettings(), dramatiqSettings()...)...)
}

// toggleValue is that of a flag which needs no value, shown as such.
type toggleValue struct{ pflag.Value }

// Type implements [pflag.Value].
func (toggleValue) Type() string { return "bool" }

func addSettingFlags(flags *pflag.FlagSet, keys ...string) {
	for _, s := range settings() {
		if slices.Contains(keys, s.key) {
			flags.String(s.flag(), "", s.usage)
			if s.toggle {
				f := flags.Lookup(s.flag())
				f.NoOptDefVal, f.Value = "true", toggleValue{f.Value}
			}
		}
	}
}

// addWorkerFlags adds those of the commands that run a worker.
func addWorkerFlags(flags *pflag.FlagSet) {
	addSettingFlags(flags, "broker", "broker_queue_type", "queues", "slots", "drain", "grace", "lease", "listen", "orphans.keep", "orphans.max",
		"dramatiq.queues", "dramatiq.strict", "dramatiq.send", "dramatiq.max_priority", "dramatiq.dead_letter_ttl")
}

// candidate is one place that gives a setting a value.
type candidate struct {
	raw    []string
	origin string
}

// value is a setting with the candidates for its value: the first one wins.
type value struct {
	setting
	candidates []candidate
}

// loadConfig gathers every setting: flags over environment over file over defaults.
func (a *app) loadConfig(cmd *cobra.Command) (*config, error) {
	if err := a.checkEnvironment(os.Environ()); err != nil {
		return nil, err
	}
	c := &config{}
	fromFile, err := a.readFile(cmd, c)
	if err != nil {
		return nil, err
	}
	for _, s := range settings() {
		v := value{setting: s}
		if f := cmd.Flags().Lookup(s.flag()); f != nil && f.Changed {
			v.candidates = append(v.candidates, candidate{s.split(f.Value.String()), "flag --" + s.flag()})
		}
		if text, ok := os.LookupEnv(s.env); ok {
			v.candidates = append(v.candidates, candidate{s.split(text), "env " + s.env})
		}
		if in, ok := fromFile[s.key]; ok {
			v.candidates = append(v.candidates, in)
		}
		if s.def != "" {
			v.candidates = append(v.candidates, candidate{[]string{s.def}, "default"})
		}
		if len(v.candidates) > 0 {
			first := v.candidates[0]
			if err := s.parse(c, first.raw); err != nil {
				return nil, usagef("%s (%s) %q: %s", s.key, first.origin, s.shown(first.raw), err)
			}
		}
		c.values = append(c.values, v)
	}
	return c, nil
}

// origin says where the value of a setting comes from.
func (c *config) origin(key string) string {
	i := slices.IndexFunc(c.values, func(v value) bool { return v.key == key })
	return c.values[i].candidates[0].origin
}

func (s setting) split(text string) []string {
	if !s.list {
		return []string{text}
	}
	if strings.TrimSpace(text) == "" {
		return nil
	}
	parts := strings.Split(text, ",")
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	return parts
}

// readFile reads the configuration file, if there is one, into c and returns the settings it gives.
func (a *app) readFile(cmd *cobra.Command, c *config) (map[string]candidate, error) {
	path, origin := "", ""
	if f := cmd.Flags().Lookup("config"); f.Changed {
		path, origin = f.Value.String(), "flag --config"
	} else if env, ok := os.LookupEnv("OPSCORE_CONFIG"); ok {
		path, origin = env, "env OPSCORE_CONFIG"
	}
	if origin != "" && path == "" {
		return nil, usagef("config (%s): it is empty; give a file path or a postgres:// URL", origin)
	}
	if path == "" {
		const standard = "opscore.yaml"
		if _, err := os.Lstat(standard); err != nil {
			if _, err := os.Lstat("opscore.yml"); err == nil {
				a.say(`opscore: warning: opscore.yml is not read; did you mean "opscore.yaml"?`)
			}
			return nil, nil
		}
		path = standard
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	c.file = abs
	return decodeFile(c, path)
}

// checkEnvironment refuses variables that nearly are ours, and names others that look like it.
func (a *app) checkEnvironment(environ []string) error {
	var known, similar, foreign []string
	for _, s := range settings() {
		known = append(known, s.env)
		similar = append(similar, "OPSCORE_"+strings.ToUpper(strings.ReplaceAll(s.key, ".", "_")))
	}
	known = append(known, "OPSCORE_CONFIG")
	ours := append(slices.Clone(known), envTaskID, envAttempt, envActor) // the latter are set for commands, by us
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		if upper := strings.ToUpper(name); upper != name && slices.Contains(known, upper) {
			return usagef("environment variable %s is not known; did you mean %q?", name, upper)
		}
		if slices.Contains(ours, name) {
			continue
		}
		for i, k := range known {
			if levenshtein.ComputeDistance(name, k) <= 2 || i < len(similar) && name == similar[i] {
				return usagef("environment variable %s is not known; did you mean %q?", name, k)
			}
		}
		if strings.HasPrefix(name, "OPSCORE_") {
			foreign = append(foreign, name)
		}
	}
	if len(foreign) > 0 {
		a.say("opscore: warning: not settings of opscore, ignored: %s", strings.Join(foreign, ", "))
	}
	return nil
}

func parseCount(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, errors.New("a whole number is needed")
	}
	if n < 1 {
		return 0, errors.New("must be at least 1")
	}
	return n, nil
}

// parseDuration reads a duration; negative ones are no use anywhere.
func parseDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, errors.New("a duration with its unit is needed, such as 90s, 15m or 1h30m")
	}
	if d < 0 {
		return 0, errors.New("must not be negative")
	}
	return d, nil
}

// parsePeriod reads a duration of which zero would mean nothing.
func parsePeriod(text string) (time.Duration, error) {
	d, err := parseDuration(text)
	if err == nil && d == 0 {
		err = errors.New("must be longer than 0")
	}
	return d, err
}

// parseRetention reads how long something is kept.
func parseRetention(text string) (time.Duration, error) {
	if text == "forever" {
		return opscore.Forever, nil
	}
	d, err := parsePeriod(text)
	if err != nil {
		err = fmt.Errorf("%w; or forever", err)
	}
	return d, err
}

// parseLimit reads a duration that may be zero, for fields in which zero means the default.
func parseLimit(text string) (time.Duration, error) {
	d, err := parseDuration(text)
	return cmp.Or(d, time.Nanosecond), err
}
