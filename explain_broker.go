package opscore

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// broker says what is wrong on the way of tickets to the workers of a queue; with whole, also what concerns all queues.
func (v *view) broker(queue string, whole bool) (causes []Cause) {
	if v.Broker == nil {
		return nil
	}
	if whole {
		elsewhere := v.otherBrokers(queue)
		causes = append(v.connection(), elsewhere...)
		if len(elsewhere) == 0 { // or the epoch that the database expects is that of the broker there
			causes = append(causes, v.stateLost()...)
		}
	}
	for _, q := range v.Broker.Queues {
		if q.Queue == queue || v.Task == nil && whole && queue == "" {
			causes = append(causes, v.brokerQueue(&q)...)
		}
	}
	return causes
}

// connection says why a fresh connection to the broker comes no further, or what it was told.
func (v *view) connection() (causes []Cause) {
	b := v.Broker
	at := cmp.Or(b.Endpoint.Address, b.Endpoint.String(), "its address")
	about := func(c Cause) Cause {
		if b.Err != "" {
			c = c.with("rabbitmq", "error", b.Err)
		}
		return c.with("rabbitmq", "address", at).with("rabbitmq", "reached", b.Reached).with("rabbitmq", "virtual host", b.Endpoint.Name)
	}
	switch b.Reached {
	case BrokerNone:
		causes = append(causes, about(because(CauseBrokerUnreachable, "RabbitMQ at %s takes no connections: %s", at, b.Err)).fix(safe(act("start RabbitMQ at %s", at))))
	case BrokerTCP:
		causes = append(causes, about(because(CauseBrokerTLS, "the TLS handshake with RabbitMQ at %s fails: %s", at, b.Err)).
			fix(act("mend the certificate of %s, or the scheme and port of the broker's URL", at)))
	case BrokerTLS:
		causes = append(causes, about(because(CauseBrokerFrozen, "%s takes connections, but does not speak AMQP: %s", at, b.Err)).
			fix(act("continue or restart RabbitMQ at %s: its process is stopped or overloaded", at),
				act("or mend the broker's URL, if it is another service that listens at %s", at)))
	case BrokerHandshake:
		causes = append(causes, about(because(CauseBrokerLoginRefused, "RabbitMQ at %s does not take the user or its password: %s", at, b.Err)).
			with("rabbitmq", "user", b.User).
			fix(act("give user %s of RabbitMQ at %s the password that the broker's URL has (rabbitmqctl change_password), or mend the URL", b.user(), at)))
	case BrokerLogin:
		causes = append(causes, about(because(CauseBrokerVhostRefused, "RabbitMQ at %s lets the user in, but not into virtual host %s: %s", at, b.Endpoint.Name, b.Err)).
			with("rabbitmq", "user", b.User).fix(b.letIn()...))
	case BrokerOpen:
	}
	if reason := cmp.Or(b.Blocked, strings.Join(b.Alarms, ", ")); reason != "" {
		c := because(CauseBrokerAlarm, "RabbitMQ at %s blocks whoever publishes: %s; what waits there is still delivered", at, reason)
		if b.Blocked != "" {
			c = c.with("rabbitmq", "connection.blocked", b.Blocked)
		}
		for _, a := range b.Alarms {
			c = c.with("management", "alarm", a)
		}
		causes = append(causes, about(c).fix(act("free what RabbitMQ at %s is low on (%s), or raise its limit", at, reason)))
	}
	return causes
}

// stateLost says that the broker is not the one, or not in the state, that the database was connected to last.
func (v *view) stateLost() []Cause {
	b := v.Broker
	if b.Reached != BrokerOpen || b.Expected == (ID{}) || b.Epoch == b.Expected {
		return nil
	}
	epoch := "none"
	if b.Epoch != (ID{}) {
		epoch = b.Epoch.String()
	}
	at := cmp.Or(b.Endpoint.Address, b.Endpoint.String(), "its address")
	return []Cause{because(CauseBrokerStateLost, "RabbitMQ at %s lost its state: the database expects epoch %s, and it has %s", at, b.Expected, epoch).
		with(SourceStore, "epoch", b.Expected).with("rabbitmq", "epoch", epoch).
		with("rabbitmq", "address", at).with("rabbitmq", "virtual host", b.Endpoint.Name)}
}

// user names whom the broker was asked as.
func (b *BrokerFacts) user() string { return cmp.Or(b.User, "that the error names") }

// permit gives the user of the broker's URL all permissions in its virtual host.
func (b *BrokerFacts) permit() Remedy {
	if b.User == "" {
		return act("give the user that the error names permissions for virtual host %s: rabbitmqctl set_permissions", b.Endpoint.Name)
	}
	return command("rabbitmqctl set_permissions -p %s %s '.*' '.*' '.*'", b.Endpoint.Name, b.User)
}

// letIn is what lets the user into the virtual host, by the broker's words; in these, names that anybody has chosen may be.
func (b *BrokerFacts) letIn() []Remedy {
	words := strings.NewReplacer("'"+b.Endpoint.Name+"'", "", "'"+b.User+"'", "", "vhost "+b.Endpoint.Name+" ", "").Replace(b.Err)
	switch vhost := b.Endpoint.Name; {
	case strings.Contains(words, "limit"):
		return []Remedy{act("raise the limit of connections for virtual host %s or user %s (rabbitmqctl list_vhost_limits, list_user_limits), or end some", vhost, b.user())}
	case strings.Contains(words, "is down"):
		return []Remedy{command("rabbitmqctl restart_vhost -p %s", vhost)}
	case strings.Contains(words, "not found") && b.User != "":
		return []Remedy{
			command("rabbitmqctl add_vhost %s && rabbitmqctl set_permissions -p %s %s '.*' '.*' '.*'", vhost, vhost, b.User),
			act("or mend the broker's URL, if it is another virtual host than %s that is meant", vhost),
		}
	}
	return []Remedy{b.permit()}
}

// otherBrokers names the live workers that are connected to another virtual host.
func (v *view) otherBrokers(queue string) (causes []Cause) {
	for i := range v.Workers {
		w := &v.Workers[i]
		if !w.Live || queue != "" && !slices.Contains(w.Queues, queue) {
			continue
		}
		for _, e := range w.Endpoints {
			here := v.Broker.Endpoint
			elsewhere := e.Name != here.Name || e.Instance != "" && here.Instance != "" && e.Instance != here.Instance
			if e.Kind == "rabbitmq" && here.Name != "" && elsewhere {
				causes = append(causes, because(CauseWorkerOtherBroker, "tickets go to virtual host %s of %s, but %s is connected to virtual host %s of %s",
					here.Name, brokerName(here), w.name(), e.Name, brokerName(e)).
					with(SourceStore, "worker", w.ID).with(SourceStore, "its virtual host", e.Name).with(SourceStore, "its broker", brokerName(e)).
					with("rabbitmq", "virtual host", here.Name).with("rabbitmq", "broker", brokerName(here)).
					fix(act("start process %d on host %s again with the URL of virtual host %s of %s", w.PID, w.Host, here.Name, brokerName(here))))
			}
		}
	}
	return causes
}

// brokerName names a broker by its address, and by what it calls itself.
func brokerName(e Endpoint) string {
	if e.Instance == "" {
		return e.Address
	}
	return e.Address + " (" + e.Instance + ")"
}

// brokerQueue says what is wrong with one queue of the broker.
func (v *view) brokerQueue(q *BrokerQueue) (causes []Cause) {
	host := v.Broker.Endpoint.Name
	about := func(c Cause) Cause { return c.with("rabbitmq", "queue", q.Name).with("rabbitmq", "virtual host", host) }
	if q.Aside > 0 {
		causes = append(causes, about(because(CauseBrokerMessagesAside, "%s of queue %s are in queue %s since a migration was interrupted: nobody takes them there; once nobody uses these queues, migrate it again",
			countOf(q.Aside, "message"), q.Name, q.AsideIn).with("rabbitmq", "queue aside", q.AsideIn).with("rabbitmq", "messages", q.Aside)).
			fix(command("opscore queue migrate --stopped %s", q.Queue)))
	}
	listened := slices.ContainsFunc(v.Workers, func(w WorkerInfo) bool { return w.Live && w.hears() && slices.Contains(w.Queues, q.Queue) })
	if !q.Exists && q.Err == "" {
		if v.Broker.Reached != BrokerOpen || v.Task == nil && !listened {
			return causes // it is made by who needs it first
		}
		return append(causes, about(because(CauseBrokerQueueMissing, "virtual host %s of %s has no queue %s: tickets for it are returned or dropped",
			host, v.Broker.Endpoint.Address, q.Name).with("rabbitmq", "exists", q.Exists)).fix(safe(command("opscore queue ensure %s", q.Queue))))
	}
	if q.Mismatch != "" {
		causes = append(causes, about(because(CauseBrokerQueueMismatch, "queue %s has other arguments than are wanted: %s", q.Name, q.Mismatch).
			with("rabbitmq", "mismatch", q.Mismatch)).fix(safe(command("opscore queue migrate %s", q.Queue))))
	}
	if len(q.Refused) > 0 {
		causes = append(causes, about(because(CauseBrokerPermission, "a fresh connection may not use queue %s: %s; running ones will not survive a reconnect",
			q.Name, strings.Join(q.Refused, "; ")).with("rabbitmq", "refused", strings.Join(q.Refused, "; "))).
			with("rabbitmq", "user", v.Broker.User).fix(v.Broker.permit()))
	} else if len(q.Members) > 0 && len(q.Online) <= len(q.Members)/2 {
		down := slices.DeleteFunc(slices.Clone(q.Members), func(n string) bool { return slices.Contains(q.Online, n) })
		causes = append(causes, about(because(CauseBrokerQueueUnusable, "queue %s takes and gives nothing: it needs most of its %s, and %d run",
			q.Name, countOf(len(q.Members), "node"), len(q.Online)).with("management", "nodes down", strings.Join(down, ", "))).
			fix(safe(act("start the RabbitMQ nodes that are down: %s", strings.Join(down, ", ")))))
	} else if q.Reply != 0 {
		causes = append(causes, about(because(CauseBrokerQueueUnusable, "queue %s cannot be used: %s", q.Name, q.Err).with("rabbitmq", "error", q.Err)).
			fix(v.freeQueue(q)))
	} else if q.Err != "" {
		causes = append(causes, about(because(CauseSourceSilent, "queue %s cannot be looked at: %s", q.Name, q.Err)).with("rabbitmq", "error", q.Err))
	}
	if limits, drops := dropping(q); drops {
		causes = append(causes, about(because(CauseBrokerPolicyLimits, "%s limits queue %s, in which %s: %s; it drops tickets or refuses them",
			q.Policy.name(), q.Name, map[bool]string{true: "1 waits", false: fmt.Sprint(q.Messages) + " wait"}[q.Messages == 1], limits).
			with("management", "policy", q.Policy.name()).with("management", "definition", limits).with("rabbitmq", "messages", q.Messages)).
			fix(q.Policy.lift(host)))
	}
	causes = append(causes, v.consumers(q)...)
	if q.Adopted {
		return causes
	}
	return append(causes, v.ticket(q)...)
}

// freeQueue is what makes a queue usable to which the broker refuses us, by its words.
func (v *view) freeQueue(q *BrokerQueue) Remedy {
	const (
		resourceLocked = 405
		accessRefused  = 403
	)
	switch host := v.Broker.Endpoint.Name; q.Reply {
	case resourceLocked:
		return act("end the connection that has queue %s for itself (rabbitmqctl list_queues -p %s name owner_pid), or let it use another name", q.Name, host)
	case accessRefused:
		return act("stop the consumer that has queue %s for itself (rabbitmqctl list_consumers -p %s), or let it consume with others", q.Name, host)
	}
	return act("mend what RabbitMQ says of queue %s in virtual host %s: %s", q.Name, v.Broker.Endpoint.Name, q.Err)
}

// hears reports whether a worker gets tickets.
func (w *WorkerInfo) hears() bool {
	return slices.ContainsFunc(w.Endpoints, func(e Endpoint) bool { return e.Kind == "rabbitmq" })
}

// name names a policy for people.
func (p *BrokerPolicy) name() string {
	switch {
	case p.Operator == "":
		return "policy " + p.Name
	case p.Name == "":
		return "operator policy " + p.Operator
	}
	return "policy " + p.Name + " with operator policy " + p.Operator
}

// lift is what ends a policy.
func (p *BrokerPolicy) lift(vhost string) Remedy {
	switch {
	case p.Operator == "":
		return command("rabbitmqctl clear_policy -p %s %s", vhost, p.Name)
	case p.Name == "":
		return command("rabbitmqctl clear_operator_policy -p %s %s", vhost, p.Operator)
	}
	return act("take the limits out of policy %s or operator policy %s of virtual host %s, or clear it", p.Name, p.Operator, vhost)
}

// A policy's limit of tickets below which it is reached now and then in any deployment. A message is hardly smaller than 100 bytes.
const (
	fewTickets     = 100
	fewTicketBytes = 100 * fewTickets
)

// dropping returns what of a policy drops or refuses messages, and whether it does: its limit is reached, or so low that it will be. A ticket that is older
// than TicketFor is of no use any more.
func dropping(q *BrokerQueue) (limits string, drops bool) {
	if q.Policy == nil {
		return "", false
	}
	var all []string
	for _, k := range slices.Sorted(maps.Keys(q.Policy.Definition)) {
		limit, err := strconv.ParseFloat(fmt.Sprint(q.Policy.Definition[k]), 64)
		known := err == nil
		switch k {
		case "max-length":
			drops = drops || known && (limit < fewTickets || float64(q.Messages) >= limit)
		case "max-length-bytes":
			drops = drops || known && limit < fewTicketBytes
		case "message-ttl", "expires":
			drops = drops || known && limit < float64(TicketFor.Milliseconds())
		case "overflow", "delivery-limit":
		default:
			continue
		}
		all = append(all, fmt.Sprintf("%s=%v", k, q.Policy.Definition[k]))
	}
	return strings.Join(all, " "), drops
}

// consumers names those of a queue that are no workers of this database.
func (v *view) consumers(q *BrokerQueue) (causes []Cause) {
	if !v.storeAnswered() {
		return nil
	}
	about := func(c Cause, k *Consumer) Cause {
		return c.with("management", "consumer", fmt.Sprintf("tag %s from %s, user %s, ack_required=%t, prefetch %d, unacked %d", k.Tag, k.Peer, k.User, !k.AutoAck, k.Prefetch, k.Unacked)).
			with("management", "its worker", fmt.Sprintf("%s on %s, process %d, build %s", k.Worker, k.Host, k.PID, k.Build)).
			with("rabbitmq", "queue", q.Name).with("rabbitmq", "consumers", q.Consumers)
	}
	ours := 0
	for i := range v.Workers {
		if w := &v.Workers[i]; w.State != WorkerGone && slices.Contains(w.Queues, q.Queue) {
			ours++
		}
	}
	for i := range q.Consuming {
		k := &q.Consuming[i]
		nameless := k.Conn+k.Peer == "" // as with AMQP 1.0, or for a moment
		end := act("close connection %s of the consumer, in the management interface or with rabbitmqctl close_connection", cmp.Or(k.Conn, k.Peer))
		switch { // anybody may say that it is a process: it has to be seen
		case v.runsHere(k):
			end = command("kill %s", k.PID)
		case nameless:
			end = act("stop the consumer %s of queue %s, which rabbitmqctl list_consumers shows: the management API names no connection of it", k.Tag, q.Name)
		case k.PID > 0:
			end = act("on host %s, end process %d if it is a worker of opscore, or close connection %s with rabbitmqctl close_connection", k.Host, k.PID, cmp.Or(k.Conn, k.Peer))
		}
		switch {
		case k.Instance != "" && v.Store.Instance != "" && k.Instance != v.Store.Instance:
			causes = append(causes, about(because(CauseWorkerOtherDatabase,
				"worker %s (%s, process %d) consumes from queue %s, but works for database %s; these tasks are in %s",
				k.Worker, k.Host, k.PID, q.Name, k.Instance, v.Store.Instance), k).
				with("management", "its database", k.Instance).with(SourceStore, "instance", v.Store.Instance).
				fix(act("give process %d on host %s the database URL of this deployment, or a virtual host of its own", k.PID, k.Host)))
		case !q.Adopted && !v.registered(k) && (!nameless || q.Consumers > ours):
			who := ""
			if k.PID > 0 {
				who = fmt.Sprintf(", process %d on %s, build %s", k.PID, k.Host, k.Build)
			}
			causes = append(causes, about(because(CauseForeignConsumer, "consumer %s from %s%s takes messages of queue %s and is no registered worker (ack_required=%t, %d unacked)",
				k.Tag, cmp.Or(k.Peer, k.Conn, "a connection without a name"), who, q.Name, !k.AutoAck, k.Unacked), k).fix(end))
		}
	}
	if len(q.Consuming) == 0 && q.Consumers > ours && !q.Adopted {
		causes = append(causes, because(CauseForeignConsumer, "queue %s has %s, but %d registered here listen to it: somebody else takes its messages",
			q.Name, countOf(q.Consumers, "consumer"), ours).
			with("rabbitmq", "queue", q.Name).with("rabbitmq", "consumers", q.Consumers).with(SourceStore, "registered workers", ours).
			fix(safe(command("rabbitmqctl list_consumers -p %s", v.Broker.Endpoint.Name)), act("stop the consumer of queue %s that is no worker of this database", q.Name)))
	}
	return causes
}

// runsHere reports whether a consumer is a process of opscore that this host has.
func (v *view) runsHere(k *Consumer) bool {
	return v.Host != nil && v.Host.Name == k.Host &&
		slices.ContainsFunc(v.Host.Processes, func(p ProcessFacts) bool { return p.PID == k.PID && p.Exists })
}

// registered reports whether a consumer is a worker that the store knows. One that lost its lease has a new id by now.
func (v *view) registered(k *Consumer) bool {
	return slices.ContainsFunc(v.Workers, func(w WorkerInfo) bool {
		return w.State != WorkerGone && (w.ID == k.Worker && k.Worker != ID{} || k.PID > 0 && w.PID == k.PID && w.Host == k.Host)
	})
}

// ticket says what became of the task's ticket.
func (v *view) ticket(q *BrokerQueue) []Cause {
	if v.Ticket == nil || v.Task == nil || q.Err != "" {
		return nil
	}
	about := func(c Cause) Cause {
		return c.since(v.Ticket.At).with(SourceStore, "ticket", v.Ticket.ID).with(SourceStore, "published", moment(v.Ticket.At)).
			with("rabbitmq", "messages", q.Messages).with("rabbitmq", "consumers", q.Consumers).next(v.Ticket.At.Add(TicketFor + time.Second))
	}
	if q.Messages > 0 {
		return nil // it waits there, as far as is known
	}
	if held, is := v.ticketHeld(q); is {
		return []Cause{about(held)}
	}
	nobodyHas := v.Broker.Managed && q.Unacked == 0 || !v.Broker.Managed && q.Consumers == 0
	if v.At.Sub(v.Ticket.At) > TicketFor && nobodyHas {
		return []Cause{about(because(CauseTicketLost, "the ticket of task %s was published %s ago and is not in queue %s any more, and nobody has claimed the task: it was purged, dropped or expired",
			v.Task.ID, v.ago(v.Ticket.At), q.Name))}
	}
	return nil
}

// ticketHeld says that the task's ticket is with a worker that has no slot for it, or with one of several, if nobody else has tickets.
func (v *view) ticketHeld(q *BrokerQueue) (c Cause, held bool) {
	var names []string
	c = because(CauseTicketsHeld, "")
	for i := range q.Consuming {
		k := &q.Consuming[i]
		if k.Unacked == 0 {
			continue
		}
		w := v.worker(k.Worker)
		if w == nil || w.Slots > v.taken(w) {
			return c, false
		}
		names = append(names, w.name())
		c = c.with("management", "unacked by "+w.ID.String(), k.Unacked).with(SourceStore, "its slots taken", fmt.Sprintf("%d of %d", v.taken(w), w.Slots))
	}
	if len(names) == 0 {
		return c, false
	}
	said := because(CauseTicketsHeld, "the ticket of task %s is with %s, which has all of its slots taken", v.Task.ID, strings.Join(names, " or "))
	said.Evidence = c.Evidence
	return said, true
}
