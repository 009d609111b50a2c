package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/rabbitmq"
)

// followed has a command read its flags, and returns it ready to print others.
func followed(t *testing.T, args ...string) *app {
	t.Helper()
	a := new(app)
	cmd, rest, err := a.rootCommand().Find(args)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.ParseFlags(rest); err != nil {
		t.Fatal(err)
	}
	conf := new(config)
	if err := conf.gather(cmd); err != nil {
		t.Fatal(err)
	}
	if _, err := a.locate(cmd, conf); err != nil {
		t.Fatal(err)
	}
	return a
}

// words has a shell take a command apart.
func words(t *testing.T, command string) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `for p in opscore psql; do eval "$p() { printf '%s\n' $p \"\$@\"; }"; done; `+command)
	cmd.Dir = t.TempDir()
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("%s: %v", command, err)
	}
	if made, err := os.ReadDir(cmd.Dir); err != nil || len(made) > 0 {
		t.Errorf("%s made %v, %v", command, made, err)
	}
	return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
}

func TestAPrintedCommandRepeatsTheFlagsThatNameTheDeployment(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "it's $(touch pwned) here")
	t.Setenv("HOME", t.TempDir())
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	config, env := filepath.Join(dir, "prod.yaml"), filepath.Join(dir, "prod.env")
	for path, text := range map[string]string{config: "queues: [a]\n", env: "OPSCORE_DATABASE_URL=postgres://me:canary@env/app\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const broker = "amqps://me:canary@mq/%2F?cacertfile=/ca&heartbeat=9,amqps://mq2"
	for _, tc := range []struct {
		args    []string
		command string
		want    []string
	}{
		{[]string{"explain"}, "opscore queue resume 'a b'", []string{"opscore", "queue", "resume", "a b"}},
		{
			[]string{"--config", "prod.yaml", "explain", "--env-file=prod.env"},
			"opscore queue resume -- -rf",
			[]string{"opscore", "--config", config, "--env-file", env, "queue", "resume", "--", "-rf"},
		},
		{[]string{"explain", "--env-file", "prod.env", "--schema", "tenant"}, "opscore migrate up", []string{"opscore", "--env-file", env, "--schema", "tenant", "migrate", "up"}},
		{
			[]string{"doctor", "--env-file", "prod.env", "--broker", broker, "--broker-queue-type", "classic", "--broker-management-url", "https://me:canary@mq"},
			"opscore queue ensure a",
			[]string{"opscore", "--env-file", env, "queue", "ensure", "--broker", "amqps://me@mq/%2F?cacertfile=/ca&heartbeat=9,amqps://mq2", "--broker-queue-type", "classic", "a"},
		},
		{
			[]string{"doctor", "--env-file", "prod.env", "--broker-queue-type", "classic"},
			"opscore queue migrate --stopped mail",
			[]string{"opscore", "--env-file", env, "queue", "migrate", "--broker-queue-type", "classic", "--stopped", "mail"},
		},
		{[]string{"doctor", "--env-file", "prod.env", "--broker", broker}, "opscore worker", []string{
			"opscore", "--env-file", env, "worker", "--broker", "amqps://me@mq/%2F?cacertfile=/ca&heartbeat=9,amqps://mq2",
		}},
		{[]string{"doctor", "--env-file", "prod.env", "--broker", broker, "--broker-management-url", "https://me:canary@mq"}, "opscore explain x", []string{
			"opscore", "--env-file", env, "explain", "--broker", "amqps://me@mq/%2F?cacertfile=/ca&heartbeat=9,amqps://mq2", "--broker-management-url", "https://me@mq", "x",
		}},
		{[]string{"doctor", "--env-file", "prod.env", "--broker", broker}, "opscore task retry x", []string{"opscore", "--env-file", env, "task", "retry", "x"}},
		{[]string{"explain", "--database", "my tasks.db"}, "opscore task retry x", []string{"opscore", "--database", filepath.Join(dir, "my tasks.db"), "task", "retry", "x"}},
		{
			[]string{"explain", "--database", "postgres:///postgres?host=/tmp/sock&port=54999&password=canary&sslmode=disable"},
			"opscore task retry x",
			[]string{"opscore", "--database", "postgres:///postgres?host=/tmp/sock&port=54999&sslmode=disable", "task", "retry", "x"},
		},
	} {
		got := words(t, followed(t, tc.args...).shown(opscore.Remedy{Command: tc.command}))
		if strings.Join(got, "\n") != strings.Join(tc.want, "\n") {
			t.Errorf("%q, %s: got %q, want %q", tc.args, tc.command, got, tc.want)
		}
	}
}

// lock is what explain says of one that process 1234 holds, or a prepared transaction.
func lock(holder opscore.Backend) opscore.Remedy {
	at := time.Now()
	for _, c := range opscore.Explain(opscore.Facts{
		At: at, ID: uuid.New(), Sources: []opscore.Asked{{Source: opscore.SourceStore, Err: "timeout"}, {Source: opscore.SourcePostgres}},
		Database: &opscore.DatabaseFacts{
			Endpoint: opscore.Endpoint{Kind: "postgres", Address: "db:5432", Name: "app/opscore"}, Reached: opscore.DatabaseOpen,
			Locks: []opscore.Lock{{On: "table opscore.task", Mode: "AccessExclusiveLock", Holder: holder}},
		},
	}) {
		if c.Code == opscore.CauseTableLocked {
			return c.Remedy[0]
		}
	}
	return opscore.Remedy{}
}

func TestPsqlIsSentToTheDatabaseThatWasAskedAbout(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("HOME", dir)
	for name, text := range map[string]string{
		"prod.env": "OPSCORE_DATABASE_URL=postgres://me:canary@env/app\n", "prod.yaml": "database: postgres://me:canary@file/app\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const pool, awkward = "postgres://me:canary@pool/app?pool_max_conns=4", "postgres://it's:canary@h/my%20$(touch%20pwned)?sslmode=disable"
	for _, tc := range []struct {
		ours, others string // variables
		args         []string
		want         string
	}{
		{"postgres://me:canary@ours/app", "postgres://others/app", nil, "postgres://me:canary@ours/app"},
		{"", "postgres://others/app", nil, "postgres://others/app"},
		{pool, "", nil, "host=pool port=5432 dbname=app user=me"},
		{"", pool, nil, "host=pool port=5432 dbname=app user=me"},
		{"postgres://ours/app", "", []string{"--database", awkward}, `host=h port=5432 dbname='my $(touch pwned)' user='it\'s' sslmode=disable`},
		{"", "", []string{"--env-file", "prod.env"}, "host=env port=5432 dbname=app user=me"},
		{"", "", []string{"--config", "prod.yaml"}, "host=file port=5432 dbname=app user=me"},
	} {
		for name, text := range map[string]string{"OPSCORE_DATABASE_URL": tc.ours, "DATABASE_URL": tc.others} {
			t.Setenv(name, text)
			if text == "" {
				_ = os.Unsetenv(name)
			}
		}
		a := followed(t, append([]string{"explain"}, tc.args...)...)
		for statement, holder := range map[string]opscore.Backend{
			"SELECT pg_terminate_backend(1234)": {PID: 1234}, "ROLLBACK PREPARED 'it''s -c me'": {Prepared: "it's -c me"},
		} {
			command := a.shown(lock(holder))
			if strings.Contains(command, "canary") {
				t.Errorf("%q: %s tells the password", tc.args, command)
			}
			if got := words(t, command); strings.Join(got, "\n") != strings.Join([]string{"psql", tc.want, "-c", statement}, "\n") {
				t.Errorf("%q: got %q, want %s", tc.args, got, tc.want)
			}
		}
	}
}

// The variable may have been set for explain alone.
func TestPsqlIsNotSentToAnotherServerByAVariableThatIsNotThere(t *testing.T) {
	t.Setenv("OPSCORE_DATABASE_URL", "postgres://ours/app")
	command := followed(t, "explain").shown(lock(opscore.Backend{PID: 1234}))
	if !strings.HasPrefix(command, "psql ") {
		t.Fatalf("got %s", command)
	}
	for _, value := range []string{"unset OPSCORE_DATABASE_URL; ", "OPSCORE_DATABASE_URL=; "} {
		if out, err := exec.CommandContext(t.Context(), "sh", "-c", "psql() { echo called; }; "+value+command).Output(); err == nil || len(out) > 0 {
			t.Errorf("%s%s: %s, %v", value, command, out, err)
		}
	}
}

func TestAURLIsShownWithoutItsSecrets(t *testing.T) {
	for in, want := range map[string][2]string{ // for people, and for --database
		"postgres://me:canary@db:6432/app?sslmode=require":            {"postgres://me@db:6432/app", "postgres://me@db:6432/app?sslmode=require"},
		"postgres:///postgres?host=/tmp/sock&port=54999":              {"postgres:///postgres?host=/tmp/sock&port=54999", "postgres:///postgres?host=/tmp/sock&port=54999"},
		"postgres://a:1,[::1]:2/app?user=me&password=canary":          {"postgres://a:1,[::1]:2/app?user=me", "postgres://a:1,[::1]:2/app?user=me"},
		"postgres://h/app?p%61ssword=canary&sslpassword=canary":       {"postgres://h/app", "postgres://h/app"},
		"postgres://h/app?passfile=/p&sslkey=/k&x.token=canary":       {"postgres://h/app", "postgres://h/app?passfile=/p&sslkey=/k"},
		"postgres://h/app?options=-cx.secret%3Dcanary&service=a":      {"postgres://h/app?service=a", "postgres://h/app?service=a"},
		"postgres://it's:c@h/a%20b?dbname=c%20d&application_name=e%2": {"postgres://it's@h/a%20b?dbname=c%20d", "postgres://it's@h/a%20b?dbname=c%20d&application_name=e%2"},
		"postgres://me:x/canary@h/app":                                {"postgres://…", "postgres://…"},
		"postgres://me:1/canary@h/app":                                {"postgres://…", "postgres://…"},
		"postgres://me:can@ary@h/app":                                 {"postgres://…", "postgres://…"},
		"postgres://me:can#ary@h/app":                                 {"postgres://…", "postgres://…"},
		"postgres://me:canary":                                        {"postgres://…", "postgres://…"},
	} {
		p := postgresPlace{url: in}
		if got := [2]string{p.String(), p.flag()}; got != want {
			t.Errorf("%s: got %q, want %q", in, got, want)
		}
		if printed := "goes on: opscore task wait --database " + p.flag(); redact(printed) != printed {
			t.Errorf("%s: an error shows %s", in, redact(printed))
		}
	}
}

func TestMessagesThatAnInterruptedMigrationLeftAreSaid(t *testing.T) {
	a := &app{}
	if err := a.amiss(rabbitmq.Changed{Name: "mail"}, "mail"); err != nil {
		t.Errorf("a queue that is as it should be: %v", err)
	}
	err := a.amiss(rabbitmq.Changed{Name: "mail.DQ", Aside: 60}, "mail")
	if want := "60 messages of queue mail.DQ are in queue opscore-moving-mail.DQ"; err == nil || !strings.HasPrefix(err.Error(), want) ||
		!strings.HasSuffix(err.Error(), "opscore queue migrate --stopped mail") {
		t.Errorf("%v; want %q", err, want)
	}
}
