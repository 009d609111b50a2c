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

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/postgres"
	"github.com/opscore/opscore/rabbitmq"
)

// config is what this invocation works with.
type config struct {
	file       string      // absolute path of the file that was read; "" if there is none
	files      []candidate // for the file that is read: the first one wins
	database   string      // as it was given; "" means the default file
	schema     string      // of a PostgreSQL database
	broker     string      // "" for none
	classic    bool        // the broker's queues that are made
	management string      // URL of the broker's management API; "" for none
	queues     []string
	slots      int
	drain      time.Duration
	grace      time.Duration
	groups     groups
	lease      time.Duration
	listen     string // "" for nowhere
	token      string
	logFormat  string
	logFile    string // "" for stderr
	verbose    bool
	retention  opscore.Retention
	orphans    int // that are kept
	actors     []commandActor
	dramatiq   dramatiqConfig
	values     []value  // every setting with where it came from
	warnings   []string // said by every command
	remarks    []string // said by a worker at its start, and by config show: what has no effect
	noBroker   string   // why the fallback is not used
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
	short  string // a letter
	toggle bool
	parse  func(c *config, raw []string) error
	// fallback is a variable that many programs use; it counts if nothing else gives a value, and unfit has nothing against it.
	fallback string
	unfit    func(c *config, text string) (why string)
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
	return slices.Concat(placeSettings(), workSettings(), logSettings(), probeSettings(), dramatiqSettings())
}

// placeSettings say where the tasks are.
func placeSettings() []setting {
	return []setting{
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
			fallback: "DATABASE_URL",
			unfit: func(_ *config, text string) string {
				if !isPostgres(text) {
					return "it is no postgres:// URL; to use another database set OPSCORE_DATABASE_URL"
				}
				return ""
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
			fallback: "RABBITMQ_URL",
			unfit: func(c *config, text string) string {
				if !isPostgres(c.database) {
					return brokerNeeds
				}
				if err := rabbitmq.ValidURL(text); err != nil {
					return err.Error()
				}
				return ""
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
			key: "broker_management_url", env: "OPSCORE_BROKER_MANAGEMENT_URL", redact: rabbitmq.RedactedManagement,
			usage: "have explain and doctor ask RabbitMQ's management API at `URL` as well, http:// or https:// (default: none)",
			parse: func(c *config, raw []string) error {
				if raw[0] == "" {
					return errors.New("it is empty; give an http:// URL")
				}
				c.management = raw[0]
				return rabbitmq.ValidManagementURL(c.management, c.broker) // which was read before
			},
		},
	}
}

// workSettings say what a worker does.
func workSettings() []setting {
	return []setting{
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
	}
}

// toggleValue is that of a flag which needs no value, shown as such.
type toggleValue struct{ pflag.Value }

// Type implements [pflag.Value].
func (toggleValue) Type() string { return "bool" }

func addSettingFlags(flags *pflag.FlagSet, keys ...string) {
	for _, s := range settings() {
		if slices.Contains(keys, s.key) {
			flags.StringP(s.flag(), s.short, "", s.usage)
			if s.toggle {
				f := flags.Lookup(s.flag())
				f.NoOptDefVal, f.Value = "true", toggleValue{f.Value}
			}
		}
	}
}

// addWorkerFlags adds those of the commands that run a worker.
func addWorkerFlags(flags *pflag.FlagSet) {
	addSettingFlags(flags, "broker", "broker_queue_type", "queues", "slots", "drain", "grace", "lease", "listen", "orphans.keep", "orphans.max", "log_file", "verbose",
		"dramatiq.queues", "dramatiq.strict", "dramatiq.send", "dramatiq.max_priority", "dramatiq.dead_letter_ttl")
}

const brokerNeeds = "only tasks in a postgres:// database can be dispatched through RabbitMQ"

// candidate is one place that gives a setting a value.
type candidate struct {
	raw      []string
	origin   string
	fallback bool
}

// value is a setting with the candidates for its value: the first one wins.
type value struct {
	setting
	candidates []candidate
}

// loadConfig gathers every setting, and says what is odd.
func (a *app) loadConfig(cmd *cobra.Command) (*config, error) {
	c := &config{}
	err := c.gather(cmd)
	for _, w := range c.warnings {
		a.say("opscore: warning: %s", w)
	}
	return c, err
}

// gather takes flags over the environment over --env-file over opscore.yaml over fallbacks over defaults.
func (c *config) gather(cmd *cobra.Command) error {
	env, err := readEnvironment(cmd)
	if err != nil {
		return err
	}
	foreign, err := env.check()
	c.warn(foreign)
	if err != nil {
		return err
	}
	c.warn(env.unreadFile())
	fromFile, err := c.readFile(cmd, env)
	if err != nil {
		return err
	}
	for _, s := range settings() {
		v := value{s, c.candidates(s, cmd, env, fromFile)}
		c.values = append(c.values, v)
		if len(v.candidates) == 0 {
			continue
		}
		first := v.candidates[0]
		if err := s.parse(c, first.raw); err != nil {
			return usagef("%s (%s) %q: %s", s.key, first.origin, s.shown(first.raw), err)
		}
	}
	if names := env.testSwitches(); len(names) > 0 {
		c.remarks = append(c.remarks, "no effect on opscore: "+strings.Join(names, ", "))
	}
	return nil
}

func (c *config) warn(text string) {
	if text != "" {
		c.warnings = append(c.warnings, text)
	}
}

// candidates returns what gives the setting a value, the one that counts first.
func (c *config) candidates(s setting, cmd *cobra.Command, env environment, fromFile map[string]candidate) (all []candidate) {
	if f := cmd.Flags().Lookup(s.flag()); f != nil && f.Changed {
		all = append(all, candidate{raw: s.split(f.Value.String()), origin: "flag --" + s.flag()})
	}
	for _, v := range env.all(s.env) {
		all = append(all, candidate{raw: s.split(v.text), origin: v.origin})
	}
	if in, ok := fromFile[s.key]; ok {
		all = append(all, in)
	}
	all = append(all, c.fallbacks(s, env, len(all) > 0)...)
	if s.def != "" {
		all = append(all, candidate{raw: []string{s.def}, origin: "default"})
	}
	return all
}

// fallbacks returns those for the setting that could count. Of one that cannot it remarks why, unless it is overridden anyway.
func (c *config) fallbacks(s setting, env environment, overridden bool) (fit []candidate) {
	if s.fallback == "" {
		return nil
	}
	for _, v := range env.all(s.fallback) {
		if v.text == "" {
			continue
		}
		if why := s.unfit(c, v.text); why == "" {
			origin := v.origin
			if !strings.HasSuffix(origin, s.fallback) {
				origin += " " + s.fallback
			}
			fit = append(fit, candidate{[]string{v.text}, origin + " (fallback)", true})
		} else if !overridden {
			c.pass(s, why)
		}
	}
	return fit
}

// pass remarks that the fallback for a setting is not used.
func (c *config) pass(s setting, why string) {
	text := s.fallback + " is not used: " + why
	c.remarks = append(c.remarks, text)
	if s.key == "broker" {
		c.noBroker = " (" + text + ")"
	}
}

// fallbacks returns the variables that are not ours and may count all the same.
func fallbacks() (names []string) {
	for _, s := range settings() {
		if s.fallback != "" {
			names = append(names, s.fallback)
		}
	}
	return names
}

// value returns a setting with where its value comes from.
func (c *config) value(key string) *value {
	return &c.values[slices.IndexFunc(c.values, func(v value) bool { return v.key == key })]
}

// origin says where the value of a setting comes from.
func (c *config) origin(key string) string {
	if v := c.value(key); len(v.candidates) > 0 {
		return v.candidates[0].origin
	}
	return "default"
}

// origins says for each kind of endpoint where it comes from that it is used.
func (c *config) origins() map[string]string {
	database, broker := c.origin("database"), c.origin("broker")
	return map[string]string{"sqlite": database, "postgres": database, "rabbitmq": broker}
}

// fellBack reports whether the value of a setting is one that was meant for many programs.
func (c *config) fellBack(key string) bool {
	v := c.value(key)
	return len(v.candidates) > 0 && v.candidates[0].fallback
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

const envConfig = "OPSCORE_CONFIG"

// readFile reads the configuration file, if there is one, and returns the settings it gives.
func (c *config) readFile(cmd *cobra.Command, env environment) (map[string]candidate, error) {
	if f := cmd.Flags().Lookup("config"); f.Changed {
		c.files = append(c.files, candidate{raw: []string{f.Value.String()}, origin: "flag --config"})
	}
	for _, v := range env.all(envConfig) {
		c.files = append(c.files, candidate{raw: []string{v.text}, origin: v.origin})
	}
	const standard = "opscore.yaml"
	if _, err := os.Lstat(standard); err == nil {
		c.files = append(c.files, candidate{raw: []string{standard}, origin: "current directory"})
	}
	if len(c.files) == 0 {
		if _, err := os.Lstat("opscore.yml"); err == nil {
			c.warn(`opscore.yml is not read; did you mean "opscore.yaml"?`)
		}
		return nil, nil
	}
	path := c.files[0].raw[0]
	if path == "" {
		return nil, usagef("config (%s): it is empty; give a file path", c.files[0].origin)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	c.file = abs
	return decodeFile(c, path)
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
