package rabbitmq_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/internal/nodes"
	"github.com/opscore/opscore/rabbitmq"
)

// suspect is a node that a test may do anything to, with its management API, a virtual host and a user whose password must never be seen.
type suspect struct {
	*rig
	node *nodes.RabbitMQ
}

const canary = "s3cr3t-c4n4ry"

func newSuspect(t *testing.T, n *nodes.RabbitMQ) *suspect {
	t.Helper()
	s := &suspect{node: n}
	s.rig = newRig(t, s.as("app", "app"))
	s.addUser()
	return s
}

// addUser makes what the test's user needs.
func (s *suspect) addUser() {
	s.eval(`ok = rabbit_auth_backend_internal:add_user(<<"app">>, <<"%s">>, <<"t">>), ok = rabbit_auth_backend_internal:set_tags(<<"app">>, [monitoring], <<"t">>)`, canary)
	s.eval(`ok = rabbit_vhost:add(<<"app">>, <<"t">>)`)
	s.permit(".*", ".*", ".*")
}

func (s *suspect) as(user, vhost string) string {
	return "amqp://" + user + ":" + canary + "@" + s.node.Addr() + "/" + vhost
}

func (s *suspect) eval(format string, args ...any) string {
	s.Helper()
	out, err := s.node.Eval(s.Context(), fmt.Sprintf(format, args...))
	if err != nil {
		s.Fatal(err)
	}
	return out
}

// permit sets what the user may configure, write and read.
func (s *suspect) permit(configure, write, read string) {
	s.Helper()
	s.eval(`ok = rabbit_auth_backend_internal:set_permissions(<<"app">>, <<"app">>, <<"%s">>, <<"%s">>, <<"%s">>, <<"t">>)`, configure, write, read)
}

// contents is what waits in each queue, and how many consume.
func (s *suspect) contents() (text string) {
	names := s.eval(`lists:sort([lists:flatten(rabbit_misc:rs(N)) || V <- rabbit_vhost:list_names(), N <- rabbit_amqqueue:list_names(V)])`)
	for part := range strings.SplitSeq(names, "'") {
		if strings.HasPrefix(part, "opscore") {
			q, err := s.channel().QueueDeclarePassive(part, true, false, false, false, nil)
			text += fmt.Sprintln(q, err)
		}
	}
	return names + text
}

// ask gathers the facts, and checks what holds for each inquiry.
func (s *suspect) ask(change ...func(*rabbitmq.Inquiry)) *opscore.BrokerFacts {
	s.Helper()
	f := s.gather(&opscore.Facts{}, change...)
	return f.Broker
}

func (s *suspect) gather(known *opscore.Facts, change ...func(*rabbitmq.Inquiry)) opscore.Facts {
	s.Helper()
	q := rabbitmq.Inquiry{URLs: s.at, Management: s.node.Management(), Queues: []string{"orders"}, Deployment: s.store.Deployment}
	for _, c := range change {
		c(&q)
	}
	ctx, cancel := context.WithTimeout(s.Context(), time.Second)
	defer cancel()
	began := time.Now()
	f, err := q.Gather(ctx, known)
	if took := time.Since(began); err != nil || took > time.Second {
		s.Fatalf("after %v: %v", took, err)
	}
	text, err := json.Marshal(f)
	if err != nil || strings.Contains(string(text), canary) {
		s.Errorf("%v; the facts hold a password: %s", err, text)
	}
	if names := []string{f.Sources[0].Source, f.Sources[len(f.Sources)-1].Source}; names[0] != "rabbitmq" || q.Management != "" && names[1] != "management" {
		s.Errorf("the sources are %+v", f.Sources)
	}
	return f
}

func (s *suspect) queue(change ...func(*rabbitmq.Inquiry)) opscore.BrokerQueue {
	s.Helper()
	b := s.ask(change...)
	if len(b.Queues) != 1 || b.Queues[0].Name != "opscore.orders" || b.Queues[0].Queue != "orders" {
		s.Fatalf("the facts are %+v, want one queue", b)
	}
	return b.Queues[0]
}

// declare makes the queue of the tickets as opscore does.
func (s *suspect) declare() *amqp.Channel {
	s.Helper()
	ch := s.channel()
	_, err := ch.QueueDeclare("opscore.orders", true, false, false, false,
		amqp.Table{"x-queue-type": "quorum", "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "opscore-dead"})
	if err != nil {
		s.Fatal(err)
	}
	return ch
}

func (s *suspect) publish(ch *amqp.Channel, n int) {
	s.Helper()
	if err := ch.Confirm(false); err != nil {
		s.Fatal(err)
	}
	for i := range n {
		c, err := ch.PublishWithDeferredConfirmWithContext(s.Context(), "", "opscore.orders", true, false, amqp.Publishing{MessageId: fmt.Sprint(i), Body: []byte("x")})
		if err != nil {
			s.Fatal(err)
		}
		c.Wait()
	}
}

// drop deletes the queue of the tickets, with whatever uses it.
func (s *suspect) drop() {
	s.Helper()
	if _, err := s.channel().QueueDelete("opscore.orders", false, false, false); err != nil {
		s.Fatal(err)
	}
}

// TestAnInquiryFindsWhatIsTheMatter injects one thing after the other into one broker, and looks for it in the facts.
func TestAnInquiryFindsWhatIsTheMatter(t *testing.T) {
	s := newSuspect(t, nodes.OwnManagedRabbitMQ(t))
	for _, c := range []struct {
		name string
		do   func(*testing.T, *suspect)
	}{
		{"a queue is missing", missingQueue},
		{"nothing is moved and nothing is left behind", nothingMoves},
		{"other arguments", otherArguments},
		{"a queue is purged", purgedQueue},
		{"policies", policies},
		{"the user, the virtual host and the port", refusals},
		{"permissions", permissions},
		{"consumers that are not ours", strangers},
		{"workers of two databases", workers},
		{"alarms", alarms},
		{"only what the management API is asked for fails", noManagement},
		{"the management API writes words for numbers, and consumers without channels", oddAnswers},
		{"there are more queues than there is time for", manyQueues},
		{"permissions of many queues", manyPermissions},
		{"whether it takes messages is not known", neverAnswered},
		{"what is adopted", adopted},
		{"its state is lost", lostState},
		{"it is frozen", frozen},
		{"it is down", down},
	} {
		t.Run(c.name, func(t *testing.T) {
			inner := *s
			inner.rig = &rig{TB: t, url: s.url, at: s.at, store: s.store, client: s.client, log: s.log, changed: make(chan struct{})}
			c.do(t, &inner)
		})
	}
}

func missingQueue(t *testing.T, s *suspect) {
	b := s.ask()
	want := opscore.Endpoint{Kind: "rabbitmq", Address: s.node.Addr(), Name: "app", Instance: strings.Trim(s.eval(`binary_to_list(rabbit_nodes:cluster_name())`), `"`)}
	if b.Reached != opscore.BrokerOpen || b.Err != "" || b.Endpoint != want || b.User != "app" || !b.Managed {
		t.Errorf("the facts are %+v, want an open connection to %+v", b, want)
	}
	if q := s.queue(); q.Exists || q.Err != "" || len(q.Refused) > 0 {
		t.Errorf("the queue is %+v, want that it does not exist", q)
	}
}

func nothingMoves(t *testing.T, s *suspect) {
	ch := s.declare()
	s.publish(ch, 3)
	before := s.contents()
	for range 3 {
		q := s.queue()
		if !q.Exists || q.Err != "" || q.Mismatch != "" || len(q.Refused) > 0 || q.Messages != 3 || q.Consumers != 0 {
			t.Errorf("the queue is %+v, want 3 messages and nothing wrong", q)
		}
	}
	if after := s.contents(); after != before {
		t.Errorf("the queues are\n%s\nbefore they were\n%s", after, before)
	}
	for i := range 3 {
		if m, ok, err := ch.Get("opscore.orders", true); err != nil || !ok || m.Redelivered || m.MessageId != fmt.Sprint(i) {
			t.Errorf("message %d is %v, %+v, %v; want it as it was published", i, ok, m, err)
		}
	}
	s.until("our connections are closed", func() bool {
		return !strings.Contains(s.eval(`[rabbit_networking:connection_info(P, [client_properties]) || P <- rabbit_networking:connections()]`), "opscore explain")
	})
	s.drop()
}

func otherArguments(t *testing.T, s *suspect) {
	_, err := s.channel().QueueDeclare("opscore.orders", true, false, false, false, amqp.Table{
		"x-max-priority": int32(10), "x-queue-type": "classic", "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "opscore-dead",
	})
	check(t, err)
	q := s.queue(func(q *rabbitmq.Inquiry) { q.Options.Classic = true })
	if want := "406 PRECONDITION_FAILED - inequivalent arg 'x-max-priority' for queue 'opscore.orders' in vhost 'app': received none but current is the value '10' of type 'signedint'"; q.Mismatch != want {
		t.Errorf("mismatch %q, want %q", q.Mismatch, want)
	}
	if q := s.queue(); !strings.Contains(q.Mismatch, "x-queue-type") && !strings.Contains(q.Mismatch, "x-max-priority") || !q.Exists {
		t.Errorf("the queue is %+v, want that it is another one", q)
	}
	s.drop()
}

func purgedQueue(t *testing.T, s *suspect) {
	ch := s.declare()
	s.publish(ch, 5)
	if q := s.queue(); q.Messages != 5 {
		t.Errorf("there are %d messages, want 5", q.Messages)
	}
	_, err := ch.QueuePurge("opscore.orders", false)
	check(t, err)
	if q := s.queue(); q.Messages != 0 || !q.Exists {
		t.Errorf("there are %d messages after a purge, want 0", q.Messages)
	}
	s.drop()
}

func policies(t *testing.T, s *suspect) {
	ch := s.declare()
	s.publish(ch, 5)
	for key, value := range map[string]int{"max-length": 3, "message-ttl": 500} {
		s.eval(`rabbit_policy:set(<<"app">>, <<"short">>, <<"^opscore">>, [{<<"%s">>, %d}], 0, <<"queues">>, <<"t">>)`, key, value)
		var q opscore.BrokerQueue
		s.until("policy "+key+" is seen", func() bool {
			q = s.queue()
			return q.Policy != nil && q.Policy.Definition[key] != nil
		})
		if q.Policy.Name != "short" || fmt.Sprint(q.Policy.Definition) != fmt.Sprintf("map[%s:%d]", key, value) || key == "max-length" && q.Messages != 3 {
			t.Errorf("%s: %+v, policy %+v", key, q, q.Policy)
		}
	}
	s.eval(`rabbit_policy:delete(<<"app">>, <<"short">>, <<"t">>)`)
	s.drop()
}

func refusals(t *testing.T, s *suspect) {
	at := func(url string) func(*rabbitmq.Inquiry) {
		return func(q *rabbitmq.Inquiry) { q.URLs, q.Management = url, "" }
	}
	s.eval(`ok = rabbit_vhost:add(<<"other">>, <<"t">>)`)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	check(t, err)
	go func() {
		for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
			_, _ = conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			_ = conn.Close()
		}
	}()
	defer l.Close()
	for _, c := range []struct {
		url     string
		reached opscore.BrokerStep
		says    string
	}{
		{strings.Replace(s.at, canary, canary+"x", 1), opscore.BrokerHandshake, "403 ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details see the broker logfile. (user app)"},
		{s.as("nobody", "app"), opscore.BrokerHandshake, "(user nobody)"},
		{s.as("app", "missing"), opscore.BrokerLogin, "530 NOT_ALLOWED - vhost missing not found"},
		{s.as("app", "other"), opscore.BrokerLogin, "530 NOT_ALLOWED - access to vhost 'other' refused for user 'app'"},
		{"amqp://app:" + canary + "@127.0.0.1:1/app", opscore.BrokerNone, "connection refused"},
		{"amqp://app:" + canary + "@" + l.Addr().String() + "/app", opscore.BrokerTLS, ""},
		{strings.Replace(s.at, "amqp:", "amqps:", 1), opscore.BrokerTCP, "tls"},
		{"amqp://app:" + canary + "@127.0.0.1:1/app," + s.at, opscore.BrokerOpen, ""},
	} {
		b := s.ask(at(c.url))
		if b.Reached != c.reached || !strings.Contains(b.Err, c.says) || (b.Err == "") != (c.reached == opscore.BrokerOpen) {
			t.Errorf("%s: reached %s, %q; want %s, %q", c.url, b.Reached, b.Err, c.reached, c.says)
		}
	}
}

func permissions(t *testing.T, s *suspect) {
	ch := s.declare()
	s.publish(ch, 1)
	for _, c := range []struct {
		configure, write, read string
		refused                []string
	}{
		{".*", ".*", ".*", nil},
		{"^$", "amq.default", "^opscore[.]", nil},
		{".*", ".*", "^$", []string{"read: 403 ACCESS_REFUSED - access to queue 'opscore.orders' in vhost 'app' refused for user 'app'"}},
		{".*", "^opscore[.]", ".*", []string{"write: 403 ACCESS_REFUSED - access to exchange 'amq.default' in vhost 'app' refused for user 'app'"}},
		{"^$", "^$", "^$", []string{"read: 403", "write: 403"}},
	} {
		s.permit(c.configure, c.write, c.read)
		q := s.queue()
		same := slices.EqualFunc(q.Refused, c.refused, strings.HasPrefix)
		if !same || !q.Exists || q.Messages != 1 || (q.Unchecked == "") != (c.configure == ".*") {
			t.Errorf("who may configure %q, write %q, read %q: %+v", c.configure, c.write, c.read, q)
		}
	}
	s.permit(".*", ".*", ".*")
	s.drop()
}

func strangers(t *testing.T, s *suspect) {
	ch := s.declare()
	check(t, ch.Qos(50, 0, false))
	hoarder, err := ch.Consume("opscore.orders", "the-hoarder", false, false, false, false, nil)
	check(t, err)
	s.publish(ch, 7)
	for range 7 {
		<-hoarder
	}
	thief := s.channel()
	_, err = thief.Consume("opscore.orders", "the-thief", true, false, false, false, nil)
	check(t, err)
	var q opscore.BrokerQueue
	s.until("the statistics have it", func() bool {
		q = s.queue()
		return q.Unacked == 7 && len(q.Consuming) == 2 && q.Consuming[0].Unacked+q.Consuming[1].Unacked == 7
	})
	if q.Consumers != 2 || q.Messages != 0 {
		t.Errorf("the queue is %+v", q)
	}
	for _, c := range q.Consuming {
		hoards := c.Tag == "the-hoarder"
		if c.AutoAck == hoards || hoards && (c.Prefetch != 50 || c.Unacked != 7) || !strings.HasPrefix(c.Peer, "127.0.0.1:") ||
			!strings.HasPrefix(c.Conn, c.Peer+" -> ") || c.User != "app" || c.Worker != (opscore.ID{}) || c.PID != 0 {
			t.Errorf("a consumer is %+v", c)
		}
	}
	s.drop()
	s.declare()
	if q := s.queue(); len(q.Consuming) != 0 {
		t.Errorf("the consumers of a new queue are %+v", q.Consuming)
	}
}

func workers(t *testing.T, s *suspect) {
	theirs := foreign(t, s.at)
	for _, r := range []*rig{s.rig, theirs} {
		b := r.broker(rabbitmq.Options{Build: "v" + r.url[len(r.url)-3:]})
		r.work(b, &opscore.Worker{Slots: 2})
	}
	ours, err := s.store.Workers(t.Context(), 0)
	check(t, err)
	var q opscore.BrokerQueue
	s.until("both are listed", func() bool {
		f := s.gather(&opscore.Facts{Workers: ours})
		q = f.Broker.Queues[0]
		return len(q.Consuming) == 2 && q.Consuming[0].PID > 0 && q.Consuming[1].PID > 0
	})
	for _, r := range []*rig{s.rig, theirs} {
		all, err := r.store.Workers(t.Context(), 0)
		check(t, err)
		d, err := r.store.Deployment(t.Context())
		check(t, err)
		w := all[len(all)-1]
		if !slices.ContainsFunc(q.Consuming, func(c opscore.Consumer) bool {
			return c.Worker == w.ID && c.Instance == d.Instance.String() && c.PID == w.PID && c.Host == w.Host && c.Build == "v"+r.url[len(r.url)-3:]
		}) {
			t.Errorf("the consumers are %+v, want worker %s of %s", q.Consuming, w.ID, d.Instance)
		}
	}
	if q.Consuming[0].Instance == q.Consuming[1].Instance {
		t.Errorf("both work for %s", q.Consuming[0].Instance)
	}
}

func alarms(t *testing.T, s *suspect) {
	ch := s.declare()
	s.publish(ch, 2)
	before := s.contents()
	for _, c := range []struct{ set, end, blocked, alarm string }{
		{`vm_memory_monitor:set_vm_memory_high_watermark(0.0000001)`, `vm_memory_monitor:set_vm_memory_high_watermark(0.6)`, "low on memory", "memory alarm on "},
		{`rabbit_disk_monitor:set_disk_free_limit("5000GB")`, `rabbit_disk_monitor:set_disk_free_limit("1MB")`, "low on disk", "disk space alarm on "},
	} {
		s.eval("%s", c.set)
		var b *opscore.BrokerFacts
		s.until("the alarm is in effect", func() bool {
			b = s.ask()
			return len(b.Alarms) > 0
		})
		if b.Blocked != c.blocked || !strings.HasPrefix(b.Alarms[0], c.alarm+s.node.Name()) || len(b.Queues) != 1 || b.Queues[0].Messages != 2 {
			t.Errorf("the facts are %+v, want %q and %q", b, c.blocked, c.alarm)
		}
		s.until("the numbers are known as well", func() bool { return strings.Contains(s.ask().Alarms[0], "the limit is") })
		s.eval("%s", c.end)
		s.until("the alarm is over", func() bool { b := s.ask(); return b.Blocked == "" && len(b.Alarms) == 0 })
	}
	s.until("nothing has changed", func() bool { return s.contents() == before })
	s.drop()
}

func noManagement(t *testing.T, s *suspect) {
	ch := s.declare()
	s.publish(ch, 2)
	silent, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	check(t, err)
	defer silent.Close()
	for at, says := range map[string]string{
		"":                                 "",
		"http://127.0.0.1:1":               "connection refused",
		"http://" + s.node.Addr():          "",
		"http://" + silent.Addr().String(): "no answer in time",
		strings.Replace(s.node.Management(), "://", "://app:"+canary+"x@", 1): "401 Unauthorized",
	} {
		f := s.gather(&opscore.Facts{}, func(q *rabbitmq.Inquiry) { q.Management = at })
		if b := f.Broker; b.Reached != opscore.BrokerOpen || b.Managed || len(b.Queues) != 1 || b.Queues[0].Messages != 2 {
			t.Errorf("%s: the facts are %+v", at, b)
		}
		if last := f.Sources[len(f.Sources)-1]; at != "" && (last.Err == "" || !strings.Contains(last.Err, says)) || f.Sources[0].Err != "" {
			t.Errorf("%s: the sources are %+v, want %q", at, f.Sources, says)
		}
	}
	s.drop()
}

// oddAnswers are what the API says of shovels, and RabbitMQ 4's of consumers of AMQP 1.0.
func oddAnswers(t *testing.T, s *suspect) {
	ch := s.declare()
	_, err := ch.Consume("opscore.orders", "one", false, false, false, false, nil)
	check(t, err)
	const shovel = `{"consumer_tag": "shovel", "prefetch_count": "undefined", "channel_details": {"name": "c", "connection_name": "<rabbit@mq.1>", "peer_host": "undefined", "peer_port": "undefined"}}`
	const lean = `{"consumer_tag": "lean", "prefetch_count": 7, "channel_details": {}}`
	answer := ""
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/api/queues/app/opscore.orders":
			_, _ = io.WriteString(w, answer)
		case "/api/channels/c":
			_, _ = io.WriteString(w, `{"messages_unacknowledged": "unknown"}`)
		default:
			_, _ = io.WriteString(w, `{}`)
		}
	}))
	defer api.Close()
	for _, c := range []struct{ listed, tags string }{
		{lean, "lean"},
		{lean + ", " + lean, "lean"},     // one of them is gone
		{lean + ", " + shovel, "shovel"}, // there is only one
		{"", ""},
	} {
		answer = `{"messages_unacknowledged": "undefined", "policy": "short", "effective_policy_definition": {"max-length": 5}, "consumer_details": [` + c.listed + `]}`
		f := s.gather(&opscore.Facts{}, func(q *rabbitmq.Inquiry) { q.Management = api.URL })
		q := f.Broker.Queues[0]
		var tags []string
		for _, k := range q.Consuming {
			if tags = append(tags, k.Tag); k.Peer != "" {
				t.Errorf("a consumer is %+v", k)
			}
		}
		if f.Sources[1].Err != "" || q.Policy == nil || strings.Join(tags, " ") != c.tags {
			t.Errorf("with %s the queue is %+v, the sources %+v", c.listed, q, f.Sources)
		}
	}
	s.drop()
}

func manyQueues(t *testing.T, s *suspect) {
	var known opscore.Facts
	for i := range 210 {
		known.Queues = append(known.Queues, opscore.Standing{Queue: fmt.Sprintf("q%03d", i)})
	}
	var mu sync.Mutex
	var asked []string
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if name, is := strings.CutPrefix(r.URL.Path, "/api/queues/app/opscore."); is {
			asked = append(asked, name)
		}
		http.NotFound(w, r)
	}))
	defer api.Close()
	f := s.gather(&known, func(q *rabbitmq.Inquiry) { q.First, q.Management = "zz", api.URL })
	if n := len(f.Broker.Queues); n == 0 || n > 200 || f.Broker.Queues[0].Queue != "zz" || f.Sources[0].Err != fmt.Sprintf("%d of 212 queues were looked at", n) {
		t.Errorf("%d queues, the first is %+v, the sources are %+v", n, f.Broker.Queues[0], f.Sources)
	}
	mu.Lock()
	defer mu.Unlock()
	if first := asked[:min(len(asked), 20)]; len(asked) > 200 || !slices.Contains(first[:8], "zz") || slices.ContainsFunc(first, func(name string) bool { return name > "q030" && name != "zz" }) {
		t.Errorf("the management API was asked for %d queues, first for %v", len(asked), first)
	}
}

// manyPermissions counts what is written to the broker's log.
func manyPermissions(t *testing.T, s *suspect) {
	var known opscore.Facts
	ch := s.channel()
	for i := range 24 {
		known.Queues = append(known.Queues, opscore.Standing{Queue: fmt.Sprintf("q%02d", i)})
		_, err := ch.QueueDeclare("opscore."+known.Queues[i].Queue, true, false, false, false,
			amqp.Table{"x-queue-type": "classic", "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "opscore-dead"})
		check(t, err)
	}
	refused := func(task *opscore.Task) (names []string) {
		t.Helper()
		known.Task = task
		f := s.gather(&known, func(q *rabbitmq.Inquiry) { q.Queues, q.Options.Classic = nil, true })
		if len(f.Broker.Queues) != 24 || f.Sources[0].Err != "" {
			t.Errorf("the queues are %+v, the sources %+v", f.Broker.Queues, f.Sources)
		}
		for _, q := range f.Broker.Queues {
			if len(q.Refused) > 0 {
				names = append(names, q.Queue)
			}
		}
		return names
	}
	if names := refused(nil); len(names) > 0 {
		t.Errorf("%v are refused", names)
	}
	logged := func() int { return strings.Count(s.node.Log(), "invalid arg 'x-priority' for queue 'opscore.q") }
	s.until("the broker has logged it", func() bool { return logged() >= 5 })
	if n := logged(); n > 6 {
		t.Errorf("the broker logged %d errors for 24 queues", n)
	}
	s.permit(".*", ".*", "^opscore[.]q([01].|2[0-2])$")
	if names := refused(&opscore.Task{Queue: "q23"}); !slices.Equal(names, []string{"q23"}) {
		t.Errorf("%v are refused, want the task's queue", names)
	}
	s.permit(".*", ".*", "^opscore[.]q.[1-9]$")
	if names := refused(nil); !slices.Equal(names, []string{"q00", "q10", "q20"}) {
		t.Errorf("%v are refused, want all that are", names)
	}
	s.permit(".*", ".*", ".*")
	for _, q := range known.Queues {
		_, err := ch.QueueDelete("opscore."+q.Queue, false, false, false)
		check(t, err)
	}
}

func neverAnswered(t *testing.T, s *suspect) {
	proxy := nodes.NewProxy(t, s.node.Addr())
	proxy.CutBeforeRequest([]byte("opscore-nowhere"))
	f := s.gather(&opscore.Facts{}, func(q *rabbitmq.Inquiry) { q.URLs = "amqp://app:" + canary + "@" + proxy.Addr() + "/app" })
	if b := f.Broker; b.Reached != opscore.BrokerOpen || b.Err != "" || b.Blocked != "" || len(b.Queues) != 1 {
		t.Errorf("the facts are %+v", b)
	}
	if err := f.Sources[0].Err; !strings.HasPrefix(err, "whether it takes messages is not known: ") {
		t.Errorf("the sources are %+v", f.Sources)
	}
}

func adopted(t *testing.T, s *suspect) {
	ch := s.channel()
	_, err := ch.QueueDeclare("mail", true, false, false, false, amqp.Table{"x-max-priority": int32(3)})
	check(t, err)
	_, err = ch.QueueDeclare("aside-mail", true, false, false, false, nil)
	check(t, err, ch.Confirm(false))
	c, err := ch.PublishWithDeferredConfirmWithContext(t.Context(), "", "aside-mail", true, false, amqp.Publishing{})
	check(t, err)
	c.Wait()
	f := s.gather(&opscore.Facts{Task: &opscore.Task{Queue: "mail"}}, func(q *rabbitmq.Inquiry) {
		q.Queues, q.Aside = nil, func(name string) string { return "aside-" + name }
		q.Adopted = map[string][]rabbitmq.Declaration{"mail": {{Name: "mail", Args: amqp.Table{"x-message-ttl": int64(5)}}, {Name: "mail.DQ", Args: amqp.Table{}}}, "more": {{Name: "more"}}}
	})
	q := f.Broker.Queues
	if len(q) != 3 || q[0].Name != "opscore.mail" || q[1].Name != "mail" || q[1].Queue != "mail" || !q[1].Exists || !strings.Contains(q[1].Mismatch, "x-m") || q[2].Exists {
		t.Errorf("the queues are %+v", q)
	}
	if q[0].AsideIn != "" || q[1].Aside != 1 || q[1].AsideIn != "aside-mail" || q[2].Aside != 0 {
		t.Errorf("what is aside is %+v", q)
	}
	for _, name := range []string{"mail", "aside-mail"} {
		_, err = ch.QueueDelete(name, false, false, false)
		check(t, err)
	}
}

func lostState(t *testing.T, s *suspect) {
	stop := s.keep(s.broker(rabbitmq.Options{}))
	var before opscore.Deployment
	s.until("the epoch is known", func() bool {
		var err error
		before, err = s.store.Deployment(t.Context())
		check(t, err)
		return before.Epoch != opscore.ID{}
	})
	if b := s.ask(); b.Epoch != before.Epoch || b.Expected != before.Epoch {
		t.Errorf("epoch %s, expected %s, want %s", b.Epoch, b.Expected, before.Epoch)
	}
	stop()
	s.at = s.as("app", "lonely")
	s.eval(`ok = rabbit_vhost:add(<<"lonely">>, <<"t">>), ok = rabbit_auth_backend_internal:set_permissions(<<"app">>, <<"lonely">>, <<".*">>, <<".*">>, <<".*">>, <<"t">>)`)
	if b := s.ask(); b.Epoch != (opscore.ID{}) || b.Expected != before.Epoch {
		t.Errorf("epoch %s, expected %s, want none and %s", b.Epoch, b.Expected, before.Epoch)
	}
	if b := s.ask(func(q *rabbitmq.Inquiry) {
		q.Deployment = func(context.Context) (opscore.Deployment, error) {
			return opscore.Deployment{}, errors.New("the database is down")
		}
	}); b.Reached != opscore.BrokerOpen || b.Expected != (opscore.ID{}) {
		t.Errorf("without a database the facts are %+v", b)
	}
	silent := make(chan struct{})
	defer close(silent)
	if b := s.ask(func(q *rabbitmq.Inquiry) {
		q.Deployment = func(context.Context) (opscore.Deployment, error) {
			<-silent
			return opscore.Deployment{}, nil
		}
	}); b.Reached != opscore.BrokerOpen || len(b.Queues) != 1 || b.Expected != (opscore.ID{}) {
		t.Errorf("with a database that does not answer the facts are %+v", b)
	}
}

func frozen(t *testing.T, s *suspect) {
	check(t, s.node.Pause())
	b := s.ask()
	check(t, s.node.Continue())
	if b.Reached != opscore.BrokerTLS || b.Err != "no answer in time" {
		t.Errorf("reached %s, %q; want that it does not answer", b.Reached, b.Err)
	}
}

func down(t *testing.T, s *suspect) {
	check(t, s.node.Stop())
	f := s.gather(&opscore.Facts{})
	if b := f.Broker; b.Reached != opscore.BrokerNone || !strings.Contains(b.Err, "connection refused") || f.Sources[0].Err != b.Err || f.Sources[1].Err == "" {
		t.Errorf("the facts are %+v, the sources %+v", b, f.Sources)
	}
}

func TestTheURLOfAManagementAPIIsChecked(t *testing.T) {
	for text, shown := range map[string]string{
		"http://mq:15672":                    "http://mq:15672",
		"https://app:" + canary + "@mq/path": "https://app@mq/path",
		"amqp://app:" + canary + "@mq":       "",
		"http://app:" + canary + "/@mq":      "",
		"http://mq?password=" + canary:       "",
		"mq:15672":                           "",
	} {
		err := rabbitmq.ValidManagementURL(text, "")
		if got := rabbitmq.RedactedManagement(text); shown != "" && (err != nil || got != shown) || shown == "" && (err == nil || got != "…" || strings.Contains(err.Error(), canary)) {
			t.Errorf("%s: %v, shown as %s", text, err, got)
		}
	}
}

func TestThePasswordOfAnEncryptedBrokerIsNotSentUnencrypted(t *testing.T) {
	const broker = "amqps://app:" + canary + "@127.0.0.1:1/app"
	for text, accepted := range map[string]bool{
		"http://mq:15672":                       false,
		"http://10.0.0.7:15672":                 false,
		"https://mq:15671":                      true,
		"http://looker:" + canary + "@mq:15672": true,
		"http://127.0.0.1:15672":                true,
		"http://localhost:15672":                true,
		"http://[::1]:15672":                    true,
	} {
		if err := rabbitmq.ValidManagementURL(text, broker); accepted != (err == nil) || err != nil && (!errors.Is(err, opscore.ErrInvalid) || strings.Contains(err.Error(), canary)) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if err := rabbitmq.ValidManagementURL("http://mq:15672", strings.Replace(broker, "amqps", "amqp", 1)); err != nil {
		t.Errorf("of a broker without encryption: %v", err)
	}
	f, err := rabbitmq.Inquiry{URLs: broker, Management: "http://192.0.2.1:15672"}.Gather(t.Context(), &opscore.Facts{})
	if err != nil || len(f.Sources) != 2 || !strings.Contains(f.Sources[1].Err, "use https://") {
		t.Errorf("the sources are %+v, %v", f.Sources, err)
	}
}
