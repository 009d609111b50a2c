package main

import (
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/postgres"
)

// given is what says where the deployment of a command is, for the commands that it prints. They are for the shell that it was started from: what the environment
// and opscore.yaml say there is said to them as well, and only flags have to be repeated.
type given struct {
	cmd  *cobra.Command
	conf *config
}

// byFlag reports whether a flag says what a setting is.
func (g *given) byFlag(key string) bool { return strings.HasPrefix(g.conf.origin(key), "flag ") }

// place returns the flags that say where the tasks are, but for the schema. Paths are absolute: another terminal may be elsewhere.
func (g *given) place() (flags string) {
	if c := g.conf; len(c.files) > 0 && c.files[0].origin == "flag --config" {
		flags += " --config " + shellQuote(c.file)
	}
	if f := g.cmd.Flags().Lookup("env-file"); f.Changed {
		path, err := filepath.Abs(f.Value.String())
		if err != nil {
			path = f.Value.String()
		}
		flags += " --env-file " + shellQuote(path)
	}
	if db, _, err := g.conf.place(); err == nil && g.byFlag("database") {
		flags += " --database " + shellQuote(db.flag())
	}
	return flags
}

func (g *given) schema() string {
	if g.byFlag("schema") {
		return " --schema " + g.conf.schema
	}
	return ""
}

// ofSome are the settings of the deployment whose flags not every command has.
var ofSome = []string{
	"broker", "broker_queue_type", "broker_management_url", "dramatiq.queues", "dramatiq.max_priority", "dramatiq.dead_letter_ttl",
}

// more returns the flags of ofSome that a command accepts.
func (g *given) more(accepting *cobra.Command) (flags string) {
	for _, key := range ofSome {
		v := g.conf.value(key)
		if !g.byFlag(key) || accepting.Flags().Lookup(v.flag()) == nil {
			continue
		}
		text := strings.Join(v.candidates[0].raw, ",")
		switch key {
		case "broker":
			text = withoutPasswords(text)
		case "broker_management_url":
			text = v.redact(text)
		}
		flags += " --" + v.flag() + " " + shellQuote(text)
	}
	return flags
}

// again returns the flags with which any other command works on the same database.
func (a *app) again() string {
	if a.given == nil {
		return ""
	}
	return a.given.place() + a.given.schema()
}

// command completes a command of ours, so that it works on the same deployment.
func (a *app) command(text string) string {
	_, rest, _ := strings.Cut(text, " ")
	if a.given == nil || rest == "" {
		return text
	}
	done, cmd := "opscore"+a.again(), a.given.cmd.Root()
	for rest != "" {
		name, after, _ := strings.Cut(rest, " ")
		i := slices.IndexFunc(cmd.Commands(), func(c *cobra.Command) bool { return c.Name() == name })
		if i < 0 {
			break
		}
		done, cmd, rest = done+" "+name, cmd.Commands()[i], after
	}
	return strings.TrimSuffix(done+a.given.more(cmd)+" "+rest, " ")
}

// completed is an error of a store, which knows the command that helps, and sometimes the schema, but not the flags that named the database.
func (a *app) completed(text string) string {
	if a.given == nil {
		return text
	}
	const up = "`opscore migrate up"
	return strings.NewReplacer(up+"`", up+a.again()+"`", up, up+a.given.place()).Replace(text)
}

// anyPsql begins what is to be done with psql in the database, wherever that is.
const anyPsql = `psql "${OPSCORE_DATABASE_URL:?}" `

// shown is a remedy for the deployment that this command works on.
func (a *app) shown(r opscore.Remedy) string {
	if strings.HasPrefix(r.Command, "opscore ") {
		return a.command(r.Command)
	}
	if rest, psql := strings.CutPrefix(r.Command, anyPsql); psql && a.given != nil {
		if connection := a.given.connection(); connection != "" {
			return "psql " + connection + " " + rest
		}
	}
	return r.String()
}

// connection is what psql needs to get to the database: the variable that names it, which may hold a password, if there is one and psql takes what is in
// it. Of a URL that leads nowhere nothing is left.
func (g *given) connection() string {
	words, takesURL, err := postgres.Conninfo(g.conf.database)
	if err != nil {
		return ""
	}
	if variable, ok := strings.CutPrefix(g.conf.origin("database"), "env "); ok && takesURL {
		variable, _, _ = strings.Cut(variable, " ")
		return `"${` + variable + `:?}"` // where it is not set, psql would go to a server of its own choice
	}
	return shellQuote(words)
}
