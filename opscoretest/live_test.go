package opscoretest

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opscore/opscore"
)

// everywhere runs a test on each tier, with a worker in its own process and with one in another.
func everywhere(t *testing.T, test func(t *testing.T, env *Env)) {
	for _, tier := range []Tier{Embedded, Postgres, Cluster} {
		t.Run(string(tier), func(t *testing.T) {
			t.Parallel()
			test(t, Live(t, Options{Tier: tier, Handlers: handlers(nil)}))
		})
		t.Run(string(tier)+" in a process", func(t *testing.T) {
			t.Parallel()
			test(t, Live(t, Options{Tier: tier, Process: true}))
		})
	}
}

func TestSuccessFailureAndThreeAtOnce(t *testing.T) {
	everywhere(t, func(t *testing.T, env *Env) {
		id := submit(t, env, greet, greeting{"ann"})
		for task, err := env.Client.Get(t.Context(), id); !task.State.Terminal(); task, err = env.Client.Get(t.Context(), id) {
			if err != nil {
				t.Fatal(err)
			}
			<-time.After(10 * time.Millisecond)
		}
		if out, err := greet.Wait(t.Context(), env.Client, id); err != nil || out != "hello ann" {
			t.Errorf("%q, %v", out, err)
		}

		if task := env.Failed(submit(t, env, greet, greeting{}), "nobody to greet"); task.Code != opscore.CodeAborted {
			t.Errorf("failed with code %s", task.Code)
		}

		var wg sync.WaitGroup
		var mu sync.Mutex
		var got []string
		for i := range 3 {
			wg.Go(func() {
				sub, err := greet.Submit(t.Context(), env.Client, greeting{fmt.Sprint(i)})
				if err != nil {
					t.Error(err)
					return
				}
				out, err := greet.Wait(t.Context(), env.Client, sub.ID)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				got = append(got, out)
			})
		}
		wg.Wait()
		slices.Sort(got)
		if want := []string{"hello 0", "hello 1", "hello 2"}; !slices.Equal(got, want) {
			t.Errorf("results %v, want %v", got, want)
		}
		env.Drain()
	})
}

func TestAWorkersProcessIsNotTheTests(t *testing.T) {
	t.Parallel()
	env := Live(t, Options{Process: true})
	if pid := string(env.MustComplete(submit(t, env, whoami, struct{}{})).Result); pid == fmt.Sprint(os.Getpid()) {
		t.Errorf("the task ran in process %s, which is the test's", pid)
	}
}

func TestACrashLosesNoTaskAnywhere(t *testing.T) {
	everywhere(t, func(t *testing.T, env *Env) {
		id := submit(t, env, nap, time.Second)
		running(t, env, id)
		env.CrashWorker()
		if task := env.MustComplete(id); task.Lost != 1 || task.Attempt != 1 {
			t.Errorf("lost %d times, attempt %d", task.Lost, task.Attempt)
		}
	})
}

func TestTasksLostTwiceTogetherRunOneAfterTheOtherAnywhere(t *testing.T) {
	everywhere(t, func(t *testing.T, env *Env) {
		ids := []opscore.ID{submit(t, env, nap, 2*time.Second), submit(t, env, nap, 2*time.Second)}
		for range opscore.MaxLost - 1 {
			for _, id := range ids {
				running(t, env, id)
			}
			env.CrashWorker()
		}
		first, second := env.MustComplete(ids[0]), env.MustComplete(ids[1])
		if second.StartedAt.Before(first.StartedAt) {
			first, second = second, first
		}
		if first.Lost != opscore.MaxLost-1 || second.Lost != first.Lost {
			t.Errorf("lost %d and %d times", first.Lost, second.Lost)
		}
		if second.StartedAt.Before(first.FinishedAt) {
			t.Errorf("one ran from %s to %s, the other from %s", first.StartedAt, first.FinishedAt, second.StartedAt)
		}
	})
}

// running waits until a task has started.
func running(t *testing.T, env *Env, id opscore.ID) {
	t.Helper()
	for {
		task, err := env.Client.Get(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if task.State == opscore.Running {
			return
		}
		<-time.After(5 * time.Millisecond)
	}
}

func TestAPauseADropAndFailingCallsLoseNoTaskAnywhere(t *testing.T) {
	everywhere(t, func(t *testing.T, env *Env) {
		for name, fault := range map[string]func(){
			"pause": func() { env.PauseWorker(300 * time.Millisecond) },
			"fail":  func() { env.FailStore(1) },
			"drop":  func() { env.DropStore(300 * time.Millisecond) },
		} {
			fault()
			for range 5 {
				if task := env.MustComplete(submit(t, env, greet, greeting{"ann"})); task.Attempt != 1 {
					t.Errorf("after %s: attempt %d", name, task.Attempt)
				}
			}
		}
	})
}

func TestFaultsAddUpAnywhere(t *testing.T) {
	everywhere(t, func(t *testing.T, env *Env) {
		began := time.Now()
		env.DropStore(100 * time.Millisecond)
		env.DropStore(700 * time.Millisecond)
		env.CrashWorker() // the next one cannot start before
		env.PauseWorker(200 * time.Millisecond)
		env.FailStore(1)
		env.DropStore(100 * time.Millisecond)
		env.MustComplete(submit(t, env, greet, greeting{"ann"}))
		if passed := time.Since(began); passed < 700*time.Millisecond {
			t.Errorf("the store was back after %s", passed)
		}
		env.PauseWorker(time.Hour)
		env.CrashWorker()
		env.CrashWorker()
		env.MustComplete(submit(t, env, greet, greeting{"ann"}))
	})
}

func TestNothingRemainsOfAWorkersProcess(t *testing.T) {
	t.Parallel()
	var pid int
	t.Run("worker", func(t *testing.T) {
		env := Live(t, Options{Process: true})
		if err := json.Unmarshal(env.MustComplete(submit(t, env, leave, struct{}{})).Result, &pid); err != nil {
			t.Fatal(err)
		}
	})
	for syscall.Kill(pid, 0) == nil { // until the system has taken note
		<-time.After(5 * time.Millisecond)
	}
}

func TestABrokersFaultsLoseNoTask(t *testing.T) {
	for name, fault := range map[string]func(*Env){
		"lose tickets":       (*Env).LoseTickets,
		"duplicate delivery": (*Env).DuplicateDelivery,
		"drop broker":        func(env *Env) { env.DropBroker(500 * time.Millisecond) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := Live(t, Options{Tier: Cluster, Handlers: handlers(nil)})
			env.MustComplete(submit(t, env, greet, greeting{"ann"}))
			fault(env)
			ids := make([]opscore.ID, 20)
			for i := range ids {
				ids[i] = submit(t, env, greet, greeting{"ann"})
			}
			for _, id := range ids {
				if task := env.MustComplete(id); task.Attempt != 1 || task.Lost != 0 {
					t.Errorf("attempt %d, lost %d times", task.Attempt, task.Lost)
				}
			}
		})
	}
}

func TestADatabaseAndABrokerOfTheUsersOwnCanBeUsed(t *testing.T) {
	t.Parallel()
	own := Live(t, Options{Tier: Cluster})
	env := Live(t, Options{Database: own.Database, Broker: own.Broker, Process: true})
	if env.Tier != Cluster {
		t.Errorf("tier %s", env.Tier)
	}
	id := submit(t, env, greet, greeting{"ann"})
	own.MustComplete(id) // it sees the other's worker in the registry
}
