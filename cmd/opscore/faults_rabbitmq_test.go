//go:build linux

package main

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
)

// broker is the scene's part of a RabbitMQ node: a virtual host and a user of its own, with the password in every URL.
type broker struct {
	*nodes.RabbitMQ
	scene       *scene
	vhost, user string
	vhosts      []string // that were made
}

// leave deletes what was made on a node that others use as well.
func (b *broker) leave() {
	for _, name := range b.vhosts {
		_, err := b.Eval(noContext(), fmt.Sprintf(`ok = rabbit_vhost:delete(<<"%s">>, <<"nobody">>)`, name))
		b.scene.must(err)
	}
}

// join makes them, and lets all processes of the scene that start from now on use them.
func (s *scene) join(node *nodes.RabbitMQ) {
	s.Helper()
	name := strings.ToLower(rand.Text()[:10])
	s.joinAs(node, "user-"+name, "vhost-"+name)
	s.broker.makeVhost(s.broker.vhost)
}

// joinAs is join with a user and a virtual host that there are.
func (s *scene) joinAs(node *nodes.RabbitMQ, user, vhost string) {
	s.Helper()
	s.broker = &broker{RabbitMQ: node, scene: s, vhost: vhost, user: user}
	s.broker.do("application:set_env(rabbit, collect_statistics_interval, 1000)") // what the management API shows is that old, not five seconds
	s.must(node.Tool(s.path("bin")))
	s.set("OPSCORE_BROKER_URL", s.broker.url())
	if at := node.Management(); at != "" && !*unmanaged {
		api, err := url.Parse(at)
		s.must(err)
		api.User = url.UserPassword(s.broker.user, canary)
		s.set("OPSCORE_BROKER_MANAGEMENT_URL", api.String())
	}
}

// makeVhost makes the user if there is none, and a virtual host in which it may do everything.
func (b *broker) makeVhost(name string) {
	b.scene.Helper()
	b.do(`case rabbit_auth_backend_internal:exists(<<"USER">>) of true -> ok; false ->
		ok = rabbit_auth_backend_internal:add_user(<<"USER">>, <<"%s">>, <<"USER">>), ok = rabbit_auth_backend_internal:set_tags(<<"USER">>, [administrator], <<"USER">>) end`, canary)
	b.do(`ok = rabbit_vhost:add(<<"%s">>, <<"USER">>)`, name)
	b.vhosts = append(b.vhosts, name)
	b.permit(name, ".*")
}

// permit sets what the user may do in a virtual host.
func (b *broker) permit(vhost, pattern string) {
	b.scene.Helper()
	b.do(`ok = rabbit_auth_backend_internal:set_permissions(<<"USER">>, <<"%[1]s">>, <<"%[2]s">>, <<"%[2]s">>, <<"%[2]s">>, <<"USER">>)`, vhost, pattern)
}

// do evaluates an Erlang expression, with the user's name in place of USER.
func (b *broker) do(expression string, args ...any) string {
	b.scene.Helper()
	out, err := b.Eval(b.scene.Context(), strings.ReplaceAll(fmt.Sprintf(expression, args...), "USER", b.user))
	b.scene.must(err)
	return out
}

func (b *broker) url() string { return b.urlOf(b.vhost) }

func (b *broker) urlOf(vhost string) string {
	return "amqp://" + b.user + ":" + canary + "@" + b.Addr() + "/" + url.PathEscape(vhost)
}

// policy sets a policy for all queues of tickets.
func (b *broker) policy(name, definition string) {
	b.scene.Helper()
	b.ctl("set_policy", "-p", b.vhost, name, `^opscore\.`, definition)
}

func (b *broker) ctl(args ...string) {
	b.scene.Helper()
	_, err := b.Ctl(b.scene.Context(), args...)
	b.scene.must(err)
}

// ticketQueue is the broker's queue for the tasks of a queue.
func ticketQueue(queue string) string { return "opscore." + queue }

// channel opens one on a connection of somebody who is not opscore.
func (b *broker) channel() *amqp.Channel {
	b.scene.Helper()
	conn, err := amqp.Dial(b.url())
	b.scene.must(err)
	b.scene.Cleanup(func() { _ = conn.Close() }) // it may be gone
	ch, err := conn.Channel()
	b.scene.must(err)
	return ch
}

// waiting counts what is ready in the queue of tickets and its consumers.
func (b *broker) waiting(queue string) (messages, consumers int, err error) {
	conn, err := amqp.Dial(b.url())
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = conn.Close() }()
	ch, err := conn.Channel()
	if err != nil {
		return 0, 0, err
	}
	q, err := ch.QueueDeclarePassive(ticketQueue(queue), true, false, false, false, nil)
	return q.Messages, q.Consumers, err
}

// managedQueue is a queue as the management API shows it, some seconds late.
type managedQueue struct {
	Policy    string `json:"policy"`
	Unacked   int    `json:"messages_unacknowledged"`
	Consumers []struct {
		Tag string `json:"consumer_tag"`
	} `json:"consumer_details"`
}

// awaitManaged waits until the management API shows a queue of tickets as it is.
func (b *broker) awaitManaged(queue, what string, is func(managedQueue) bool) {
	b.scene.Helper()
	at := b.Management() + "/api/queues/" + url.PathEscape(b.vhost) + "/" + url.PathEscape(ticketQueue(queue))
	b.scene.until(what+" in the management API", func() bool {
		r, err := http.NewRequestWithContext(b.scene.Context(), http.MethodGet, at, http.NoBody)
		b.scene.must(err)
		r.SetBasicAuth(b.user, canary)
		a, err := http.DefaultClient.Do(r)
		b.scene.must(err)
		defer a.Body.Close()
		var q managedQueue
		return a.StatusCode == http.StatusOK && json.NewDecoder(a.Body).Decode(&q) == nil && is(q)
	})
}

// awaitPolicy waits until a policy is in effect, and known.
func (b *broker) awaitPolicy(queue, name string) {
	b.scene.Helper()
	b.awaitManaged(queue, "policy "+name, func(q managedQueue) bool { return q.Policy == name })
}

// awaitConsumers waits until a queue has so many consumers, and they are known.
func (b *broker) awaitConsumers(queue string, n int) {
	b.scene.Helper()
	b.awaitManaged(queue, "a consumer", func(q managedQueue) bool { return len(q.Consumers) == n })
}

// awaitTickets waits until the target's ticket is out, and all that are out wait in the broker: nobody has them.
func (b *broker) awaitTickets(queue string) {
	s := b.scene
	s.Helper()
	s.until("tickets to wait in the broker", func() bool {
		n, consumers, err := b.waiting(queue)
		return err == nil && consumers == 0 && n > 0 && n == s.out() && s.isOut(s.target)
	})
}

// out counts the tickets that are out. Each names one task, or several.
func (s *scene) out() (n int) {
	s.Helper()
	s.must(s.watcher().QueryRow(s.Context(), "SELECT count(*) FROM opscore.ticket").Scan(&n))
	return n
}

// isOut reports whether a ticket names the task.
func (s *scene) isOut(id opscore.ID) (out bool) {
	s.Helper()
	conn := s.watcher()
	s.must(conn.QueryRow(s.Context(), "SELECT EXISTS (SELECT FROM opscore.ticket WHERE $1 = ANY (tasks))", id).Scan(&out))
	return out
}

// ticketAge is for how long the target's ticket has been out; zero if it is not.
func (s *scene) ticketAge() (age time.Duration) {
	s.Helper()
	var seconds float64
	s.must(s.watcher().QueryRow(s.Context(),
		"SELECT coalesce(max(extract(epoch FROM clock_timestamp() - at)), 0)::float8 FROM opscore.ticket WHERE $1 = ANY (tasks)", s.target).Scan(&seconds))
	return time.Duration(seconds * float64(time.Second))
}
