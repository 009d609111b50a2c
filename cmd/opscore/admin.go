package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/postgres"
	"github.com/opscore/opscore/sqlite"
)

func (a *app) migrateCommand() *cobra.Command {
	return a.group("migrate", "Show and update the schema of the database",
		`Migrate is about the schema of the database. Commands update it by themselves when they open an older SQLite
file, and never in PostgreSQL, where other versions may be at work; migrate up does only that, migrate status only looks, and
migrate sql prints what migrate up would execute.`,
		a.migrateUpCommand(), a.migrateStatusCommand(), a.migrateSQLCommand())
}

// migration is a schema's state as it is printed.
type migration struct {
	Database string `json:"database"`
	Schema   string `json:"schema,omitempty"` // of a PostgreSQL database
	Exists   bool   `json:"exists"`
	Current  int64  `json:"current"` // of the database; 0 if it has none yet
	Target   int64  `json:"target"`  // of this binary
}

// String names the schema that is meant.
func (m migration) String() string {
	if m.Schema == "" || m.Schema == postgres.DefaultSchema {
		return m.Database
	}
	return m.Database + ", schema " + m.Schema
}

// newer is the error of a schema that this binary does not know.
func (m migration) newer() error {
	if m.Current <= m.Target {
		return nil
	}
	return fmt.Errorf("%s has schema version %d, but this binary knows only up to %d: use a newer opscore", m, m.Current, m.Target)
}

func (a *app) migrateUpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "up",
		Short: "Bring the database to this version's schema",
		Long: `Up creates the database if it is missing and brings its schema to the version of this binary. Any number of
processes may do so at once. A database from a newer version is left alone.`,
		Example: `  opscore migrate up --database /var/lib/opscore/opscore.db`,
		Args:    arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			place, err := a.place(cmd)
			if err != nil {
				return err
			}
			before, err := place.schema(cmd.Context())
			if err != nil {
				return err
			}
			if err := place.migrate(cmd.Context()); err != nil {
				return err
			}
			after, err := place.schema(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(after)
			}
			if before.Current == after.Current {
				return a.printf("%s: schema version %d, up to date", after, after.Current)
			}
			return a.printf("%s: schema version %d, was %d", after, after.Current, before.Current)
		},
	}
}

func (a *app) migrateStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the schema version of the database",
		Long: `Status compares the schema version of the database with that of this binary. It changes nothing, and fails if the
database is from a newer version.`,
		Example: `  opscore migrate status`,
		Args:    arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			place, err := a.place(cmd)
			if err != nil {
				return err
			}
			m, err := place.schema(cmd.Context())
			if err != nil {
				return err
			}
			switch newer := m.newer(); {
			case a.json:
				return errors.Join(a.printJSON(m), newer)
			case newer != nil:
				return newer
			case !m.Exists && m.Schema != "":
				return a.printf("%s has no schema %s yet; create it, with version %d: opscore migrate up%s", m.Database, m.Schema, m.Target, a.again())
			case !m.Exists:
				return a.printf("%s does not exist yet; this binary would create it with schema version %d", m, m.Target)
			case m.Current < m.Target:
				return a.printf("%s: schema version %d, this binary has %d; update it: opscore migrate up%s", m, m.Current, m.Target, a.again())
			}
			return a.printf("%s: schema version %d, up to date", m, m.Current)
		},
	}
}

func (a *app) migrateSQLCommand() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "sql",
		Short: "Print the SQL that migrate up would execute",
		Long: `Sql prints the statements that migrate up would execute, for somebody else to review or to execute by hand: one
transaction that also notes the new version, so that this binary accepts the database afterwards. It reads the version that the
database has and prints what that lacks; nothing if it is up to date. With --all it prints everything, for a database that
has nothing yet, and connects to none: the URL may be as short as postgres://.`,
		Example: `  opscore migrate sql >up.sql && psql -v ON_ERROR_STOP=1 -f up.sql
  opscore migrate sql --all --database postgres:// --schema opscore`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			place, err := a.place(cmd)
			if err != nil {
				return err
			}
			m := migration{Database: place.String()}
			if !all {
				m, err = place.schema(cmd.Context())
				if err != nil {
					return fmt.Errorf("%w; to print everything without connecting: opscore migrate sql --all%s", err, a.again())
				}
				if err := m.newer(); err != nil {
					return err
				}
			}
			text, err := place.migrationSQL(m.Current)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]any{"database": m.Database, "current": m.Current, "sql": text})
			}
			if text == "" {
				a.say("%s: schema version %d, up to date: nothing is left to execute", m, m.Current)
			}
			return a.print(text)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "print everything and connect to no database")
	return c
}

func (a *app) place(cmd *cobra.Command) (database, error) {
	conf, err := a.loadConfig(cmd)
	if err != nil {
		return nil, err
	}
	return a.locate(cmd, conf)
}

func (a *app) configCommand() *cobra.Command {
	show := &cobra.Command{
		Use:   "show",
		Short: "Show every setting, where it comes from and what it overrides",
		Long: `Show prints each setting with its value, its origin and the values it overrides. Flags win over the environment, the environment over
the file of --env-file, that over opscore.yaml (in the current directory, or --config FILE, or OPSCORE_CONFIG), and that over the defaults.
DATABASE_URL and RABBITMQ_URL are fallbacks: they count only if nothing of that gives a database or a broker, the first one only with a postgres:// URL,
the second one only together with such a database. What has no effect is said as well.`,
		Example: `  opscore config show
  OPSCORE_SLOTS=8 opscore config show --json`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, err := a.loadConfig(cmd)
			if err != nil {
				return err
			}
			for _, r := range conf.remarks {
				a.say("opscore: %s", r)
			}
			return a.showConfig(conf)
		},
	}
	addWorkerFlags(show.Flags())
	return a.group("config", "Show the configuration", `Config shows what opscore works with here and now, and why.`, show)
}

// shownValue is one place's value of a setting.
type shownValue struct {
	Value  string `json:"value"`
	Origin string `json:"origin"`
}

// shownSetting is a setting as it is printed.
type shownSetting struct {
	Key string `json:"key"`
	shownValue
	Overrides []shownValue `json:"overrides,omitempty"`
}

// shownActor is an actor of opscore.yaml as it is printed.
type shownActor struct {
	Name         string            `json:"name"`
	Declared     string            `json:"declared"`
	Command      []string          `json:"command"`
	Dir          string            `json:"dir"`
	Env          []string          `json:"env,omitempty"`
	Queue        string            `json:"queue"`
	Priority     int               `json:"priority"`
	After        opscore.Duration  `json:"after,omitzero"`
	ExpiresAfter opscore.Duration  `json:"expires_after,omitzero"`
	Timeout      opscore.Duration  `json:"timeout"`
	MaxAttempts  int               `json:"max_attempts"`
	Labels       map[string]string `json:"labels,omitempty"`
	Retry        shownRetry        `json:"retry"`
}

type shownRetry struct {
	Base   opscore.Duration `json:"base"`
	Factor float64          `json:"factor"`
	Jitter float64          `json:"jitter"`
	Max    opscore.Duration `json:"max"`
}

func (a *app) showConfig(c *config) error {
	shown, keep := c.shownSettings(), c.shownRetention()
	if a.json {
		return a.printJSON(map[string]any{"file": c.file, "settings": shown, "remarks": append([]string{}, c.remarks...), "retention": keep, "actors": c.shownActors()})
	}
	rows := make([][]string, 0, len(shown)+len(keep))
	for _, s := range append(shown, keep...) {
		var over []string
		for _, o := range s.Overrides {
			over = append(over, o.Value+" ("+o.Origin+")")
		}
		rows = append(rows, []string{s.Key, s.Value, s.Origin, strings.Join(over, ", ")})
	}
	if err := a.table([]string{"SETTING", "VALUE", "ORIGIN", "OVERRIDES"}, rows); err != nil || len(c.actors) == 0 {
		return err
	}
	rows = nil
	for _, s := range c.shownActors() {
		words := make([]string, len(s.Command))
		for i, w := range s.Command {
			words[i] = shellQuote(w)
		}
		rows = append(rows, []string{s.Name, s.Queue, goDuration(time.Duration(s.Timeout)), fmt.Sprint(s.MaxAttempts), strings.Join(words, " "), s.Declared})
	}
	if err := a.print("\n"); err != nil {
		return err
	}
	return a.table([]string{"ACTOR", "QUEUE", "TIMEOUT", "ATTEMPTS", "COMMAND", "DECLARED"}, rows)
}

func (c *config) shownSettings() []shownSetting {
	var files []shownValue
	for _, f := range c.files {
		files = append(files, shownValue{f.raw[0], f.origin})
	}
	all := []shownSetting{newShownSetting("config", append(files, shownValue{"none", "default"}))}
	for _, v := range c.values {
		var values []shownValue
		for _, cand := range v.candidates {
			values = append(values, shownValue{v.shown(cand.raw), cand.origin})
		}
		if text, err := v.shownDefault(); v.def == "" && (err == nil || len(values) == 0) {
			values = append(values, shownValue{text, "default"})
		}
		all = append(all, newShownSetting(v.key, values))
	}
	return append(all, c.shownDramatiq()...)
}

// newShownSetting makes one of its values, of which there is at least one: the first one counts.
func newShownSetting(key string, values []shownValue) shownSetting {
	return shownSetting{Key: key, shownValue: values[0], Overrides: values[1:]}
}

// shownDefault says what holds if nothing is given for a setting whose default is no value.
func (s setting) shownDefault() (text string, err error) {
	switch s.key {
	case "database":
		if text, err = defaultDatabase(); err != nil {
			text = "unknown: " + err.Error()
		}
		return text, err
	case "queues":
		return "those of the actors", nil
	case "log_file":
		return "stderr", nil
	}
	return "none", nil
}

// shownDramatiq are the keys of the object dramatiq that are no settings of one value.
func (c *config) shownDramatiq() (all []shownSetting) {
	origin := "file " + c.file
	for _, q := range slices.Sorted(maps.Keys(c.dramatiq.allowed)) {
		all = append(all, shownSetting{Key: "dramatiq.queues." + q, shownValue: shownValue{strings.Join(c.dramatiq.allowed[q], ","), origin}})
	}
	for _, a := range slices.Sorted(maps.Keys(c.dramatiq.actors)) {
		all = append(all, shownSetting{Key: "dramatiq.actors." + a, shownValue: shownValue{c.dramatiq.actors[a], origin}})
	}
	return all
}

func (c *config) shownRetention() (all []shownSetting) {
	for _, state := range []opscore.State{opscore.Completed, opscore.Failed, opscore.Cancelled} {
		usual := shownValue{period((opscore.Retention{}).For("", state)), "default"}
		all = append(all, c.shownKeep("retention.default."+string(state), c.retention.Default, state, usual))
	}
	for _, q := range slices.Sorted(maps.Keys(c.retention.Queues)) {
		for i, state := range []opscore.State{opscore.Completed, opscore.Failed, opscore.Cancelled} {
			usual := shownValue{all[i].Value, all[i].Key}
			s := c.shownKeep("retention.queues."+q+"."+string(state), c.retention.Queues[q], state, usual)
			if len(s.Overrides) > 0 {
				all = append(all, s)
			}
		}
	}
	return all
}

// shownKeep is how long the tasks in a state are kept, if not as long as usual.
func (c *config) shownKeep(key string, own opscore.Keep, state opscore.State, usual shownValue) shownSetting {
	given := map[opscore.State]time.Duration{opscore.Completed: own.Completed, opscore.Failed: own.Failed, opscore.Cancelled: own.Cancelled}[state]
	if given == 0 {
		return shownSetting{Key: key, shownValue: usual}
	}
	return shownSetting{Key: key, shownValue: shownValue{period(given), "file " + c.file}, Overrides: []shownValue{usual}}
}

func period(d time.Duration) string {
	if d == math.MaxInt64 {
		return "forever"
	}
	return goDuration(d)
}

// shownActors completes the actors with the defaults of what they leave out.
func (c *config) shownActors() []shownActor {
	all := []shownActor{}
	for _, a := range c.actors {
		all = append(all, shownActor{
			Name: a.name, Declared: a.where, Command: a.argv, Dir: a.dir, Env: a.env, Queue: cmp.Or(a.queue, opscore.DefaultQueue),
			Priority: a.priority, After: opscore.Duration(a.after), ExpiresAfter: opscore.Duration(a.expiresAfter),
			Timeout:     opscore.Duration(cmp.Or(a.timeout, opscore.DefaultTimeout)),
			MaxAttempts: cmp.Or(a.maxAttempts, opscore.DefaultMaxAttempts), Labels: a.labels,
			Retry: shownRetry{
				opscore.Duration(cmp.Or(a.retry.Base, time.Second)), cmp.Or(a.retry.Factor, 2), jitter(a.retry.Jitter),
				opscore.Duration(cmp.Or(a.retry.Max, time.Hour)),
			},
		})
	}
	return all
}

func jitter(j float64) float64 {
	switch j {
	case 0:
		return 0.2
	case math.SmallestNonzeroFloat64:
		return 0
	}
	return j
}

// build says what this binary is.
type build struct {
	Version string `json:"version"`
	Commit  string `json:"commit"`
	Go      string `json:"go"`
	Schema  int64  `json:"schema"` // of the SQLite store
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Show the version of this binary",
		Long:    `Version prints the version, the commit, the Go version and the schema version of this binary.`,
		Example: `  opscore version --json`,
		Args:    arguments(0, 0),
		RunE: func(*cobra.Command, []string) error {
			st, err := sqlite.Status("") // there is no such file: only the version that this binary has
			if err != nil {
				return err
			}
			b := build{Version: "unknown", Commit: "unknown", Go: runtime.Version(), Schema: st.Target}
			if info, ok := debug.ReadBuildInfo(); ok {
				b.fill(info)
			}
			if a.json {
				return a.printJSON(b)
			}
			return a.printf("opscore %s, commit %s, %s, schema version %d", b.Version, b.Commit, b.Go, b.Schema)
		},
	}
}

func (b *build) fill(info *debug.BuildInfo) {
	b.Version = info.Main.Version
	changed := ""
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.modified":
			if s.Value == "true" {
				changed = " with changes"
			}
		}
	}
	b.Commit += changed
}
