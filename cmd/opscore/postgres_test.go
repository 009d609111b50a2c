package main

import (
	"errors"
	"net/url"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/postgres"
)

// TestScriptsOnPostgreSQL runs those of testdata/*.txtar that submit, run and look after tasks once more, each on a
// database of its own.
func TestScriptsOnPostgreSQL(t *testing.T) {
	t.Parallel()
	p := scripts("postgres", func(env *testscript.Env) error {
		env.Setenv("OPSCORE_DATABASE_URL", nodes.Database(env.T().(testing.TB), "opscore", func(url string) error {
			return postgres.Migrate(t.Context(), url, postgres.Options{})
		}))
		env.Setenv("HOME", "") // then there is no default file that a task could go to by mistake
		return nil
	})
	for _, name := range []string{"dev", "explain", "queue", "run", "submit", "task", "watch", "worker"} {
		p.Files = append(p.Files, "testdata/"+name+".txtar")
	}
	testscript.Run(t, p)
}

// TestScriptsOfPostgreSQL runs testdata/postgres/*.txtar, the manual of what is there on PostgreSQL alone. Each begins with an
// empty database.
func TestScriptsOfPostgreSQL(t *testing.T) {
	t.Parallel()
	p := scripts("postgres", func(env *testscript.Env) error {
		tb := env.T().(testing.TB)
		env.Values[ofTest{}] = tb
		env.Setenv("OPSCORE_DATABASE_URL", nodes.Database(tb, "empty", func(string) error { return nil }))
		return nil
	})
	p.Dir = "testdata/postgres"
	testscript.Run(t, p)
}

// TestScriptsOfTheCluster runs testdata/cluster/*.txtar, the manual of what a broker adds.
func TestScriptsOfTheCluster(t *testing.T) {
	t.Parallel()
	p := scripts("postgres", func(env *testscript.Env) error {
		tb := env.T().(testing.TB)
		env.Setenv("OPSCORE_DATABASE_URL", nodes.Database(tb, "opscore", func(url string) error {
			return postgres.Migrate(t.Context(), url, postgres.Options{})
		}))
		env.Setenv("OPSCORE_BROKER_URL", nodes.Vhost(tb))
		env.Setenv("BROKER", nodes.Broker(tb).Addr())
		return nil
	})
	p.Dir = "testdata/cluster"
	testscript.Run(t, p)
}

// ofTest is the key of a script's test.
type ofTest struct{}

// startServer starts a server of the script's own, with a role app whose password is canary, and sets $SERVER to its host and
// port and $APP to the URL of the role's database: server. A role reader would need a password as well.
func startServer(ts *testscript.TestScript, _ bool, _ []string) {
	tb := ts.Value(ofTest{}).(testing.TB)
	node := nodes.Own(tb)
	for _, text := range []string{
		"CREATE ROLE app LOGIN PASSWORD 'canary'",
		"CREATE DATABASE app OWNER app",
		`DO $$ BEGIN EXECUTE format('COPY (SELECT unnest(ARRAY[%L, %L])) TO %L', 'host all app,reader 127.0.0.1/32 scram-sha-256',
			'host all postgres 127.0.0.1/32 trust', current_setting('data_directory') || '/pg_hba.conf'); END $$`,
	} {
		ts.Check(ts.Exec("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", text, node.URL("postgres")))
	}
	ts.Check(errors.Join(node.Stop(), node.Start(tb.Context())))
	app, err := url.Parse(node.URL("app"))
	ts.Check(err)
	app.User = url.UserPassword("app", "canary")
	ts.Setenv("SERVER", node.Addr())
	ts.Setenv("APP", app.String())
}
