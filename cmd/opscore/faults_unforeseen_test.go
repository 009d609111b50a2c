//go:build linux

package main

import (
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"
	"golang.org/x/sys/unix"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/postgres"
)

// unforeseen are faults that the catalogue does not have: explain was not written for them.
func unforeseen() []play {
	return []play{
		{name: "U01 vhost deleted", on: onCluster, act: vhostDeleted},
		{name: "U02 vhost full", on: onCluster, act: vhostFull},
		{name: "U03 broker user deleted", on: onCluster, act: brokerUserDeleted},
		{name: "U04 broker user full", on: onCluster, act: brokerUserFull},
		{name: "U05 queue is somebody's own", on: onCluster, act: queueExclusive},
		{name: "U06 exclusive consumer", on: onCluster, act: consumerExclusive},
		{name: "U07 publishes are rejected", on: onCluster, act: publishesRejected},
		{name: "U08 queue of another type", on: onCluster, act: queueType},
		{name: "U09 worker cut off from the broker", on: onCluster, act: workerCutOff},
		{name: "U10 another service at the broker's port", on: onCluster, act: anotherService},
		{name: "U11 most nodes of the broker down", on: onPostgres, act: mostNodesDown},
		{name: "U20 no synchronous standby", on: onOwnPostgres, act: noStandby},
		{name: "U21 worker may not write", on: onPostgres, act: mayNotWrite},
		{name: "U22 a trigger refuses", on: onPostgres, act: triggerRefuses},
		{name: "U23 connections used up", fast: true, on: onSmallPostgres, act: connectionsUsedUp},
		{name: "U24 role may not log in", on: onOwnPostgres, act: mayNotLogIn},
		{name: "U25 schema renamed", on: onOwnPostgres, act: schemaRenamed},
		{name: "U26 schema of a newer binary", fast: true, on: onPostgres, act: schemaNewer},
		{name: "U27 worker cut off from the database", on: onPostgres, act: cutOffFromDatabase},
		{name: "U28 worker of another schema", fast: true, on: onPostgres, act: anotherSchema},
		{name: "U29 database frozen", on: onOwnPostgres, act: databaseFrozen},
		{name: "U30 statements are cut off", fast: true, on: onOwnPostgres, act: statementsCutOff},
		{name: "U40 database file replaced", fast: true, on: onEmbedded, act: fileReplaced},
		{name: "U41 database file locked", fast: true, on: onEmbedded, act: fileLocked},
		{name: "U50 worker draining", fast: true, on: onEmbedded, act: workerDraining},
		{name: "U51 only worker killed", on: onPostgres, act: onlyWorkerKilled},
		{name: "U52 worker without file descriptors", on: onEmbedded, act: noDescriptors},
		{name: "U53 queue in capitals", fast: true, on: onEmbedded, act: queueInCapitals},
	}
}

func vhostDeleted(s *scene) want {
	s.ticketed()
	s.broker.do(`ok = rabbit_vhost:delete(<<"%s">>, <<"USER">>)`, s.broker.vhost)
	return want{
		codes: []string{opscore.CauseBrokerVhostRefused}, evidence: []string{s.broker.vhost}, remedy: either, names: []string{"virtual host " + s.broker.vhost},
		undo: func() {
			s.broker.do(`ok = rabbit_vhost:add(<<"%s">>, <<"USER">>)`, s.broker.vhost)
			s.broker.permit(s.broker.vhost, ".*")
		},
	}
}

func vhostFull(s *scene) want {
	s.ticketed()
	s.broker.ctl("set_vhost_limits", "-p", s.broker.vhost, `{"max-connections":0}`)
	return want{
		codes: []string{opscore.CauseBrokerVhostRefused}, evidence: []string{s.broker.vhost}, remedy: byOperator, names: []string{"limit"},
		undo: func() { s.broker.ctl("clear_vhost_limits", "-p", s.broker.vhost) },
	}
}

func brokerUserDeleted(s *scene) want {
	s.ticketed()
	s.broker.do(`ok = rabbit_auth_backend_internal:delete_user(<<"USER">>, <<"USER">>)`)
	return want{
		codes: []string{opscore.CauseBrokerLoginRefused}, evidence: []string{s.broker.user}, remedy: byOperator, names: []string{s.broker.user},
		undo: func() {
			s.broker.do(`ok = rabbit_auth_backend_internal:add_user(<<"USER">>, <<"%s">>, <<"USER">>)`, canary)
			s.broker.permit(s.broker.vhost, ".*")
		},
	}
}

func brokerUserFull(s *scene) want {
	s.ticketed()
	s.broker.ctl("set_user_limits", s.broker.user, `{"max-connections":0}`)
	return want{
		codes: []string{opscore.CauseBrokerVhostRefused}, evidence: []string{s.broker.user}, remedy: byOperator, names: []string{"limit"},
		undo: func() { s.broker.ctl("clear_user_limits", s.broker.user, "all") },
	}
}

// queueExclusive: the queue is there, and belongs to a connection of somebody else.
func queueExclusive(s *scene) want {
	ch := s.broker.channel()
	_, err := ch.QueueDeclare(ticketQueue("default"), false, false, true, false, nil)
	s.must(err)
	s.busy(4)
	return want{
		codes: []string{opscore.CauseBrokerQueueUnusable}, evidence: []string{ticketQueue("default"), "RESOURCE_LOCKED"},
		remedy: byOperator, names: []string{ticketQueue("default")},
		undo: func() { _, _ = ch.QueueDelete(ticketQueue("default"), false, false, false) },
	}
}

// consumerExclusive: somebody consumes the queue and lets nobody else.
func consumerExclusive(s *scene) want {
	s.worker("--queues", "relay").stop()
	s.opscore("queue", "ensure", "default")
	ch := s.broker.channel()
	_, err := ch.Consume(ticketQueue("default"), "the-hermit", false, true, false, false, nil)
	s.must(err)
	s.busy(4)
	s.broker.awaitConsumers("default", 1)
	return want{
		codes: []string{opscore.CauseForeignConsumer, opscore.CauseBrokerQueueUnusable}, evidence: []string{"the-hermit"},
		remedy: either, names: []string{"close"},
		undo: func() { _ = ch.Close() },
	}
}

// publishesRejected: a policy lets nothing more into the queue.
func publishesRejected(s *scene) want {
	s.broker.policy("not-one-more", `{"max-length":1,"overflow":"reject-publish"}`)
	s.occupied(12)
	s.broker.awaitPolicy("default", "not-one-more")
	s.submit()
	return want{codes: []string{opscore.CauseBrokerPolicyLimits, opscore.CauseTicketLost}, evidence: []string{"not-one-more", "reject-publish"}, remedy: byCommand}
}

func queueType(s *scene) want {
	_, err := s.broker.channel().QueueDeclare(ticketQueue("default"), true, false, false, false, amqp.Table{
		"x-queue-type": "classic", "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "opscore-dead",
	})
	s.must(err)
	s.busy(4)
	return want{codes: []string{opscore.CauseBrokerQueueMismatch}, evidence: []string{"x-queue-type"}, remedy: byCommand}
}

// workerCutOff: only the worker cannot reach the broker.
func workerCutOff(s *scene) want {
	p := nodes.NewProxy(s.T, s.broker.Addr())
	w := s.busy(4, "--broker", p.URL(s.broker.url()))
	p.Cut()
	s.awaitDegraded(opscore.CheckBroker)
	return want{
		codes: []string{opscore.CauseWorkerDegraded}, evidence: []string{w.info.ID.String()}, remedy: byOperator, names: []string{"process " + w.pid()},
		undo: p.Heal,
	}
}

// awaitDegraded waits until a worker says that a check of that name is not well.
func (s *scene) awaitDegraded(check string) {
	s.Helper()
	s.until("check "+check+" not to be well", func() bool {
		workers, err := s.store.Workers(s.Context(), 0)
		s.must(err)
		for _, w := range workers {
			if state := w.Report.Check(check).State; state == opscore.CheckDegraded || state == opscore.CheckFailed {
				return true
			}
		}
		return false
	})
}

// mostNodesDown: of three nodes one is left, which has no majority for anything.
func mostNodesDown(s *scene) want {
	cluster := nodes.OwnRabbitCluster(s.T, 3, "management.tcp.ip = 127.0.0.1")
	s.join(cluster.Nodes[0])
	s.ticketed()
	for _, n := range cluster.Nodes[1:] {
		s.must(n.Kill())
	}
	return want{
		codes: []string{opscore.CauseBrokerQueueUnusable}, evidence: []string{ticketQueue("default"), cluster.Nodes[1].Name(), cluster.Nodes[2].Name()},
		remedy: byOperator, names: []string{cluster.Nodes[1].Name()},
		undo: func() {
			for _, n := range cluster.Nodes[1:] {
				s.must(n.Start(s.Context()))
			}
		},
	}
}

// anotherService: the URL has the port of the management API.
func anotherService(s *scene) want {
	s.busy(4)
	at := "amqp://" + s.broker.user + ":" + canary + "@" + s.broker.Management()[len("http://"):] + "/" + s.broker.vhost
	s.set("OPSCORE_BROKER_URL", at)
	return want{
		codes: []string{opscore.CauseBrokerFrozen}, evidence: []string{s.broker.Management()[len("http://"):]},
		remedy: byOperator, names: []string{"URL"},
		undo: func() { s.set("OPSCORE_BROKER_URL", s.broker.url()) },
	}
}

// noStandby: each commit waits for a standby that there is not.
func noStandby(s *scene) want {
	s.busy(4)
	operator := s.connect("operator")
	set := func(how string) {
		_, err := operator.Exec(s.Context(), how)
		s.must(err)
		_, err = operator.Exec(s.Context(), "SELECT pg_reload_conf()")
		s.must(err)
	}
	set("ALTER SYSTEM SET synchronous_standby_names = 'the_ghost'")
	s.until("a commit that waits", func() bool {
		return s.backends("wait_event = 'SyncRep' AND clock_timestamp() - state_change > interval '1.5 s'") > 0
	})
	return want{
		codes: []string{opscore.CauseDatabaseStalled}, evidence: []string{"the_ghost", "SyncRep"},
		remedy: byOperator, names: []string{"synchronous_standby_names"},
		undo: func() { set("ALTER SYSTEM RESET synchronous_standby_names") },
	}
}

// mayNotWrite: somebody has taken a permission away from the worker's role.
func mayNotWrite(s *scene) want {
	run := func(sql string) {
		_, err := s.watcher().Exec(s.Context(), sql)
		s.must(err)
	}
	role := "clerk_" + strings.ToLower(rand.Text()[:8])
	run("CREATE ROLE " + role + " LOGIN")
	s.Cleanup(func() {
		_, err := s.watch.Exec(noContext(), "DROP OWNED BY "+role+"; DROP ROLE "+role)
		s.must(err)
	})
	grant := "GRANT USAGE ON SCHEMA opscore TO " + role + "; GRANT ALL ON ALL TABLES IN SCHEMA opscore TO " + role +
		"; GRANT ALL ON ALL SEQUENCES IN SCHEMA opscore TO " + role
	run(grant)
	at, err := url.Parse(s.database)
	s.must(err)
	at.User = url.UserPassword(role, canary)
	w := s.worker("--database", at.String())
	run("REVOKE UPDATE ON opscore.task FROM " + role)
	s.submit()
	s.awaitDegraded(opscore.CheckStore)
	return want{
		codes: []string{opscore.CauseWorkerNotReady, opscore.CauseWorkerDegraded}, evidence: []string{"permission denied", w.info.ID.String()},
		remedy: byOperator, names: []string{"permission denied"},
		undo: func() { run(grant) },
	}
}

// triggerRefuses: an audit of somebody's does not let tasks be changed.
func triggerRefuses(s *scene) want {
	run := func(sql string) {
		_, err := s.watcher().Exec(s.Context(), sql)
		s.must(err)
	}
	w := s.worker()
	run(`CREATE FUNCTION public.audit() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''the auditor is on holiday''; END'`)
	run("CREATE TRIGGER audit BEFORE UPDATE ON opscore.task FOR EACH ROW EXECUTE FUNCTION public.audit()")
	s.submit()
	s.awaitDegraded(opscore.CheckStore)
	return want{
		codes: []string{opscore.CauseWorkerNotReady, opscore.CauseWorkerDegraded}, evidence: []string{"the auditor is on holiday", w.info.ID.String()},
		remedy: byOperator, names: []string{"the auditor is on holiday"},
		undo: func() { run("DROP TRIGGER audit ON opscore.task") },
	}
}

func onSmallPostgres(_ *testing.T, s *scene) { s.ownDatabase("max_connections = 25") }

// connectionsUsedUp: a program leaks connections, so that none is left but for superusers.
func connectionsUsedUp(s *scene) want {
	s.busy(4)
	_, err := s.watcher().Exec(s.Context(), "CREATE ROLE leaker LOGIN")
	s.must(err)
	var leaked []*pgx.Conn
	for range 40 {
		conn, err := s.dial("the_leak", "leaker")
		if err != nil {
			break
		}
		leaked = append(leaked, conn)
	}
	return want{
		codes: []string{opscore.CauseDatabaseFull}, evidence: []string{"the_leak"},
		remedy: byOperator, names: []string{"the_leak"},
		undo: func() {
			for _, c := range leaked {
				s.must(c.Close(s.Context()))
			}
		},
	}
}

func mayNotLogIn(s *scene) want {
	s.busy(4)
	operator := s.connect("operator")
	_, err := operator.Exec(s.Context(), "ALTER ROLE postgres NOLOGIN")
	s.must(err)
	return want{
		codes: []string{opscore.CauseDatabaseRefused}, evidence: []string{"28000"}, remedy: byOperator, names: []string{"user"},
		undo: func() {
			_, err := operator.Exec(s.Context(), "ALTER ROLE postgres LOGIN")
			s.must(err)
		},
	}
}

func schemaRenamed(s *scene) want {
	s.busy(4)
	rename := func(from, to string) {
		_, err := s.watcher().Exec(s.Context(), "ALTER SCHEMA "+from+" RENAME TO "+to)
		s.must(err)
	}
	rename("opscore", "old")
	return want{
		codes: []string{opscore.CauseDatabaseSchema}, evidence: []string{"opscore"}, remedy: byOperator, names: []string{"schema opscore"},
		undo: func() { rename("old", "opscore") },
	}
}

func schemaNewer(s *scene) want {
	s.busy(4)
	_, err := s.watcher().Exec(s.Context(), "INSERT INTO opscore.version (version_id, is_applied) SELECT 99, true")
	s.must(err)
	return want{
		codes: []string{opscore.CauseDatabaseSchema}, evidence: []string{"99"}, remedy: byOperator, names: []string{"newer"},
		undo: func() {
			_, err := s.watcher().Exec(s.Context(), "DELETE FROM opscore.version WHERE version_id = 99")
			s.must(err)
		},
	}
}

// cutOffFromDatabase: only the worker cannot reach the database.
func cutOffFromDatabase(s *scene) want {
	config := s.watcher().Config()
	p := nodes.NewProxy(s.T, fmt.Sprintf("%s:%d", config.Host, config.Port))
	w := s.busy(4, "--database", p.URL(s.database), "--lease", "6s")
	p.Blackhole()
	s.until("a silent worker", func() bool {
		workers, err := s.store.Workers(s.Context(), 0)
		s.must(err)
		return time.Since(workers[0].LastBeat) > 4*time.Second
	})
	return want{
		codes: []string{opscore.CauseWorkerSilent}, evidence: []string{w.info.ID.String(), w.pid()}, remedy: byOperator, names: []string{"process " + w.pid()},
		undo: p.Heal,
	}
}

// anotherSchema: the worker works in another schema of the same database.
func anotherSchema(s *scene) want {
	s.must(postgres.Migrate(s.Context(), s.database, postgres.Options{Schema: "staging"}))
	w := s.worker("--schema", "staging")
	s.submit()
	return want{
		codes: []string{opscore.CauseWorkerUnregistered, opscore.CauseNoWorker}, evidence: []string{w.pid(), "staging"}, remedy: byOperator,
		names: []string{"process " + w.pid()},
		undo:  func() { s.worker() },
	}
}

// statementsCutOff: somebody meant well with a timeout for all that the role does, in milliseconds.
func statementsCutOff(s *scene) want {
	set := func(how string) {
		_, err := s.watcher().Exec(s.Context(), how)
		s.must(err)
	}
	s.busy(4)
	set("ALTER ROLE postgres SET statement_timeout = 2")
	return want{
		codes: []string{opscore.CauseDatabaseTimeout}, evidence: []string{"statement_timeout", "2ms"}, remedy: byOperator, names: []string{"statement_timeout"},
		undo: func() { set("ALTER ROLE postgres RESET statement_timeout") },
	}
}

func databaseFrozen(s *scene) want {
	s.busy(4)
	s.must(s.server.Pause())
	return want{
		codes: []string{opscore.CauseDatabaseFrozen}, evidence: []string{s.server.Addr()}, remedy: byOperator, names: []string{s.server.Addr()},
		undo: func() { s.must(s.server.Continue()) },
	}
}

// fileReplaced: the worker has the file open that was there before.
func fileReplaced(s *scene) want {
	w := s.worker()
	for _, end := range []string{"", "-wal", "-shm"} {
		s.must(os.Remove(s.path("tasks.db" + end)))
	}
	s.must(s.store.Close())
	s.keepIn(s.path("tasks.db"))
	s.submit()
	return want{
		codes: []string{opscore.CauseWorkerUnregistered, opscore.CauseNoWorker}, evidence: []string{w.pid(), s.path("tasks.db") + " (deleted)"},
		remedy: byOperator, names: []string{"process " + w.pid()},
		undo: func() {
			w.kill()
			s.worker()
		},
	}
}

// fileLocked: a program has begun to write into the file, and forgotten it.
func fileLocked(s *scene) want {
	s.busy(4)
	db, err := sql.Open("sqlite", "file:"+s.path("tasks.db"))
	s.must(err)
	db.SetMaxOpenConns(1)
	_, err = db.ExecContext(s.Context(), "BEGIN IMMEDIATE")
	s.must(err)
	return want{
		codes: []string{opscore.CauseTableLocked}, evidence: []string{fmt.Sprint(os.Getpid())},
		remedy: byOperator, names: []string{fmt.Sprintf("process %d", os.Getpid())},
		undo: func() {
			_, err := db.ExecContext(s.Context(), "ROLLBACK")
			s.must(errors.Join(err, db.Close()))
		},
	}
}

// workerDraining: the worker was told to stop and waits for its tasks.
func workerDraining(s *scene) want {
	w := s.worker("--slots", "4")
	s.occupy(4)
	w.signal(syscall.SIGTERM)
	s.until("a worker that stops", func() bool {
		workers, err := s.store.Workers(s.Context(), 0)
		s.must(err)
		return workers[0].State == opscore.WorkerDraining
	})
	s.submit()
	return want{
		codes: []string{opscore.CauseWorkerNotReady}, evidence: []string{w.info.ID.String()}, remedy: byOperator, names: []string{"start"},
		undo: func() { s.worker() },
	}
}

// onlyWorkerKilled: there is nobody who could take the task over.
func onlyWorkerKilled(s *scene) want {
	w := s.worker("--lease", "6s")
	s.submitActor("wait")
	s.await("the target to run", func(t opscore.Task) bool { return t.State == opscore.Running })
	w.kill()
	s.openGate()
	return want{codes: []string{opscore.CauseWorkerDied, opscore.CauseNoWorker}, evidence: []string{w.pid()}, remedy: byCommand}
}

// noDescriptors: the worker has used up the files that it may open.
func noDescriptors(s *scene) want {
	w := s.worker()
	entries, err := os.ReadDir("/proc/" + w.pid() + "/fd")
	s.must(err)
	s.must(unix.Prlimit(w.cmd.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(len(entries)), Max: 1024}, nil))
	s.submit()
	s.await("a failed attempt", func(t opscore.Task) bool { return t.State == opscore.Pending && t.Attempt > 0 })
	return want{codes: []string{opscore.CauseRetryBackoff}, evidence: []string{"too many open files"}, remedy: optional, lasts: true}
}

func queueInCapitals(s *scene) want {
	s.worker()
	s.submit(opscore.Queue("Default"))
	return want{codes: []string{opscore.CauseQueueNotListened}, evidence: []string{"queues=[default]"}, remedy: byCommand}
}
