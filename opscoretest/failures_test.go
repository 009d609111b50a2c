package opscoretest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/opscore/opscore"
)

// scenarioEnv tells the test binary to play one scenario, a test that must fail, instead of its tests.
const scenarioEnv = "OPSCORETEST_SCENARIO"

// noMain is the scenario of a package whose TestMain does not call Main.
const noMain = "no main"

// scenario is a test that fails, and what its output must say.
type scenario struct {
	test func(*testing.T)
	want []string // regular expressions
}

var scenarios = map[string]scenario{
	"no worker": {func(t *testing.T) {
		Run(t, nil, func(t *testing.T, env *Env) { env.MustComplete(submit(t, env, greet, greeting{"ann"})) })
	}, []string{`no worker is running in this test, so nothing will run the task of actor greet: give handlers to Run`, `args \{"name":"ann"\}`}},
	"no worker, drained": {func(t *testing.T) {
		Run(t, nil, func(t *testing.T, env *Env) { submit(t, env, greet, greeting{"ann"}); env.Drain() })
	}, []string{`no worker is running in this test`}},
	"no worker, live": {func(t *testing.T) {
		env := Live(t, Options{})
		env.MustComplete(submit(t, env, greet, greeting{"ann"}))
	}, []string{`no worker is running in this test`}},
	"no handler": {func(t *testing.T) {
		Run(t, handlers(nil), func(t *testing.T, env *Env) {
			env.MustComplete(submit(t, env, opscore.Actor[int, int]{Name: "other"}, 1))
		})
	}, []string{`no live worker has actor other on queue default, .*actors block, greet, leave, nap, whoami on queues default`}},
	"other queue": {func(t *testing.T) {
		Run(t, handlers(nil), func(t *testing.T, env *Env) {
			env.MustComplete(submit(t, env, greet, greeting{"ann"}, opscore.Queue("mail")))
		})
	}, []string{`no live worker has actor greet on queue mail`}},
	"paused queue": {func(t *testing.T) {
		Run(t, handlers(nil), func(t *testing.T, env *Env) {
			if err := env.Client.Pause(t.Context(), "default", "eve", ""); err != nil {
				t.Fatal(err)
			}
			env.MustComplete(submit(t, env, greet, greeting{"ann"}))
		})
	}, []string{`has been due for 1h0m0s and nobody started it`, `its queue is paused by eve`}},
	"failed": {func(t *testing.T) {
		Run(t, handlers(nil), func(t *testing.T, env *Env) { env.MustComplete(submit(t, env, greet, greeting{})) })
	}, []string{`the task did not complete`, `failed, attempt 1 of 3`, `aborted: nobody to greet`, `log INFO asked to greet name=""`, `failures_test\.go`}},
	"not failed": {func(t *testing.T) {
		Run(t, handlers(nil), func(t *testing.T, env *Env) { env.Failed(submit(t, env, greet, greeting{"ann"}), "nobody") })
	}, []string{`the task did not fail`, `completed`}},
	"failed otherwise": {func(t *testing.T) {
		Run(t, handlers(nil), func(t *testing.T, env *Env) { env.Failed(submit(t, env, greet, greeting{}), "no such order") })
	}, []string{`failed, but not with "no such order"`, `nobody to greet`}},
	"attempts": {func(t *testing.T) {
		Run(t, handlers(nil), func(t *testing.T, env *Env) {
			id := submit(t, env, greet, greeting{"ann"})
			env.MustComplete(id)
			env.Attempts(id, 2)
		})
	}, []string{`has had 1 attempts, want 2`}},
	"not submitted": {func(t *testing.T) {
		Run(t, nil, func(t *testing.T, env *Env) {
			submit(t, env, greet, greeting{"bob"})
			Submitted(env, greet, func(g greeting) bool { return g.Name == "ann" })
		})
	}, []string{`no task of actor greet that was submitted matches; they are:\s+greet \{"name":"bob"\} \(pending\)`}},
	"nothing submitted": {func(t *testing.T) {
		Run(t, nil, func(_ *testing.T, env *Env) { Submitted(env, greet, nil) })
	}, []string{`no task of actor greet was submitted, nor of any other`}},
	"submitted": {func(t *testing.T) {
		Run(t, nil, func(t *testing.T, env *Env) { submit(t, env, greet, greeting{"bob"}); NotSubmitted(env, greet, nil) })
	}, []string{`a task of actor greet was submitted`}},
	"crash without worker": {func(t *testing.T) {
		Run(t, nil, func(_ *testing.T, env *Env) { env.CrashWorker() })
	}, []string{`CrashWorker: no worker is running in this test`}},
	"no broker": {func(t *testing.T) { Live(t, Options{}).LoseTickets() }, []string{`LoseTickets: this environment has no broker`}},
	"blocked in the bubble": {func(t *testing.T) {
		Run(t, handlers(nil), func(t *testing.T, env *Env) { env.MustComplete(submit(t, env, block, struct{}{})) })
	}, []string{`handler of actor block ignores that its context has ended`, `main_test\.go`}},
	"blocked in the bubble, drained": {func(t *testing.T) {
		Run(t, handlers(nil), func(t *testing.T, env *Env) { submit(t, env, block, struct{}{}); env.Drain() })
	}, []string{`handler of actor block ignores that its context has ended`}},
	"blocked in the bubble at the end": {func(t *testing.T) {
		Run(t, handlers(nil), func(t *testing.T, env *Env) { submit(t, env, block, struct{}{}); env.Advance(time.Second) })
	}, []string{`handlers ignored their cancelled context: block`, `main_test\.go`}},
	"blocked outside the bubble": {func(t *testing.T) { blockOutside(t) }, []string{`nothing has moved for 1s of real time`, `blockOutside`}},
	"endless loop":               {func(t *testing.T) { spin(t) }, []string{`nothing has moved for 1s of real time`, `spin`}},
	"blocked test": {func(t *testing.T) {
		forever := make(chan struct{})
		run(t, handlers(nil), time.Second, func(*testing.T, *Env) { <-forever })
	}, []string{`nothing has moved`, `failures_test\.go`}},
	"leaked goroutine": {func(t *testing.T) {
		Run(t, handlers(nil), func(*testing.T, *Env) { go func() { select {} }() })
	}, []string{`deadlock`, `failures_test\.go`}},
	"blocked, live": {func(t *testing.T) {
		env := Live(t, Options{Handlers: handlers(nil), Patience: 500 * time.Millisecond})
		env.MustComplete(submit(t, env, block, struct{}{}))
	}, []string{`not over after 500ms`, `handlers at work:`, `main_test\.go`}},
	"blocked in a process": {func(t *testing.T) {
		env := Live(t, Options{Process: true, Patience: 2 * time.Second})
		env.MustComplete(submit(t, env, block, struct{}{}))
	}, []string{`not over after 2s`, `handlers at work:`, `main_test\.go`}},
	"too far away": {func(t *testing.T) {
		env := Live(t, Options{Handlers: handlers(nil)})
		env.MustComplete(submit(t, env, greet, greeting{"ann"}, opscore.After(time.Hour)))
	}, []string{`not due for another 59m`, `see Options.Patience, or Run`}},
	"process that ends": {func(t *testing.T) {
		env := Live(t, Options{Process: true})
		if err := env.hand.(*process).cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-env.hand.(*process).ended
		env.MustComplete(submit(t, env, greet, greeting{"ann"}))
	}, []string{`the worker has ended: its process: signal: killed`}},
	"killed":                            {func(t *testing.T) { toBeKilled(t, 0) }, nil},
	"killed while the worker is paused": {func(t *testing.T) { toBeKilled(t, time.Hour) }, nil},
	noMain: {func(t *testing.T) { Live(t, Options{Process: true}) }, []string{
		`the test binary ended without becoming a worker: this package needs a func TestMain\(m \*testing\.M\)`,
	}},
	"both":   {func(t *testing.T) { Live(t, Options{Process: true, Handlers: handlers(nil)}) }, []string{`those that TestMain gives to Main`}},
	"tier":   {func(t *testing.T) { Live(t, Options{Tier: "moon"}) }, []string{`unknown tier "moon"; known: embedded, postgres, cluster`}},
	"broker": {func(t *testing.T) { Live(t, Options{Broker: "amqp://localhost/"}) }, []string{`needs a postgres:// Database`}},
	"live in a bubble": {func(t *testing.T) {
		Run(t, nil, func(t *testing.T, _ *Env) { Live(t, Options{}) })
	}, []string{`Live in a bubble of fake time`}},
	"worker that cannot start": {func(t *testing.T) {
		h := opscore.Handlers{}
		opscore.Handle(h, opscore.Actor[int, int]{Name: "no name"}, func(context.Context, int) (int, error) { return 0, nil })
		Run(t, h, func(*testing.T, *Env) {})
	}, []string{`the worker did not start`, `no name`}},
	"twice": {func(t *testing.T) { Twice(t, forgetful, purchase{Number: 7}) }, []string{
		`with a crash after charged 7 \(2 of 6\):\s+happened twice: charged 7`,
		`with a crash after Submit mail \(4 of 6\):\s+happened twice: charged 7\s+happened twice: submitted mail`,
		`with a crash after its end \(6 of 6\)`,
	}},
	"never": {func(t *testing.T) { Twice(t, hasty, purchase{Number: 7}) }, []string{
		`with a crash before charged 7 \(1 of 3\):\s+never happened: charged 7`,
	}},
	"never, after its completion": {func(t *testing.T) { Twice(t, careless, purchase{Number: 7}) }, []string{
		`with a crash before thanked for 7 \(2 of 4\):\s+never happened: thanked for 7`,
	}},
	"fatal in a trial": {func(t *testing.T) {
		Twice(t, func(t *testing.T, _ *Trial) func(context.Context, int) (int, error) {
			t.Fatal("no bank today")
			return nil
		}, 1)
	}, []string{`failures_test\.go:\d+: no bank today\s+FAIL`}},
	"released after it was given up": {func(t *testing.T) {
		outside := make(chan struct{})
		defer func() { // as httptest.Server.Close does
			close(outside)
			<-time.After(300 * time.Millisecond)
		}()
		h := opscore.Handlers{}
		opscore.Handle(h, greet, func(ctx context.Context, _ greeting) (string, error) {
			<-outside
			return "", errors.New("late")
		})
		run(t, h, time.Second, func(t *testing.T, env *Env) { env.MustComplete(submit(t, env, greet, greeting{"ann"})) })
	}, []string{`nothing has moved for 1s of real time`, `failures_test\.go:\d+ \+0x`}},
	"process that ends, drained": {func(t *testing.T) {
		env := Live(t, Options{Process: true})
		submit(t, env, block, struct{}{})
		if err := env.hand.(*process).cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-env.hand.(*process).ended
		env.Drain()
	}, []string{`the worker has ended: its process: signal: killed`}},
	"handler's input": {func(t *testing.T) {
		_, _ = Handler(t, opscore.Actor[hidden, int]{Name: "hidden"}, func(context.Context, hidden) (int, error) { return 0, nil }, hidden{make(chan int)})
	}, []string{`cannot take this input|args of actor hidden`}},
}

type hidden struct{ C chan int }

func blockOutside(t *testing.T) {
	outside := make(chan struct{}) // not of the bubble
	h := opscore.Handlers{}
	opscore.Handle(h, greet, func(context.Context, greeting) (string, error) {
		<-outside
		return "", nil
	})
	run(t, h, time.Second, func(t *testing.T, env *Env) { env.MustComplete(submit(t, env, greet, greeting{"ann"})) })
}

func spin(t *testing.T) {
	h := opscore.Handlers{}
	opscore.Handle(h, greet, func(context.Context, greeting) (string, error) {
		for n := 0; ; n++ {
			if n < 0 {
				return "", errors.New("it cannot come to this")
			}
		}
	})
	run(t, h, time.Second, func(t *testing.T, env *Env) { env.MustComplete(submit(t, env, greet, greeting{"ann"})) })
}

// playScenario runs a scenario as the only test of this process.
func playScenario(name string) {
	all := func(string, string) (bool, error) { return true, nil }
	testing.Main(all, []testing.InternalTest{{Name: "Scenario", F: scenarios[name].test}}, nil, nil)
}

// player is the process that plays a scenario.
func player(t *testing.T, name string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), scenarioEnv+"="+name)
	return cmd
}

// TestFailuresSayWhatIsWrong plays each scenario in a process of its own and reads what it prints.
func TestFailuresSayWhatIsWrong(t *testing.T) {
	for name, s := range scenarios {
		if len(s.want) == 0 {
			continue // it is another test's
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, err := player(t, name).CombinedOutput()
			text := string(out)
			if status := (*exec.ExitError)(nil); !errors.As(err, &status) || status.ExitCode() != 1 || !strings.Contains(text, "--- FAIL: Scenario") {
				t.Errorf("it did not fail as tests do: %v", err)
			}
			for _, want := range s.want {
				if !regexp.MustCompile(want).MatchString(text) {
					t.Errorf("its output does not match %q", want)
				}
			}
			if t.Failed() {
				t.Log(text)
			}
		})
	}
}
